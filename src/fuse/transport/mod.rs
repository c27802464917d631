//! How requests come from the kernel, and how answers go back.
//!
//! [`crate::fuse::serve::Server`] answers one request at a time, from any thread, and does not know the transport. A
//! transport owns the threads and the buffers, and calls the server. There are two:
//!
//! - [`device`]: a crew of threads reads and writes `/dev/fuse`. Always available.
//! - [`ring`]: threads on every processor wait for the requests made there (FUSE over io_uring, Linux 6.14). Root must
//!   enable it for the whole kernel.

mod activity;
pub(super) mod device;
mod idle_class;
pub(super) mod ring;

use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Threads are stuck if none of them finishes a request within this time.
const STUCK: Duration = Duration::from_millis(2);

/// Serves requests until the mount is gone.
pub(super) trait Transport: Send + Sync {
    /// Becomes readable when the mount is gone and the last request has been answered.
    fn ended(&self) -> BorrowedFd<'_>;

    /// Answers every further request with ENODEV. Returns when no request is being worked on, or after `patience`.
    fn stop(&self, patience: Duration);
}

/// Maximum number of threads that answer requests, without the option `threads=`.
fn default_limit() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(4).max(16)
}
