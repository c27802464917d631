//! How many threads wait for requests.
//!
//! One, while requests come one after the other and are answered quickly: the kernel wakes a sleeping reader for each
//! request, also if another one is awake and about to take it, and on two processors that useless waking costs more
//! than the answer. (20,000 `ls -l` entries: 0.50 s of processor time with two waiting, 0.29 s with one; the client
//! waits half as long.) The others rest on a condition variable, where no request disturbs them.
//!
//! When requests pile up or take long (a cold disk below, a copy-up), all of them wait.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A request that took this long has waited for a disk or for another thread. At 60 µs, which a `CREATE` may take when the
/// host has other work, an `untar` of one process was answered by two threads now and then: 0.75 s, not 0.64 s.
const LONG: Duration = Duration::from_micros(250);
/// What a long request adds to the pressure; it takes as many quick ones to make up for it.
const LONG_WEIGHT: u32 = 12;
/// What a request adds that was waiting already when the last one was done.
const WAITING_WEIGHT: u32 = 2;
/// From this pressure on all threads wait, until it is 0 again.
const ALL_HANDS: u32 = 24;
const MOST: u32 = 64;

/// Decides who waits. Shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Shift {
    /// Grows with requests that wait or take long, shrinks with the others.
    pressure: AtomicU32,
    /// All threads wait.
    all_hands: AtomicBool,
    /// Threads that rest. The lock is held from deciding to rest until resting.
    resting: Mutex<usize>,
    /// As many as `resting`, to look at without the lock.
    resting_now: AtomicUsize,
    wake: Condvar,
    over: AtomicBool,
}

impl Shift {
    /// Takes note of a request: whether it was there `at_once`, and how long it took.
    pub(super) fn note(&self, at_once: bool, took: Duration) {
        let before = self.pressure.load(Ordering::Relaxed);
        let after = match (took >= LONG, at_once) {
            (true, _) => (before + LONG_WEIGHT).min(MOST),
            (false, true) => (before + WAITING_WEIGHT).min(MOST),
            (false, false) => before.saturating_sub(1),
        };
        // Threads may overwrite each other's sums; it is an estimate.
        if after != before {
            self.pressure.store(after, Ordering::Relaxed);
        }
        if after >= ALL_HANDS && !self.all_hands.swap(true, Ordering::Relaxed) {
            self.call_all();
        } else if after == 0 && self.all_hands.load(Ordering::Relaxed) {
            self.all_hands.store(false, Ordering::Relaxed);
        }
    }

    /// True if `waiting` threads are enough.
    pub(super) fn is_manned(&self, waiting: usize) -> bool {
        waiting > 0 && !self.all_hands.load(Ordering::Relaxed) && !self.over.load(Ordering::SeqCst)
    }

    /// Rests until called.
    pub(super) fn rest(&self) {
        let mut resting = self.resting.lock();
        if self.over.load(Ordering::SeqCst) || self.all_hands.load(Ordering::Relaxed) {
            return;
        }
        *resting += 1;
        self.resting_now.store(*resting, Ordering::SeqCst);
        self.wake.wait(&mut resting);
        *resting = resting.saturating_sub(1);
        self.resting_now.store(*resting, Ordering::SeqCst);
    }

    /// Number of threads that rest.
    pub(super) fn resting(&self) -> usize {
        self.resting_now.load(Ordering::SeqCst)
    }

    /// Calls one of those who rest; `false` if there is none.
    pub(super) fn call_one(&self) -> bool {
        let resting = self.resting.lock();
        *resting > 0 && self.wake.notify_one()
    }

    fn call_all(&self) {
        let _resting = self.resting.lock();
        self.wake.notify_all();
    }

    /// Nobody rests any more: the mount is gone.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.call_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(5);

    #[test]
    fn one_waits_while_requests_are_quick_and_all_when_they_are_not() {
        let shift = Shift::default();
        assert!(!shift.is_manned(0), "somebody has to");
        assert!(shift.is_manned(1));
        shift.note(false, LONG);
        assert!(shift.is_manned(1), "one long request is an accident");
        shift.note(false, LONG);
        assert!(!shift.is_manned(1) && !shift.is_manned(5));
        for _ in 0..MOST {
            assert!(!shift.is_manned(1));
            if shift.pressure.load(Ordering::Relaxed) == 1 {
                break;
            }
            shift.note(false, QUICK);
        }
        shift.note(false, QUICK);
        assert!(shift.is_manned(1));
    }

    #[test]
    fn all_wait_when_requests_pile_up() {
        let shift = Shift::default();
        for _ in 0..100 {
            shift.note(true, QUICK);
            shift.note(false, QUICK);
        }
        assert!(!shift.is_manned(1), "every other one had to wait");
        let alternating = Shift::default();
        for _ in 0..100 {
            alternating.note(true, QUICK);
            alternating.note(false, QUICK);
            alternating.note(false, QUICK);
        }
        assert!(alternating.is_manned(1), "two of three had not");
    }

    #[test]
    fn whoever_rests_is_called() {
        let shift = Shift::default();
        assert!(!shift.call_one(), "nobody rests");
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| shift.rest())).collect();
            while shift.resting() < 3 {
                std::thread::yield_now();
            }
            assert!(shift.call_one());
            while shift.resting() > 2 {
                std::thread::yield_now();
            }
            shift.note(false, LONG);
            shift.note(false, LONG);
            while shift.resting() > 0 {
                std::thread::yield_now();
            }
            threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        });
        shift.end();
        shift.rest();
        assert!(!shift.is_manned(1), "nobody rests at the end");
    }
}
