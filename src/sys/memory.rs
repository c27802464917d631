//! Returns memory to the system (glibc's `mallopt(3)` and `malloc_trim(3)`; elsewhere nothing is needed).

/// Size from which on an allocation is large: glibc's initial value.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Makes all threads share one pool of memory: each can use what another has freed, and memory freed by all is
/// returned to the system. With glibc's pools for each thread, each pool would grow to the size of the inode table
/// (20,000 entries looked up and forgotten six times: 13 MB with one pool, 28 MB with two).
///
/// Large allocations are always mapped separately. Otherwise glibc would take the first one that is freed, a buffer used at the
/// start, as a sign to keep similar ones in the pool too (half a megabyte more after a walk over 32,000 entries).
pub fn share_pool() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets integer parameters of the allocator; any thread may do so at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Returns unused memory to the system. Takes milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: frees pages that the allocator does not use; any thread may do so at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
