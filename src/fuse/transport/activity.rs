//! Number of threads that wait for a request, and whether they make progress.

use std::sync::atomic::{AtomicU64, Ordering};

/// The threads count, the foreman looks.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicU64);

/// The count at one moment: the number of waiting threads (low 16 bits), and how often a thread has begun to wait (the
/// rest, wrapping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(u64);

const BEGIN_TO_WAIT: u64 = (1 << 16) + 1;

impl Activity {
    pub(super) fn now(&self) -> Moment {
        Moment(self.0.load(Ordering::SeqCst))
    }

    /// Notes that a thread begins to wait. Returns how many waited before.
    pub(super) fn begin_to_wait(&self) -> usize {
        Moment(self.0.fetch_add(BEGIN_TO_WAIT, Ordering::SeqCst)).waiting()
    }

    /// Notes that a thread stops waiting. Returns how many still wait.
    pub(super) fn end_to_wait(&self) -> usize {
        Moment(self.0.fetch_sub(1, Ordering::SeqCst).wrapping_sub(1)).waiting()
    }
}

impl Moment {
    pub(super) fn waiting(self) -> usize {
        usize::from(self.0 as u16)
    }

    /// True if no thread waits and none has begun to wait since `before`.
    pub(super) fn is_stuck_since(self, before: Self) -> bool {
        self.waiting() == 0 && self == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_work_for_long_are_stuck() {
        let activity = Activity::default();
        assert_eq!((activity.begin_to_wait(), activity.begin_to_wait()), (0, 1));
        assert_eq!(activity.end_to_wait(), 1);
        let one_waits = activity.now();
        assert!(!activity.now().is_stuck_since(one_waits));
        assert_eq!(activity.end_to_wait(), 0);
        let none_waits = activity.now();
        assert!(activity.now().is_stuck_since(none_waits));
        activity.begin_to_wait();
        activity.end_to_wait();
        assert!(!activity.now().is_stuck_since(none_waits), "a request was finished meanwhile");
    }
}
