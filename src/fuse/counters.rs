//! How many requests of each kind there were. `SIGUSR1` shows them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::opcode;

/// One counter a request number.
pub(super) struct Counters([AtomicU64; opcode::COUNT]);

impl Counters {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; opcode::COUNT])
    }

    pub(super) fn count(&self, opcode: u32) {
        if let Some(counter) = usize::try_from(opcode).ok().and_then(|opcode| self.0.get(opcode)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `NAME=COUNT` of each kind that occurred.
    pub(super) fn summary(&self) -> String {
        let mut summary = String::new();
        for (number, counter) in (0..).zip(&self.0) {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                if !summary.is_empty() {
                    summary.push(' ');
                }
                summary.push_str(opcode::name(number));
                summary.push('=');
                summary.push_str(&count.to_string());
            }
        }
        summary
    }
}
