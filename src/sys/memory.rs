//! Giving memory back to the system (glibc's `mallopt(3)` and `malloc_trim(3)`; elsewhere nothing is needed).

/// Bytes from which on a piece is large: what glibc begins with.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Lets all threads share one pool of memory: what one frees another can use, and what all have freed goes back to
/// the system. Of pools for each thread, as glibc makes them, each would grow to the size of the inode table (20,000
/// entries looked up and forgotten six times: 13 MB with one pool, 28 MB with two).
///
/// Large pieces are always mapped by themselves: glibc would take the first one that is freed, a buffer for the start,
/// as a sign to keep those like it in the pool, too (half a megabyte more after a walk over 32,000 entries).
pub fn share_pool() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets integer parameters of the allocator; any thread may do so at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Gives unused memory back to the system. Takes milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: frees pages that the allocator itself has no use for; any thread may do so at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
