//! The backends on real file systems and real mounts: trees built by hand in the store's form, made into root
//! filesystems, compared entry by entry, and taken away.

mod any_stack;
mod choose;
mod killed;
mod life;
mod namespaces;
mod reflink;
mod support;
mod traps;
mod trees;
