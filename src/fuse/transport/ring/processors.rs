//! The processors of the machine.

use std::fs;
use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// The processors, by the numbers that the kernel gives to the queues of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Processors {
    /// The number that the machine may ever have: the kernel wants a queue for each.
    pub(super) possible: u16,
    /// Those that are online.
    pub(super) online: Vec<u16>,
}

impl Processors {
    /// # Errors
    /// `/sys` is missing or cannot be parsed.
    pub(super) fn find() -> io::Result<Self> {
        let list = |name: &str| {
            let path = format!("/sys/devices/system/cpu/{name}");
            let text = fs::read_to_string(&path).map_err(|error| io::Error::other(format!("{path}: {error}")))?;
            parse(text.trim()).ok_or_else(|| io::Error::other(format!("{path}: '{}'", text.trim())))
        };
        let possible = list("possible")?.last().map_or(0, |last| last + 1);
        let online = list("online")?.into_iter().filter(|&number| number < possible).collect();
        Ok(Self { possible, online })
    }

    /// Those that are offline.
    pub(super) fn offline(&self) -> Vec<u16> {
        (0..self.possible).filter(|number| !self.online.contains(number)).collect()
    }
}

/// Parses `0-3,8`.
fn parse(list: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        // The highest number stands for no queue.
        if last == u16::MAX {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Pins the calling thread to `processor`. Best effort: this may be forbidden, and processors go offline.
pub(super) fn stay_on(processor: u16) {
    let processor = usize::from(processor);
    if processor >= CpuSet::MAX_CPU {
        return;
    }
    let mut set = CpuSet::new();
    set.set(processor);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::debug!(processor, %error, "a thread is not kept on its processor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel() {
        assert_eq!(parse("0"), Some(vec![0]));
        assert_eq!(parse("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse(""), Some(vec![]));
        for wrong in ["a", "1-", "-1", "0-65535", "70000"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_does_not_run_may_still_come() {
        let processors = Processors { possible: 4, online: vec![0, 2] };
        assert_eq!(processors.offline(), [1, 3]);
        let here = Processors::find().expect("/sys is mounted");
        assert!(!here.online.is_empty() && here.online.len() <= usize::from(here.possible), "{here:?}");
    }
}
