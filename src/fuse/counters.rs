//! Counts requests by kind, and failures by error. `SIGUSR1` and `strata mounts` show them.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::wire::opcode::Opcode;

/// Errors have numbers below this. (`MAX_ERRNO` is larger, but programs see none beyond `EHWPOISON`.)
const ERRNOS: usize = 134;

/// One counter for each request number, and one for each errno.
pub(super) struct Counters {
    requests: [AtomicU64; Opcode::COUNT],
    errors: [AtomicU64; ERRNOS],
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { requests: [const { AtomicU64::new(0) }; Opcode::COUNT], errors: [const { AtomicU64::new(0) }; ERRNOS] }
    }

    /// `None` is a request of a newer kernel; those share the counter of a number that stands for no request.
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

    /// Text and count of each error that was returned.
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
