//! Answering from the idle class, so that clients stay on their processors.
//!
//! When an answer wakes its client, the scheduler looks for an idle processor (`select_idle_sibling()` in
//! kernel/sched/fair.c). The answering thread's processor is not idle, so the client moves to another one, which first has to
//! wake up; the next request comes from there, and the client moves back with its answer. But a processor that runs nothing
//! except `SCHED_IDLE` threads counts as idle: the client stays, goes on at once, and the answering thread continues when the
//! client waits for its next answer. (A virtual machine without halt polling, untar of 2,000 files through rings: 810 ms and
//! 5,000 moves as `SCHED_OTHER`, 330 ms and 10 moves as `SCHED_IDLE`.)
//!
//! A `SCHED_IDLE` thread hardly runs while other programs keep its processor busy. So a thread is in the class only while it
//! answers many requests. It joins after [`BURST`] requests within [`STUCK`]; every [`STUCK`], the foreman reviews all members
//! and takes those out that have answered fewer than [`FEW`] since. Such a thread cannot join again for some time ([`PAUSE`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use super::STUCK;
use crate::sys::priority::Policy;

/// Requests that a thread must have answered within [`STUCK`] to join.
const BURST: u32 = 16;
/// Requests that a member must answer between two reviews to stay.
const FEW: u32 = 4;
/// Number of bursts that must pass before a thread that was taken out may join again.
const PAUSE: u32 = 8;

/// The members of one mount.
#[derive(Debug)]
pub(super) struct IdleClass {
    /// Policy and processors of threads outside the class. If `None`, threads could not leave the class again, so none
    /// may join.
    ordinary: Option<(Policy, CpuSet)>,
    /// Threads that may join. The lock is held while another thread's policy is changed, so that the thread cannot end
    /// before.
    candidates: Mutex<Vec<Arc<Candidate>>>,
}

/// A thread that may join, as the foreman sees it.
#[derive(Debug)]
struct Candidate {
    thread: Pid,
    is_member: AtomicBool,
    /// True if it was put on one processor, see [`Candidacy::move_to`].
    is_moved: AtomicBool,
    /// Requests since the last review.
    answered: AtomicU32,
}

/// The calling thread's part. Dropping it ends the candidacy.
#[derive(Debug)]
pub(super) struct Candidacy {
    class: Arc<IdleClass>,
    candidate: Arc<Candidate>,
    /// When the current burst began.
    since: Instant,
    /// Requests of the current burst.
    requests: u32,
    /// Bursts that must pass before the thread may join.
    pause: u32,
    was_member: bool,
}

impl IdleClass {
    /// A class without members. Asks the kernel whether threads could leave the class again.
    pub(super) fn new() -> Arc<Self> {
        // The test runs in a separate thread, which stays idle if it cannot leave.
        let probe = std::thread::Builder::new().spawn(|| {
            let before = Policy::of_this_thread().ok().filter(|policy| policy.is_fair())?;
            let processors = sched_getaffinity(None).ok()?;
            let thread = gettid();
            Policy::IDLE.set(thread).and_then(|()| before.set(thread)).ok()?;
            Some((before, processors))
        });
        let ordinary = probe.ok().and_then(|probe| probe.join().ok().flatten());
        if ordinary.is_none() {
            tracing::debug!("requests are answered at ordinary priority: threads may not leave SCHED_IDLE");
        }
        Arc::new(Self { ordinary, candidates: Mutex::default() })
    }

    /// The calling thread may join from now on.
    pub(super) fn candidacy(self: &Arc<Self>) -> Candidacy {
        let candidate = Arc::new(Candidate {
            thread: gettid(),
            is_member: AtomicBool::new(false),
            is_moved: AtomicBool::new(false),
            answered: AtomicU32::new(0),
        });
        self.candidates.lock().push(Arc::clone(&candidate));
        let class = Arc::clone(self);
        Candidacy { class, candidate, since: Instant::now(), requests: 0, pause: 0, was_member: false }
    }

    /// Takes members out that have answered too few requests since the last review. Returns true if members are left, which
    /// need another review.
    pub(super) fn review(&self) -> bool {
        let mut is_needed = false;
        for candidate in self.candidates.lock().iter().filter(|candidate| candidate.is_member.load(Ordering::Relaxed)) {
            if candidate.answered.swap(0, Ordering::Relaxed) >= FEW {
                is_needed = true;
            } else {
                self.put_back(candidate);
            }
        }
        is_needed
    }

