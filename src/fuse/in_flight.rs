//! Requests that are being worked on, so that `INTERRUPT` finds them.
//!
//! The kernel sends it when the process that waits for an answer gets a signal. Most signals do not matter: the process
//! goes on waiting, as it does for a system call on a local file system. A killed process, however, ends as soon as its
//! request is answered. So a long copy that only this process waits for is given up (kernel: `ovl_copy_up_file` checks
//! for a pending fatal signal).

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

/// Marks the request of a slot as interrupted. The kernel's request numbers are even (`FUSE_REQ_ID_STEP`).
const INTERRUPTED: u64 = 1;

/// Number of remembered interrupts for requests that no thread has begun yet.
const EARLY: usize = 16;

/// The request that a thread works on.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Its number, possibly with [`INTERRUPTED`]; 0 for none.
    request: AtomicU64,
    /// The process that waits for the answer; 0 if it is not visible here.
    pid: AtomicU32,
}

/// All slots of a mount.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Interrupts take it for reading, new threads for writing, requests never.
    slots: RwLock<Vec<Weak<Slot>>>,
    /// Interrupts of requests that were in no slot: another thread has read the request but not begun it, or has already
    /// answered it. Leaf lock.
    early: Mutex<Vec<u64>>,
    has_early: AtomicBool,
}

impl InFlight {
    /// Returns a slot for a thread that will answer requests.
    pub(super) fn join(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let mut slots = self.slots.write();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    }

    /// Notes that a thread begins to work on a request.
    pub(super) fn begin(&self, slot: &Slot, request: u64, pid: u32) {
        slot.pid.store(pid, Ordering::Relaxed);
        // Stored before `early` is checked: an interrupt either sees the slot or is found there.
        slot.request.store(request, Ordering::SeqCst);
        if self.has_early.load(Ordering::SeqCst) {
            let mut early = self.early.lock();
            if let Some(at) = early.iter().position(|&number| number == request) {
                early.swap_remove(at);
                slot.request.store(request | INTERRUPTED, Ordering::SeqCst);
            }
            self.has_early.store(!early.is_empty(), Ordering::SeqCst);
        }
    }

    /// Notes that the process that waits for `request` received a signal.
    pub(super) fn interrupt(&self, request: u64) {
        if self.mark(request) {
            return;
        }
        {
            let mut early = self.early.lock();
            // The oldest one was answered long ago.
            if early.len() == EARLY {
                early.remove(0);
            }
            early.push(request);
            self.has_early.store(true, Ordering::SeqCst);
        }
        self.mark(request);
    }

    /// False if no thread works on `request`.
    fn mark(&self, request: u64) -> bool {
        let marked = |slot: &Slot| {
            let swapped =
                slot.request.compare_exchange(request, request | INTERRUPTED, Ordering::SeqCst, Ordering::SeqCst);
            swapped.is_ok()
        };
        self.slots.read().iter().filter_map(Weak::upgrade).any(|slot| marked(&slot))
    }
}

impl Slot {
    /// Notes that the request was answered.
    pub(super) fn end(&self) {
        self.request.store(0, Ordering::Release);
    }

    /// False if the process that waits for the answer has been killed.
    pub(super) fn is_wanted(&self) -> bool {
        self.request.load(Ordering::Relaxed) & INTERRUPTED == 0 || !is_killed(self.pid.load(Ordering::Relaxed))
    }
}

/// True if a fatal signal is pending for thread `pid`: the kernel turns every one into SIGKILL
/// (`complete_signal()`).
fn is_killed(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| {
        let pending = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        let set = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
        set & 1 << (libc::SIGKILL - 1) != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_interrupted(slot: &Slot) -> bool {
        slot.request.load(Ordering::SeqCst) & INTERRUPTED != 0
    }

    #[test]
    fn the_thread_that_works_on_the_request_is_found() {
        let in_flight = InFlight::default();
        let slots = [in_flight.join(), in_flight.join()];
        in_flight.begin(&slots[0], 2, 0);
        in_flight.begin(&slots[1], 4, 0);
        in_flight.interrupt(4);
        assert_eq!([0, 1].map(|slot| is_interrupted(&slots[slot])), [false, true]);
        assert!(slots[1].is_wanted(), "a process that cannot be seen is not known to be killed");
        slots[1].end();
        in_flight.begin(&slots[1], 6, 0);
        assert!(!is_interrupted(&slots[1]), "another request");
    }

    #[test]
    fn an_interrupt_may_come_before_its_request() {
        let in_flight = InFlight::default();
        let slot = in_flight.join();
        in_flight.interrupt(8);
        in_flight.begin(&slot, 6, 0);
        assert!(!is_interrupted(&slot));
        in_flight.begin(&slot, 8, 0);
        assert!(is_interrupted(&slot));
        assert!(!in_flight.has_early.load(Ordering::SeqCst));
    }

    #[test]
    fn interrupts_that_came_too_late_are_bounded() {
        let in_flight = InFlight::default();
        for request in 1..100 {
            in_flight.interrupt(request * 2);
        }
        assert_eq!(in_flight.early.lock().len(), EARLY);
        drop(in_flight.join());
        let _slot = in_flight.join();
        assert_eq!(in_flight.slots.read().len(), 1, "threads that ended leave nothing");
    }

    #[test]
    fn only_a_killed_process_is_given_up() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        assert!(!is_killed(child.id()));
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        assert!(!is_killed(0));
    }
}
