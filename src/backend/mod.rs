//! Root filesystems of layer stacks: overlay, copy, bind.