    fn put_back(&self, candidate: &Candidate) {
        let Some((policy, processors)) = self.ordinary else { return };
        candidate.is_member.store(false, Ordering::Relaxed);
        let mut done = policy.set(candidate.thread);
        if candidate.is_moved.swap(false, Ordering::Relaxed) {
            done = done.and(sched_setaffinity(Some(candidate.thread), &processors).map_err(Into::into));
        }
        if let Err(error) = done {
            tracing::warn!(%error, "a thread remains at idle priority");
        }
    }
}

impl Candidacy {
    /// Returns true while the thread is in the class.
    pub(super) fn is_member(&self) -> bool {
        self.candidate.is_member.load(Ordering::Relaxed)
    }

    /// Counts a request. Returns true when the thread has answered a burst and may join.
    pub(super) fn answered(&mut self) -> bool {
        if self.is_member() {
            self.candidate.answered.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if std::mem::take(&mut self.was_member) {
            self.pause = PAUSE;
        }
        self.requests += 1;
        if self.requests < BURST || self.class.ordinary.is_none() {
            return false;
        }
        let now = Instant::now();
        let is_burst = now.duration_since(std::mem::replace(&mut self.since, now)) < STUCK;
        self.requests = 0;
        if is_burst && self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        is_burst
    }

    /// Joins. The foreman must begin its reviews then. Returns false if the kernel refuses.
    pub(super) fn join(&mut self) -> bool {
        if let Err(error) = Policy::IDLE.set(self.candidate.thread) {
            tracing::debug!(%error, "a thread stays at ordinary priority");
            return false;
        }
        self.was_member = true;
        // The time until the first review may be short.
        self.candidate.answered.store(FEW, Ordering::Relaxed);
        self.candidate.is_member.store(true, Ordering::Relaxed);
        true
    }

    /// Puts the thread, a member, on `processor` until it leaves the class. Returns false if it may not run there.
    pub(super) fn move_to(&self, processor: usize) -> bool {
        let is_allowed =
            |(_, processors): &(Policy, CpuSet)| processor < CpuSet::MAX_CPU && processors.is_set(processor);
        if !self.class.ordinary.as_ref().is_some_and(is_allowed) {
            return false;
        }
        let mut set = CpuSet::new();
        set.set(processor);
        self.candidate.is_moved.store(true, Ordering::Relaxed);
        sched_setaffinity(None, &set).is_ok()
    }

    /// Leaves the class.
    pub(super) fn leave(&self) {
        self.class.put_back(&self.candidate);
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        self.class.candidates.lock().retain(|other| !Arc::ptr_eq(other, &self.candidate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::of_this_thread().expect("a policy")
    }

    #[test]
    fn members_that_answer_little_are_put_back_and_wait() {
        std::thread::spawn(|| {
            let class = IdleClass::new();
            if class.ordinary.is_none() {
                return;
            }
            let before = policy();
            let mut own = class.candidacy();
            assert!((1..BURST).all(|_| !own.answered()) && !class.review());
            own.since = Instant::now();
            assert!(own.answered() && own.join() && own.is_member());
            assert_eq!(policy(), Policy::IDLE);
            assert!(class.review(), "a new member stays");
            (0..FEW).for_each(|_| assert!(!own.answered()));
            assert!(class.review() && own.is_member());
            let everywhere = sched_getaffinity(None).expect("processors");
            let first = (0..CpuSet::MAX_CPU).find(|&processor| everywhere.is_set(processor)).expect("a processor");
            assert!(own.move_to(first) && !own.move_to(CpuSet::MAX_CPU));
            assert!(!class.review() && !own.is_member());
            assert_eq!((policy(), sched_getaffinity(None).expect("processors")), (before, everywhere));
            for number in 1..=(PAUSE + 1) * BURST {
                own.since = Instant::now();
                assert_eq!(own.answered(), number == (PAUSE + 1) * BURST, "{number}");
            }
            drop(own);
            assert!(class.candidates.lock().is_empty());
        })
        .join()
        .expect("it ends");
    }

    #[test]
    fn slow_requests_are_no_burst() {
        let class = IdleClass::new();
        let mut own = class.candidacy();
        for _ in 0..3 * BURST {
            own.since -= STUCK;
            assert!(!own.answered());
        }
    }
}
