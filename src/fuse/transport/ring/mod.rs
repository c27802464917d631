//! Rings: each request is answered on the processor where it is made.
//!
//! The kernel has a queue for each processor, and puts a request into the queue of the caller's processor. Two threads on
//! each processor wait for its queue; each has a ring with one entry ([`Ring`]). The kernel gives a request to the entry
//! that was answered last, so the second thread sleeps as long as the first one keeps up. While the first is stuck (a cold
//! disk, fsync, a big copy-up), the second one answers. When both are stuck, the foreman adds a thread to the queue. A
//! busy thread's entry takes no requests, so no request waits behind another while a thread is free. Added threads stay,
//! because the kernel does not take entries back.
//!
//! `FORGET`, `INTERRUPT` and the driver's notifications go through `/dev/fuse` as before; one thread reads it.
//!
//! Processors that are offline when the mount is made have queues too. One thread waits for all of them. A
//! request from such a queue means that its processor is online now; it then gets its own threads.

mod processors;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::activity::{Activity, Moment};
use super::device::channel::{Channel, Received};
use super::idle_class::IdleClass;
use super::{STUCK, Transport, default_limit};
use crate::driver::interrupt;
use crate::driver::types::NodeId;
use crate::fuse::in_flight::Slot;
use crate::fuse::serve::{Outcome, Server};
use crate::fuse::wire::MAX_WRITE;
use crate::fuse::wire::message::Message;
use crate::fuse::wire::reply::{Answer, Reply, Ttl, retrieve_nothing};
use crate::sys::fuse_ring::{Blank, Request, Ring};
use processors::{Processors, stay_on};

/// Room for the longest write and the longest read, as the kernel demands.
const PAYLOAD: usize = MAX_WRITE as usize;

/// Names and values up to this size are moved aside, because the answer is encoded where they are. The answers to
/// longer ones (a write, a big attribute) are shorter than this.
const ASIDE: usize = 8192;

/// Number of threads that wait for each queue when the mount is made.
const THREADS: usize = 2;

/// Machines with more processors use the device unless told otherwise: each mount has two threads and rings of 50 KiB for
/// each processor.
const MOST_PROCESSORS: u16 = 32;

/// Number of the first request that we had the kernel make. The kernel counts its own from 0 in even numbers.
const MADE: u64 = 1 << 62;

/// After this many checks without a stuck queue, the foreman sleeps.
const QUIET: u32 = 50;

/// Rings that were made in advance, before the kernel is asked to use them.
pub(in crate::fuse) struct Prospect {
    processors: Processors,
    limit: usize,
    /// Refuses all rings if some of them cannot be made.
    spare: Blank,
}

/// All queues of a mount.
pub(in crate::fuse) struct Rings {
    server: Arc<Server>,
    session: OwnedFd,
    ttl: Ttl,
    /// One for each processor, then one for the processors that are offline.
    queues: Box<[Queue]>,
    /// Maximum number of threads.
    limit: usize,
    /// Threads that were started and have not ended.
    hired: AtomicUsize,
    /// Activity of the thread that reads the device.
    reader: Activity,
    idle_class: Arc<IdleClass>,
    /// True while the foreman checks the queues periodically; otherwise it waits to be woken.
    watching: AtomicBool,
    /// The thread that starts others; set once.
    foreman: OnceLock<Thread>,
    /// True if no more threads can be started.
    is_full: AtomicBool,
    /// Number of requests that were made to have something to answer.
    made: AtomicU64,
    /// True if requests are answered with ENODEV.
    stopped: AtomicBool,
    /// Becomes readable when the last thread has ended, or when one cannot continue.
    ended: OwnedFd,
}

/// One queue, as its threads see it.
#[derive(Debug, Default)]
struct Queue {
    activity: Activity,
    /// Number of threads that were started for it.
    threads: AtomicUsize,
    /// True if a request came for a processor that has no threads yet.
    is_wanting: AtomicBool,
}

