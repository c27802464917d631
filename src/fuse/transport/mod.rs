//! How requests come from the kernel and how answers go back.
//!
//! [`crate::fuse::serve::Server`] answers one request at a time, from any thread, and knows nothing of where it came
//! from. A transport owns the threads and the buffers, and calls it. There are two:
//!
//! - [`device`]: a crew of threads reads and writes `/dev/fuse`. Always available.
//! - [`ring`]: threads on every processor wait for the requests that are made there (FUSE over io_uring, Linux 6.14). Root
//!   has to switch it on for the whole kernel.

mod activity;
pub(super) mod device;
pub(super) mod ring;

use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Threads are stuck if none of them finishes a request for this long.
const STUCK: Duration = Duration::from_millis(2);

/// Serves requests from its start until the mount is gone.
pub(super) trait Transport: Send + Sync {
    /// Becomes readable when the mount is gone and the last request has been answered.
    fn ended(&self) -> BorrowedFd<'_>;

    /// Answers every request from now on with ENODEV. Returns when none is worked on any more, or after `patience`.
    fn stop(&self, patience: Duration);
}

/// Most threads that answer requests, if the option `threads=` does not tell.
fn default_limit() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(4).max(16)
}
