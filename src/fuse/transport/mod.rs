//! How requests come from the kernel and how answers go back.
//!
//! [`crate::fuse::serve::Server`] answers one request at a time, from any thread, and knows nothing of where it came
//! from. A transport owns the threads and the buffers, and calls it. There is one: [`device`], whose threads read and
//! write `/dev/fuse`.
//!
//! The interface leaves room for rings (FUSE over io_uring, Linux 6.14). A ring has a queue and a pinned thread for
//! each processor, and its buffers are registered with the kernel. Its thread hands the request of a queue to the server,
//! then gives the answer back and takes the next request in one system call. It must not wait in a verb: a request that
//! may wait (a copy-up, fsync) goes to a thread outside of the queue, as the device's crew hires one more thread when all
//! are stuck. `FORGET` and `INTERRUPT` never come through a ring, so that a ring transport reads the device too.

pub(super) mod device;

use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Serves requests from its start until the mount is gone.
pub(super) trait Transport: Send + Sync {
    /// Becomes readable when the mount is gone and the last request has been answered.
    fn ended(&self) -> BorrowedFd<'_>;

    /// Answers every request from now on with ENODEV. Returns when none is worked on any more, or after `patience`.
    fn stop(&self, patience: Duration);
}
