//! Decides how many threads wait for requests.
//!
//! One thread waits as long as requests come one after the other and are answered quickly. The kernel wakes a sleeping reader for
//! each request, even if another one is awake and about to take it. On two processors, that useless wake-up costs more than the
//! answer. (`ls -l` of 20,000 entries: 0.50 s of processor time with two waiting threads, 0.29 s with one; the client waits half
//! as long.) The other threads rest on a condition variable, where requests do not wake them.
//!
//! When requests pile up or take long (a cold disk, a copy-up), all threads wait.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A request that took this long has waited for a disk or for another thread. With 60 µs, which a `CREATE` may take when
/// the host has other work, one process' `untar` was sometimes answered by two threads: 0.75 s instead of 0.64 s.
const LONG: Duration = Duration::from_micros(250);
/// The pressure added by a long request; as many quick requests make up for it.
const LONG_WEIGHT: u32 = 12;
/// The pressure added by a request that was already waiting when the last one was done.
const WAITING_WEIGHT: u32 = 2;
/// From this pressure on, all threads wait until it is 0 again.
const ALL_HANDS: u32 = 24;
const MOST: u32 = 64;

/// Decides which threads wait. Shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Shift {
    /// Rises with requests that wait or take long, falls with others.
    pressure: AtomicU32,
    /// True if all threads wait.
    all_hands: AtomicBool,
    /// Number of resting threads. The lock is held from the decision to rest until the thread rests.
    resting: Mutex<usize>,
    /// Same as `resting`, readable without the lock.
    resting_now: AtomicUsize,
    wake: Condvar,
    over: AtomicBool,
}

impl Shift {
    /// Notes a request: whether it was there `at_once`, and how long it took.
    pub(super) fn note(&self, at_once: bool, took: Duration) {
        let before = self.pressure.load(Ordering::Relaxed);
        let after = match (took >= LONG, at_once) {
            (true, _) => (before + LONG_WEIGHT).min(MOST),
            (false, true) => (before + WAITING_WEIGHT).min(MOST),
            (false, false) => before.saturating_sub(1),
        };
        // Threads may overwrite each other's sums; they are estimates.
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

    /// Rests until it is called.
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

    /// Number of resting threads.
    pub(super) fn resting(&self) -> usize {
        self.resting_now.load(Ordering::SeqCst)
    }

    /// Calls one resting thread; `false` if there is none.
    pub(super) fn call_one(&self) -> bool {
        let resting = self.resting.lock();
        *resting > 0 && self.wake.notify_one()
    }

    fn call_all(&self) {
        let _resting = self.resting.lock();
        self.wake.notify_all();
    }

    /// Ends all rest, because the mount is gone.
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
        assert!(!shift.is_manned(0), "one thread must wait");
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
        assert!(!shift.call_one(), "no thread rests");
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
        assert!(!shift.is_manned(1), "no thread rests at the end");
    }
}
