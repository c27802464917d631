//! Stops a container's processes for a moment.

use std::fs;
use std::io::{PipeWriter, Read, Write, pipe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use super::super::Container;
use crate::sys::fork::{Forked, fork};

/// Longest wait until all processes have stopped. A process that waits for a disk stops when the disk answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// The control file of a freezer, what to write to it, and how it shows that all processes are frozen.
struct Freezer {
    control: PathBuf,
    freeze: &'static str,
    thaw: &'static str,
    state: PathBuf,
    frozen: &'static str,
}

impl Freezer {
    /// The freezer of a cgroup, in version 2 or 1 of the hierarchy.
    fn of(cgroup: &str, mounted: &Path) -> Option<Self> {
        let below = |top: &str| mounted.join(top).join(cgroup.trim_start_matches('/'));
        let (two, one) = (below(""), below("freezer"));
        let second = Self {
            control: two.join("cgroup.freeze"),
            freeze: "1",
            thaw: "0",
            state: two.join("cgroup.events"),
            frozen: "frozen 1",
        };
        let first = Self {
            control: one.join("freezer.state"),
            freeze: "FROZEN",
            thaw: "THAWED",
            state: one.join("freezer.state"),
            frozen: "FROZEN",
        };
        [second, first].into_iter().find(|freezer| freezer.control.exists())
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(&self.state).is_ok_and(|text| text.lines().any(|line| line.trim() == self.frozen))
    }
}

/// A container whose processes are frozen until this is dropped. If this process is killed, a second process thaws them.
pub(super) struct Frozen {
    freezer: Freezer,
    guard: Option<(PipeWriter, Pid)>,
}

/// Freezes the processes of a container, if its runtime has put them into a cgroup that this process may freeze.
pub(super) fn freeze(container: &Container) -> Option<Frozen> {
    let document = fs::read(container.dir.join("config.json")).ok()?;
    let document: Value = serde_json::from_slice(&document).ok()?;
    let freezer = Freezer::of(document["linux"]["cgroupsPath"].as_str()?, Path::new("/sys/fs/cgroup"))?;
    // A container that was paused by a user must stay paused.
    if freezer.is_frozen() {
        return None;
    }
    frozen_by(freezer).map_err(|error| tracing::debug!("{}: not frozen: {error}", container.name)).ok()
}

fn frozen_by(freezer: Freezer) -> std::io::Result<Frozen> {
    let (mut ended, end) = pipe()?;
    let child = match fork()? {
        Forked::Child => {
            drop(end);
            // The second process must not be killed together with the terminal's other processes.
            let separate = rustix::process::setsid();
            let mut told = Vec::new();
            let thawed = ended.read_to_end(&mut told);
            let lost = separate.is_err() || thawed.is_err() || told.is_empty();
            let released = !lost || fs::write(&freezer.control, freezer.thaw).is_ok();
            std::process::exit(i32::from(!released));
        }
        Forked::Parent(child) => child,
    };
    drop(ended);
    let frozen = Frozen { guard: Some((end, child)), freezer };
    fs::write(&frozen.freezer.control, frozen.freezer.freeze)?;
    let deadline = Instant::now() + PATIENCE;
    while !frozen.freezer.is_frozen() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(frozen)
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = fs::write(&self.freezer.control, self.freezer.thaw);
        let Some((mut end, child)) = self.guard.take() else { return };
        // If that failed, the second process tries again.
        let told = if thawed.is_ok() { end.write_all(b"!") } else { Ok(()) };
        drop(end);
        let reaped = waitpid(Some(child), WaitOptions::empty());
        if let (Err(error), _) | (_, Err(error)) = (told, reaped.map_err(std::io::Error::from)) {
            tracing::debug!("the process that watches over a frozen container: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freezers_of_both_versions() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        assert!(Freezer::of("/c", dir.path()).is_none());
        make("freezer/c/freezer.state", "FROZEN\n");
        let first = Freezer::of("/c", dir.path()).expect("version 1");
        assert!(first.is_frozen() && first.freeze == "FROZEN");
        make("c/cgroup.freeze", "0\n");
        make("c/cgroup.events", "populated 1\nfrozen 0\n");
        let second = Freezer::of("/c", dir.path()).expect("version 2");
        assert!(!second.is_frozen());
        make("c/cgroup.events", "populated 1\nfrozen 1\n");
        assert!(second.is_frozen());
    }
}