impl Prospect {
    /// `threads` is the option of that name. With `insisting`, machines with many processors get rings too.
    ///
    /// # Errors
    /// One line that says why there are no rings.
    pub(in crate::fuse) fn new(threads: Option<usize>, insisting: bool) -> io::Result<Self> {
        let processors = Processors::find()?;
        let wanted = usize::from(processors.possible) * THREADS;
        if processors.possible > MOST_PROCESSORS && !insisting {
            return Err(io::Error::other(format!("{} processors, which need {wanted} threads", processors.possible)));
        }
        if let Some(threads) = threads.filter(|&threads| threads < wanted) {
            return Err(io::Error::other(format!("threads={threads}, and rings need {wanted}")));
        }
        let spare = Blank::new(1).map_err(|error| io::Error::new(error.kind(), format!("io_uring: {error}")))?;
        Ok(Self { processors, limit: threads.unwrap_or_else(|| default_limit().max(wanted)), spare })
    }

    /// Starts the threads on a connection whose `INIT` asked for rings.
    ///
    /// # Errors
    /// Threads or rings cannot be made; the kernel was told to use the device. `NOTCONN`, `CONNABORTED` if the mount is gone.
    pub(in crate::fuse) fn start(self, server: &Arc<Server>, session: &OwnedFd, ttl: Ttl) -> io::Result<Arc<Rings>> {
        let Self { processors, limit, spare } = self;
        Rings::start(&processors, limit, server, session, ttl).inspect_err(|_| {
            // All requests would wait for rings otherwise.
            if let Err(refusal) = spare.on(session.as_fd()).refuse() {
                tracing::debug!(error = %refusal, "rings are not refused");
            }
        })
    }
}

