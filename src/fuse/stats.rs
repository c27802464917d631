//! What the mount reports about itself: the attribute [`STATS_XATTR`] of its root, for `strata mounts`.
//!
//! The mount itself is the channel. So a killed process leaves nothing behind, there is no socket to protect, and every client
//! reaches the mount anyway. The attribute is not listed, cannot be set, and is shown only to root and the mounting user. That
//! user can be root in a container, so of the host it tells only the process id, and no layers.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::counters::Counters;
use crate::driver::Overlay;

/// Name of the attribute; its value is a JSON object.
pub const STATS_XATTR: &str = "user.stratafs.stats";

/// Writes the JSON object.
pub(super) fn describe(overlay: &Overlay, counters: &Counters, transport: &str, since: Instant) -> String {
    let (nodes, handles) = overlay.population();
    let requests: Map<String, Value> =
        counters.requests().map(|(name, count)| (name.to_owned(), count.into())).collect();
    let errors: Map<String, Value> = counters.errors().map(|(text, count)| (text, count.into())).collect();
    let pauses = overlay.pauses();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "state": if overlay.is_read_only() { "read-only" } else { "writable" },
        "transport": transport,
        "uptime_seconds": since.elapsed().as_secs(),
        "requests": requests,
        "errors": errors,
        "nodes": nodes,
        "handles": handles,
        "pauses": {"count": pauses.count, "last_us": micros(pauses.last), "longest_us": micros(pauses.longest)},
        "threads": status_field(&status, "Threads:"),
        "memory_kib": status_field(&status, "VmRSS:"),
        "peak_memory_kib": status_field(&status, "VmHWM:"),
        "descriptors": fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
    });
    value.to_string()
}

/// A number in `proc_pid_status(5)`; 0 if it is missing.
fn status_field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_status_file() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nThreads:\t3\n";
        assert_eq!(status_field(status, "VmHWM:"), 2048);
        assert_eq!(status_field(status, "Threads:"), 3);
        assert_eq!(status_field(status, "VmRSS:"), 0);
    }
}
