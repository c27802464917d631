//! The threads that answer requests.
//!
//! Each has its own buffers and its own clone of the connection's descriptor, so that threads do not share one queue of
//! outstanding requests. There are as many threads as processors; more would only cost caches. As long as one thread is enough,
//! only one waits for requests (see `shift`). If all threads that do not rest are stuck in slow requests (fsync, a big
//! copy-up), one more is called or started, so that other requests are not held up. It ends when the rush is over.

pub(super) mod channel;
mod follow;
mod shift;
mod spin;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::driver::interrupt;
use crate::fuse::in_flight::Slot;
use crate::fuse::serve::Server;
use crate::fuse::transport::activity::Activity;
use crate::fuse::transport::idle_class::{Candidacy, IdleClass};
use crate::fuse::transport::{STUCK, Transport, default_limit};
use crate::fuse::wire::reply::Ttl;
use crate::sys::fuse_device;
use channel::{Channel, Received};
use follow::Follow;
use shift::Shift;
use spin::Spin;

/// All threads of a mount.
pub(in crate::fuse) struct Crew {
    server: Arc<Server>,
    session: OwnedFd,
    ttl: Ttl,
    /// Number of threads that stay when there is nothing to do.
    base: usize,
    /// Maximum number of threads.
    limit: usize,
    /// Threads that were started and have not ended.
    hired: AtomicUsize,
    activity: Activity,
    /// True while the foreman checks the activity periodically; otherwise it waits to be woken.
    watching: AtomicBool,
    /// The thread that starts others; set once.
    foreman: OnceLock<Thread>,
    spin: Spin,
    shift: Shift,
    idle_class: Arc<IdleClass>,
    /// True if requests are answered with ENODEV.
    stopped: AtomicBool,
    /// Becomes readable when the last thread has ended.
    ended: OwnedFd,
}

impl Crew {
    /// Starts the threads. `limit` is the option `threads=`.
    pub(in crate::fuse) fn start(
        server: Arc<Server>,
        session: OwnedFd,
        ttl: Ttl,
        limit: Option<usize>,
    ) -> io::Result<Arc<Self>> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = limit.unwrap_or_else(default_limit);
        let base = processors.max(2).min(limit);
        let crew = Arc::new(Self {
            server,
            session,
            ttl,
            base,
            limit,
            hired: AtomicUsize::new(0),
            activity: Activity::default(),
            watching: AtomicBool::new(false),
            foreman: OnceLock::new(),
            spin: Spin::default(),
            shift: Shift::default(),
            idle_class: IdleClass::new(),
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

    /// Starts a thread.
    fn hire(self: &Arc<Self>) -> io::Result<()> {
        let device = match fuse_device::clone_device(self.session.as_fd()) {
            Ok(device) => device,
            // Mounted by fusermount3 for a user who may not open /dev/fuse, so all threads share one queue.
            Err(error) => {
                tracing::debug!(%error, "threads share one descriptor");
                self.session.try_clone()?
            }
        };
        let number = self.hired.fetch_add(1, Ordering::SeqCst);
        let crew = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
        match thread.spawn(move || crew.work(device, number >= crew.base)) {
            Ok(_detached) => Ok(()),
            Err(error) => {
                self.hired.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Main function of the foreman: sleeps until all threads are busy, then checks whether they make progress.
    fn watch(self: Arc<Self>) {
        let mut quiet = 0;
        loop {
            if quiet >= 50 {
                self.watching.store(false, Ordering::SeqCst);
                std::thread::park();
                quiet = 0;
            }
            let before = self.activity.now();
            std::thread::sleep(STUCK);
            let stuck = self.activity.now().is_stuck_since(before);
            let reviews = self.idle_class.review();
            quiet = if stuck || reviews { 0 } else { quiet + 1 };
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

    /// No thread is left to take the next request.
    fn wake_foreman(&self) {
        if !self.watching.swap(true, Ordering::SeqCst)
            && let Some(foreman) = self.foreman.get()
        {
            foreman.unpark();
        }
    }

    /// Answers requests until the mount is gone; an extra thread also ends when the rush is over.
    fn work(self: &Arc<Self>, device: OwnedFd, surplus: bool) {
        let mut channel = Channel::new(device, self.ttl);
        let slot = self.server.in_flight.join();
        let own = Arc::clone(&slot);
        interrupt::ask_in_this_thread(move || own.is_wanted());
        let mut candidacy = self.idle_class.candidacy();
        let mut follow = Follow::default();
        loop {
            let others = self.activity.begin_to_wait();
            if self.shift.is_manned(others) || (surplus && others >= self.base) {
                self.activity.end_to_wait();
                if surplus {
                    break;
                }
                self.shift.rest();
            } else if !self.next(&mut channel, &slot, &mut candidacy, &mut follow) {
                self.server.overlay.announce_end();
                self.shift.end();
                break;
            }
        }
        if self.hired.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_foreman();
            if let Err(error) = rustix::io::write(&self.ended, &1u64.to_ne_bytes()) {
                tracing::error!(%error, "the end of the mount cannot be announced");
            }
        }
    }

    /// Waits for one request, counts the wait in the activity, and answers the request. Returns false when the mount is gone.
    fn next(&self, channel: &mut Channel, slot: &Slot, candidacy: &mut Candidacy, follow: &mut Follow) -> bool {
        // In the idle class, the next request is usually there when the thread gets to run again; and it must not spin on
        // its client's processor.
        let at_once = !candidacy.is_member() && self.spin.wait(channel.device());
        let received = channel.receive();
        let others = self.activity.end_to_wait();
        if received == Received::Unmounted {
            return false;
        }
        if others == 0 {
            self.wake_foreman();
        }
        let begun = Instant::now();
        let goes_on = channel.answer(&self.server, slot, self.stopped.load(Ordering::SeqCst));
        self.shift.note(at_once, begun.elapsed());
        self.stay_near(channel.process(), candidacy, follow);
        goes_on
    }

    /// Follows the process that most requests come from.
    fn stay_near(&self, process: u32, candidacy: &mut Candidacy, follow: &mut Follow) {
        let is_time_to_look = follow.note(process);
        if candidacy.is_member() && follow.is_crowded() {
            candidacy.leave();
        } else if candidacy.answered()
            && self.foreman.get().is_some()
            && !follow.is_crowded()
            && let Some(processor) = follow.look()
            && candidacy.join()
        {
            self.wake_foreman();
            if !candidacy.move_to(processor) {
                candidacy.leave();
            }
        } else if is_time_to_look
            && candidacy.is_member()
            && let Some(processor) = follow.look()
            && !candidacy.move_to(processor)
        {
            candidacy.leave();
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
        let idle = || self.activity.now().waiting() + self.shift.resting();
        while idle() < self.hired.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(STUCK);
        }
    }
}
