//! EROFS images as they are written: by the kernel's mount against trees made by system calls, by `fsck.erofs`, and by
//! a small reader of our own, which needs no root.

#[path = "../support/tarball.rs"]
mod tarball;
#[path = "../support/tree.rs"]
mod tree;

mod items;
mod layers;
mod mount;
mod read;
mod rules;
mod shapes;
