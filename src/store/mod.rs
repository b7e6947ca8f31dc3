//! Layers and image records on disk.