impl Rings {
    fn start(
        processors: &Processors,
        limit: usize,
        server: &Arc<Server>,
        session: &OwnedFd,
        ttl: Ttl,
    ) -> io::Result<Arc<Self>> {
        let rings = Arc::new(Self {
            server: Arc::clone(server),
            session: session.try_clone()?,
            ttl,
            queues: (0..=processors.possible).map(|_| Queue::default()).collect(),
            limit,
            hired: AtomicUsize::new(0),
            reader: Activity::default(),
            idle_class: IdleClass::new(),
            watching: AtomicBool::new(false),
            foreman: OnceLock::new(),
            is_full: AtomicBool::new(false),
            made: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            ended: eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        rings.hire("fuse-device".to_owned(), Self::read_device)?;
        // One entry for each queue. As long as a queue has none, the kernel uses no rings and they can still be refused;
        // once all queues have one, that is too late.
        let (report, started) = channel();
        for &queue in &processors.online {
            rings.hire_for(queue, Some(report.clone()))?;
        }
        let offline = processors.offline();
        if !offline.is_empty() {
            let report = report.clone();
            rings.hire("fuse-offline".to_owned(), move |rings| rings.attend(&offline, true, Some(report)))?;
        }
        drop(report);
        started.iter().collect::<io::Result<()>>()?;
        for &queue in processors.online.iter().flat_map(|queue| std::iter::repeat_n(queue, THREADS - 1)) {
            rings.add_to(queue);
        }
        let ahead = Arc::clone(&rings.server);
        std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || ahead.overlay.read_ahead())?;
        let watched = Arc::clone(&rings);
        let foreman = std::thread::Builder::new().name("fuse-foreman".to_owned()).spawn(move || watched.watch())?;
        rings.foreman.get_or_init(|| foreman.thread().clone());
        Ok(rings)
    }

    /// Starts a thread.
    fn hire(self: &Arc<Self>, name: String, work: impl FnOnce(&Arc<Self>) + Send + 'static) -> io::Result<()> {
        self.hired.fetch_add(1, Ordering::SeqCst);
        let rings = Arc::clone(self);
        let run = move || {
            work(&rings);
            rings.leave();
        };
        match std::thread::Builder::new().name(name).spawn(run) {
            Ok(_detached) => Ok(()),
            Err(error) => {
                self.hired.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Starts a thread for `queue`, on its processor.
    fn hire_for(self: &Arc<Self>, queue: u16, report: Option<Sender<io::Result<()>>>) -> io::Result<()> {
        if let Some(queue) = self.queues.get(usize::from(queue)) {
            queue.threads.fetch_add(1, Ordering::SeqCst);
        }
        self.hire(format!("fuse-{queue}"), move |rings| {
            stay_on(queue);
            rings.attend(&[queue], false, report);
        })
    }

    fn leave(&self) {
        self.server.overlay.announce_end();
        if self.hired.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_foreman();
            self.announce_end();
        }
    }

    fn announce_end(&self) {
        if let Err(error) = rustix::io::write(&self.ended, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the end of the mount cannot be announced");
        }
    }

    /// Answers the requests that do not come through rings.
    fn read_device(self: &Arc<Self>) {
        let device = match self.session.try_clone() {
            Ok(device) => device,
            Err(error) => {
                tracing::error!(%error, "cannot read requests");
                return self.announce_end();
            }
        };
        let mut channel = Channel::new(device, self.ttl);
        let slot = self.slot();
        loop {
            self.reader.begin_to_wait();
            let received = channel.receive();
            self.reader.end_to_wait();
            if received == Received::Unmounted || !channel.answer(&self.server, &slot, self.is_stopped()) {
                return;
            }
        }
    }

    fn slot(&self) -> Arc<Slot> {
        let slot = self.server.in_flight.join();
        let own = Arc::clone(&slot);
        interrupt::ask_in_this_thread(move || own.is_wanted());
        slot
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Answers the requests of `queues` until the mount is gone. Reports when it begins. `are_offline` is true if the
    /// processors were offline when the mount was made.
    fn attend(self: &Arc<Self>, queues: &[u16], are_offline: bool, report: Option<Sender<io::Result<()>>>) {
        let registered = self.register(queues);
        let (mut ring, outcome) = match registered {
            Ok(ring) => (Some(ring), Ok(())),
            Err(error) => (None, Err(error)),
        };
        match (report, outcome) {
            // The receiver is gone if another thread has failed.
            (Some(report), outcome) => report.send(outcome).unwrap_or(()),
            (None, Err(error)) => self.give_up_adding(&error),
            (None, Ok(())) => self.make_a_request(),
        }
        if let Some(ring) = &mut ring
            && let Err(error) = self.answer_all(ring, queues, are_offline)
            && !is_gone(&error)
        {
            tracing::error!(%error, ?queues, "a ring broke");
            self.announce_end();
        }
    }

    fn register(&self, queues: &[u16]) -> io::Result<Ring<'_>> {
        let mut ring = Blank::new(queues.len())?.on(self.session.as_fd());
        for &queue in queues {
            ring.register(queue, PAYLOAD)?;
        }
        Ok(ring)
    }

    /// Has the kernel put a request into this processor's queue, if there is a file that it knows.
    ///
    /// A new entry gets none of the requests that already wait in the queue (`fuse_uring_do_register()`): only an answer fetches
    /// one. So this makes a request that can be answered. Without it, they would wait for the next request of this processor.
    fn make_a_request(&self) {
        let file = NodeId(self.server.opened.load(Ordering::Relaxed));
        if file.0 == 0 {
            return;
        }
        let unique = MADE + 2 * self.made.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = rustix::io::write(&self.session, &retrieve_nothing(unique, file)) {
            tracing::debug!(%error, "a new thread waits for the next request");
        }
    }

    /// The index in [`Self::queues`] under which a thread for `queues` counts.
    fn counted(&self, queues: &[u16], are_offline: bool) -> Option<&Queue> {
        match queues.first() {
            Some(&queue) if !are_offline => self.queues.get(usize::from(queue)),
            _ => self.queues.last(),
        }
    }

    fn answer_all(&self, ring: &mut Ring<'_>, queues: &[u16], are_offline: bool) -> io::Result<()> {
        let Some(counted) = self.counted(queues, are_offline) else { return Ok(()) };
        let slot = self.slot();
        let mut aside = vec![0; ASIDE].into_boxed_slice();
        let mut candidacy = self.idle_class.candidacy();
        loop {
            counted.activity.begin_to_wait();
            let arrived = ring.next_request();
            let others = counted.activity.end_to_wait();
            let entry = arrived?;
            if let (true, Some(queue)) = (are_offline, ring.queue(entry)) {
                self.want_threads(queue);
            }
            if others == 0 {
                self.wake_foreman();
            }
            let Some(request) = ring.request(entry) else { continue };
            let answer = self.answer(&slot, request, &mut aside);
            ring.answer(entry, answer.unique, answer.error, answer.length)?;
            if candidacy.answered() && !are_offline && candidacy.join() {
                self.wake_foreman();
            }
        }
    }

    /// Answers one request. Afterwards, the request's payload holds that of the answer.
    fn answer(&self, slot: &Slot, request: Request<'_>, aside: &mut [u8]) -> Answer {
        let Request { header, structure, unique, length, payload } = request;
        let outcome = match aside.get_mut(..length) {
            Some(aside) => {
                aside.copy_from_slice(payload.get(..length).unwrap_or_default());
                self.serve(slot, Message::parts(header, structure, aside), payload)
            }
            None => {
                let asked = payload.get(..length).unwrap_or_default();
                let outcome = self.serve(slot, Message::parts(header, structure, asked), aside);
                if let Outcome::Reply(Answer { length, .. }) = outcome
                    && let (Some(to), Some(from)) = (payload.get_mut(..length), aside.get(..length))
                {
                    to.copy_from_slice(from);
                }
                outcome
            }
        };
        match outcome {
            Outcome::Reply(answer) | Outcome::Goodbye(answer) => answer,
            // Every entry must be answered. If an answer was needed, the kernel turns an empty one into an error.
            Outcome::Silent => Answer { unique, error: 0, length: 0 },
        }
    }

    fn serve(&self, slot: &Slot, message: crate::fuse::serve::Decoded<'_>, room: &mut [u8]) -> Outcome {
        if self.is_stopped() {
            self.server.decline(message)
        } else {
            self.server.answer(slot, message, &mut Reply::new(room, self.ttl))
        }
    }

    /// Notes that a request came from a queue without threads of its own.
    fn want_threads(&self, queue: u16) {
        if let Some(queue) = self.queues.get(usize::from(queue)) {
            queue.is_wanting.store(true, Ordering::SeqCst);
            self.wake_foreman();
        }
    }

    /// Main function of the foreman: sleeps until all threads of a queue are busy, then checks whether they make progress.
    fn watch(self: Arc<Self>) {
        let mut quiet = 0;
        loop {
            if quiet >= QUIET {
                self.watching.store(false, Ordering::SeqCst);
                std::thread::park();
                quiet = 0;
            }
            let before: Vec<Moment> = self.queues.iter().map(|queue| queue.activity.now()).collect();
            std::thread::sleep(STUCK);
            if self.hired.load(Ordering::SeqCst) == 0 {
                return;
            }
            quiet = if self.idle_class.review() { 0 } else { quiet + 1 };
            for (number, (queue, before)) in (0..).zip(self.queues.iter().zip(before)) {
                let threads = queue.threads.load(Ordering::SeqCst);
                let is_new = queue.is_wanting.swap(false, Ordering::SeqCst) && threads == 0;
                // The last queue stands for several processors, and gets no further threads.
                let is_stuck = threads > 0 && queue.activity.now().is_stuck_since(before);
                let added = if is_new { THREADS } else { usize::from(is_stuck) };
                for _ in 0..added {
                    quiet = 0;
                    self.add_to(number);
                }
            }
        }
    }

    fn add_to(self: &Arc<Self>, queue: u16) {
        if self.hired.load(Ordering::SeqCst) < self.limit
            && !self.is_full.load(Ordering::Relaxed)
            && let Err(error) = self.hire_for(queue, None)
        {
            self.give_up_adding(&error);
        }
    }

    /// Threads or locked memory have run out: the existing threads must do.
    fn give_up_adding(&self, error: &io::Error) {
        if !self.is_full.swap(true, Ordering::Relaxed) && !is_gone(error) {
            tracing::debug!(%error, "no thread can be added");
        }
    }

    fn wake_foreman(&self) {
        if !self.watching.swap(true, Ordering::SeqCst)
            && let Some(foreman) = self.foreman.get()
        {
            foreman.unpark();
        }
    }
}

/// True if the error means that the mount is gone.
pub(in crate::fuse) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV | Errno::CANCELED))
}

impl Transport for Rings {
    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn stop(&self, patience: Duration) {
        self.stopped.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        let waiting = |activity: &Activity| activity.now().waiting();
        let idle = || waiting(&self.reader) + self.queues.iter().map(|queue| waiting(&queue.activity)).sum::<usize>();
        while idle() < self.hired.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::sleep(STUCK);
        }
    }
}
