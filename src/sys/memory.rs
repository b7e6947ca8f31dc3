//! What memory the allocator keeps.

/// Has the allocator divide memory among this many heaps at most, whatever the number of threads; to be called before there are
/// any. glibc makes up to eight for each processor, and what a layer's threads have freed in one is of no use to the next layer's
/// in another: twenty layers at once took 73 MiB with as many as it likes, and 63 with two. Other C libraries have nothing to set.
pub(crate) fn share_heaps(heaps: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only; it changes where later memory is taken from, and nothing about memory that is in use.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, heaps)
    };
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}
