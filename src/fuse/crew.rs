//! The threads that answer requests.
//!
//! Each has its own descriptor of the connection, cloned so that threads do not meet on one queue of outstanding
//! requests, and its own buffers. There are as many threads as processors at first; when all are busy one more is
//! started, so that requests that wait (fsync, a big copy-up) do not hold up the others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::handshake::MAX_WRITE;
use super::serve::{Outcome, Server};
use super::wire::reply::{Reply, Ttl};
use crate::sys::fuse_device;

/// Longest request: the longest write, the longest xattr with its name, headers.
const REQUEST: usize = MAX_WRITE as usize + (1 << 16) + 4096;
/// Longest payload of a reply: the longest read; xattrs and listings are shorter.
const PAYLOAD: usize = MAX_WRITE as usize;

/// All threads of a mount.
pub(super) struct Crew {
    server: Arc<Server>,
    session: OwnedFd,
    ttl: Ttl,
    /// Never more threads than this.
    limit: usize,
    /// Threads that have been started and have not ended.
    hired: AtomicUsize,
    /// Threads that wait for a request.
    idle: AtomicUsize,
    /// Requests are answered with ENODEV.
    stopped: AtomicBool,
    /// Becomes readable when the last thread has ended.
    ended: OwnedFd,
}

/// What came out of waiting for a request.
enum Next {
    Request(usize),
    Unmounted,
}

impl Crew {
    /// Starts answering. `limit`: the option `threads=`.
    pub(super) fn start(server: Server, session: OwnedFd, ttl: Ttl, limit: Option<usize>) -> io::Result<Arc<Self>> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = limit.unwrap_or_else(|| processors.saturating_mul(4).max(16));
        let crew = Arc::new(Self {
            server: Arc::new(server),
            session,
            ttl,
            limit,
            hired: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            ended: eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        for _ in 0..processors.max(2).min(limit) {
            crew.hire()?;
        }
        Ok(crew)
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Becomes readable when the last thread has ended.
    pub(super) fn ended(&self) -> impl AsFd + '_ {
        self.ended.as_fd()
    }

    /// Answers everything from now on with ENODEV and waits until no request is worked on, or for `patience`.
    pub(super) fn stop(&self, patience: Duration) {
        self.stopped.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        while self.idle.load(Ordering::SeqCst) < self.hired.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a thread.
    fn hire(self: &Arc<Self>) -> io::Result<()> {
        let device = match fuse_device::clone_device(self.session.as_fd()) {
            Ok(device) => device,
            // Mounted by fusermount3 for a user who may not open /dev/fuse: all threads share one queue.
            Err(error) => {
                tracing::debug!(%error, "threads share one descriptor");
                self.session.try_clone()?
            }
        };
        let number = self.hired.fetch_add(1, Ordering::SeqCst);
        let crew = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
        match thread.spawn(move || crew.work(&device)) {
            Ok(_detached) => Ok(()),
            Err(error) => {
                self.hired.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// All were busy when a request came.
    fn hire_one_more(self: &Arc<Self>) {
        if self.hired.load(Ordering::Relaxed) < self.limit
            && let Err(error) = self.hire()
        {
            tracing::warn!(%error, "no thread could be added");
        }
    }

    /// Answers requests until the mount is gone.
    fn work(self: &Arc<Self>, device: &OwnedFd) {
        let mut request = vec![0; REQUEST].into_boxed_slice();
        let mut reply = Reply::new(PAYLOAD, self.ttl);
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let next = next_request(device, &mut request);
            let idle = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            let length = match next {
                Ok(Next::Request(length)) => length,
                Ok(Next::Unmounted) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read requests");
                    break;
                }
            };
            if idle == 0 {
                self.hire_one_more();
            }
            if !self.answer(device, request.get(..length).unwrap_or_default(), &mut reply) {
                break;
            }
        }
        if self.hired.fetch_sub(1, Ordering::SeqCst) == 1
            && let Err(error) = rustix::io::write(&self.ended, &1u64.to_ne_bytes())
        {
            tracing::error!(%error, "nobody learns of the end of the mount");
        }
    }

    /// False when the kernel said goodbye.
    fn answer(&self, device: &OwnedFd, request: &[u8], reply: &mut Reply) -> bool {
        let outcome = if self.stopped.load(Ordering::SeqCst) {
            self.server.decline(request, reply)
        } else {
            self.server.answer(request, reply)
        };
        match outcome {
            Outcome::Reply(message) => {
                send(device, message);
                true
            }
            Outcome::Silent => true,
            Outcome::Goodbye(message) => {
                send(device, message);
                false
            }
        }
    }
}

fn next_request(device: &OwnedFd, request: &mut [u8]) -> Result<Next, Errno> {
    loop {
        match rustix::io::read(device, &mut *request) {
            Ok(length) => return Ok(Next::Request(length)),
            // ENOENT: the request was interrupted while it was being read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            // ECONNABORTED: somebody wrote to /sys/fs/fuse/connections/*/abort.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Next::Unmounted),
            Err(errno) => return Err(errno),
        }
    }
}

fn send(device: &OwnedFd, message: &[u8]) {
    match rustix::io::write(device, message) {
        Ok(_) => {}
        // The mount went away meanwhile; the kernel has answered for us.
        Err(error @ (Errno::NOENT | Errno::NODEV)) => tracing::debug!(%error, "a reply came too late"),
        // The kernel turns it into EIO for the caller.
        Err(error) => tracing::error!(%error, length = message.len(), "the kernel refused a reply"),
    }
}
