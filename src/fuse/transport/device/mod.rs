//! The threads that answer requests.
//!
//! Each has its own descriptor of the connection, cloned so that threads do not meet on one queue of outstanding
//! requests, and its own buffers. There are as many threads as processors; more of them only cost caches. Of these, one
//! waits for requests while that is enough, see `shift`. When all that do not rest are stuck in requests that wait
//! (fsync, a big copy-up), one more is called or started, so that the others' requests are not held up; it ends when the
//! rush is over.

mod shift;
mod spin;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::driver::interrupt;
use crate::fuse::in_flight::Slot;
use crate::fuse::serve::{Outcome, Server};
use crate::fuse::transport::Transport;
use crate::fuse::wire::MAX_WRITE;
use crate::fuse::wire::reply::{Reply, Ttl};
use crate::sys::fuse_device;
use shift::Shift;
use spin::Spin;

/// Longest request: the longest write, the longest xattr with its name, headers.
const REQUEST: usize = MAX_WRITE as usize + (1 << 16) + 4096;
/// Longest payload of a reply: the longest read; xattrs and listings are shorter.
const PAYLOAD: usize = MAX_WRITE as usize;

/// All threads are stuck if none finishes a request for this long.
const STUCK: Duration = Duration::from_millis(2);

/// All threads of a mount.
pub(in crate::fuse) struct Crew {
    server: Arc<Server>,
    session: OwnedFd,
    ttl: Ttl,
    /// As many threads stay when there is nothing to do.
    base: usize,
    /// Never more threads than this.
    limit: usize,
    /// Threads that have been started and have not ended.
    hired: AtomicUsize,
    /// See [`Activity`].
    activity: AtomicU64,
    /// The foreman looks at the activity now and then; otherwise it waits to be woken.
    watching: AtomicBool,
    /// The thread that starts others; set once.
    foreman: OnceLock<Thread>,
    spin: Spin,
    shift: Shift,
    /// Requests are answered with ENODEV.
    stopped: AtomicBool,
    /// Becomes readable when the last thread has ended.
    ended: OwnedFd,
}

/// How many threads wait for a request (low 16 bits), and how often one has begun to wait (the rest, wrapping).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Activity(u64);

impl Activity {
    const BEGIN_TO_WAIT: u64 = (1 << 16) + 1;

    fn waiting(self) -> usize {
        usize::from(self.0 as u16)
    }
}

/// What came out of waiting for a request.
enum Received {
    Request(usize),
    Unmounted,
}

impl Crew {
    /// Starts answering. `limit`: the option `threads=`.
    pub(in crate::fuse) fn start(
        server: Arc<Server>,
        session: OwnedFd,
        ttl: Ttl,
        limit: Option<usize>,
    ) -> io::Result<Arc<Self>> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = limit.unwrap_or_else(|| processors.saturating_mul(4).max(16));
        let base = processors.max(2).min(limit);
        let crew = Arc::new(Self {
            server,
            session,
            ttl,
            base,
            limit,
            hired: AtomicUsize::new(0),
            activity: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            foreman: OnceLock::new(),
            spin: Spin::default(),
            shift: Shift::default(),
            stopped: AtomicBool::new(false),
            ended: eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        for _ in 0..base {
            crew.hire()?;
        }
        let ahead = Arc::clone(&crew.server);
        std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || ahead.overlay.read_ahead())?;
        if limit > base {
            let watched = Arc::clone(&crew);
            let foreman = std::thread::Builder::new().name("fuse-foreman".to_owned()).spawn(move || watched.watch())?;
            crew.foreman.get_or_init(|| foreman.thread().clone());
        }
        Ok(crew)
    }

