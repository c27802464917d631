//! How many requests of each kind there were, and how many failed with which error. `SIGUSR1` and `strata mounts` show
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::wire::opcode::Opcode;

/// Errors are numbered below this (`MAX_ERRNO` is larger, but none beyond `EHWPOISON` is for programs).
const ERRNOS: usize = 134;

/// One counter a request number, and one an errno.
pub(super) struct Counters {
    requests: [AtomicU64; Opcode::COUNT],
    errors: [AtomicU64; ERRNOS],
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { requests: [const { AtomicU64::new(0) }; Opcode::COUNT], errors: [const { AtomicU64::new(0) }; ERRNOS] }
    }

    /// `None`: a request of a newer kernel, which shares the counter of the number that stands for nothing.
    pub(super) fn count(&self, opcode: Option<Opcode>) {
        if let Some(counter) = self.requests.get(opcode.map_or(0, |opcode| opcode as usize)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_error(&self, errno: Errno) {
        if let Some(counter) = usize::try_from(errno.raw_os_error()).ok().and_then(|errno| self.errors.get(errno)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Name and count of each kind that occurred.
    pub(super) fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = (0..).zip(&self.requests).map(|(number, counter)| (number, counter.load(Ordering::Relaxed)));
        counts
            .filter(|&(_, count)| count > 0)
            .map(|(number, count)| (Opcode::of(number).map_or("other", Opcode::name), count))
    }

    /// Text and count of each error that was told to somebody.
    pub(super) fn errors(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = (0..).zip(&self.errors).map(|(number, counter)| (number, counter.load(Ordering::Relaxed)));
        counts.filter(|&(_, count)| count > 0).map(|(number, count)| {
            let text = std::io::Error::from_raw_os_error(number).to_string();
            (text.split(" (os error").next().unwrap_or_default().to_owned(), count)
        })
    }

    /// `NAME=COUNT` of each kind that occurred.
    pub(super) fn summary(&self) -> String {
        let kinds: Vec<String> = self.requests().map(|(name, count)| format!("{name}={count}")).collect();
        kinds.join(" ")
    }
}
