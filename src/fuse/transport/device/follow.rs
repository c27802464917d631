//! Keeping the waiting thread on its client's processor.
//!
//! A request that is answered on the processor where it was made wakes no other processor. `/dev/fuse` does not tell that
//! processor, but `/proc/PID/stat` tells where the process ran last. So while nearly all requests come from one process,
//! the thread that waits for them joins the idle class (see [`IdleClass`]), moves to that process's processor, and looks
//! again from time to time.
//!
//! [`IdleClass`]: crate::fuse::transport::idle_class::IdleClass

use rustix::fs::{Mode, OFlags, open};

/// The thread looks where a process runs after this many requests in a row, ...
const FIRST_LOOK: u32 = 8;
/// ... and again after each further group of this many.
const NEXT_LOOK: u32 = 64;
/// A request of another process than the last adds this to the sum; any other request subtracts 1.
const CHANGE: u32 = 8;
/// From this sum on, the requests are taken to come from several processes.
const CROWD: u32 = 64;

/// The process that the calling thread follows.
#[derive(Debug, Default)]
pub(super) struct Follow {
    process: u32,
    /// Requests of `process` in a row.
    streak: u32,
    /// Grows with changes between processes.
    changes: u32,
}

impl Follow {
    /// Counts a request of `process`; 0: unknown. Returns true if it is time to look where the process is.
    pub(super) fn note(&mut self, process: u32) -> bool {
        if process == self.process {
            self.streak = self.streak.wrapping_add(1);
            self.changes = self.changes.saturating_sub(1);
        } else {
            self.process = process;
            self.streak = 1;
            self.changes = (self.changes + CHANGE).min(2 * CROWD);
        }
        process != 0 && self.streak % NEXT_LOOK == FIRST_LOOK
    }

    /// Returns true while requests come from several processes.
    pub(super) fn is_crowded(&self) -> bool {
        self.changes >= CROWD
    }

    /// The processor that the process runs on, or ran on last.
    pub(super) fn look(&self) -> Option<usize> {
        let stat =
            open(format!("/proc/{}/stat", self.process), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = [0; 1024];
        let length = rustix::io::read(&stat, &mut text).ok()?;
        processor_in(text.get(..length)?)
    }
}

/// The field `processor` of `/proc/PID/stat` (proc_pid_stat(5): the 39th; the second may contain spaces and parentheses).
fn processor_in(stat: &[u8]) -> Option<usize> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    fields.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_of_a_process_is_found() {
        let stat = std::fs::read("/proc/thread-self/stat").expect("/proc is mounted");
        assert!(processor_in(&stat).is_some());
        let made = format!("7 (a) b) S {} 5 0 0\n", ["1"; 35].join(" "));
        assert_eq!(processor_in(made.as_bytes()), Some(5));
        for wrong in [&b""[..], b"7 (a) S 1 2", b"7 (a"] {
            assert_eq!(processor_in(wrong), None);
        }
        let mut follow = Follow { process: std::process::id(), ..Follow::default() };
        assert!(follow.look().is_some());
        follow.process = u32::MAX;
        assert_eq!(follow.look(), None);
    }

    #[test]
    fn one_process_is_followed_and_a_crowd_is_not() {
        let mut follow = Follow::default();
        let looks = (1..=2 * NEXT_LOOK).filter(|_| follow.note(1)).count();
        assert_eq!((looks, follow.is_crowded()), (2, false));
        assert!((0..100).all(|_| !follow.note(0)), "an unknown process is not looked for");
        for process in 0..CROWD {
            follow.note(1 + process % 2);
        }
        assert!(follow.is_crowded());
        for _ in 0..2 * CROWD {
            follow.note(3);
        }
        assert!(!follow.is_crowded());
    }
}