    fn activity(&self) -> Activity {
        Activity(self.activity.load(Ordering::SeqCst))
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
        match thread.spawn(move || crew.work(&device, number >= crew.base)) {
            Ok(_detached) => Ok(()),
            Err(error) => {
                self.hired.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// The foreman's life: sleeps until all threads are busy, then looks whether they get on.
    fn watch(self: Arc<Self>) {
        let mut quiet = 0;
        loop {
            if quiet >= 50 {
                self.watching.store(false, Ordering::SeqCst);
                std::thread::park();
                quiet = 0;
            }
            let before = self.activity();
            std::thread::sleep(STUCK);
            let stuck = before.waiting() == 0 && self.activity() == before;
            quiet = if stuck { 0 } else { quiet + 1 };
            let hired = self.hired.load(Ordering::SeqCst);
            if hired == 0 {
                return;
            }
            if stuck
                && !self.shift.call_one()
                && hired < self.limit
                && let Err(error) = self.hire()
            {
                tracing::warn!(%error, "no thread could be added");
            }
        }
    }

    /// Nobody is left to take the next request.
    fn wake_foreman(&self) {
        if !self.watching.swap(true, Ordering::SeqCst)
            && let Some(foreman) = self.foreman.get()
        {
            foreman.unpark();
        }
    }

    /// Answers requests until the mount is gone, or until the rush is over that the thread was started for.
    fn work(self: &Arc<Self>, device: &OwnedFd, surplus: bool) {
        let mut request = vec![0; REQUEST].into_boxed_slice();
        let mut reply = Reply::new(PAYLOAD, self.ttl);
        let slot = self.server.in_flight.join();
        let own = Arc::clone(&slot);
        interrupt::ask_in_this_thread(move || own.is_wanted());
        loop {
            let others = Activity(self.activity.fetch_add(Activity::BEGIN_TO_WAIT, Ordering::SeqCst)).waiting();
            if self.shift.is_manned(others) || (surplus && others >= self.base) {
                self.activity.fetch_sub(1, Ordering::SeqCst);
                if surplus {
                    break;
                }
                self.shift.rest();
            } else if !self.next(device, &slot, &mut request, &mut reply) {
                self.server.overlay.announce_end();
                self.shift.end();
                break;
            }
        }
        if self.hired.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_foreman();
            if let Err(error) = rustix::io::write(&self.ended, &1u64.to_ne_bytes()) {
                tracing::error!(%error, "nobody learns of the end of the mount");
            }
        }
    }

    /// Waits for one request, as counted in the activity, and answers it. False when the mount is gone.
    fn next(&self, device: &OwnedFd, slot: &Slot, request: &mut [u8], reply: &mut Reply) -> bool {
        let at_once = self.spin.wait(device);
        let received = next_request(device, request);
        let others = Activity(self.activity.fetch_sub(1, Ordering::SeqCst) - 1).waiting();
        let length = match received {
            Ok(Received::Request(length)) => length,
            Ok(Received::Unmounted) => return false,
            Err(error) => {
                tracing::error!(%error, "cannot read requests");
                return false;
            }
        };
        if others == 0 {
            self.wake_foreman();
        }
        let begun = Instant::now();
        let goes_on = self.answer(device, slot, request.get(..length).unwrap_or_default(), reply);
        self.shift.note(at_once, begun.elapsed());
        goes_on
    }

    /// False when the kernel said goodbye.
    fn answer(&self, device: &OwnedFd, slot: &Slot, request: &[u8], reply: &mut Reply) -> bool {
        let outcome = if self.stopped.load(Ordering::SeqCst) {
            self.server.decline(request, reply)
        } else {
            self.server.answer(slot, request, reply)
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

impl Transport for Crew {
    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn stop(&self, patience: Duration) {
        self.stopped.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        let idle = || self.activity().waiting() + self.shift.resting();
        while idle() < self.hired.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(STUCK);
        }
    }
}

fn next_request(device: &OwnedFd, request: &mut [u8]) -> Result<Received, Errno> {
    loop {
        match rustix::io::read(device, &mut *request) {
            Ok(length) => return Ok(Received::Request(length)),
            // ENOENT: the request was interrupted while it was being read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            // ECONNABORTED: somebody wrote to /sys/fs/fuse/connections/*/abort.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Received::Unmounted),
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
