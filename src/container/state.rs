//! The state of a container: whether it runs, since when, and how it ended.

use std::fs;
use std::io::ErrorKind;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::locks::RunLock;
use super::network::Port;
use super::{Container, cgroup};
use crate::image::{IoContext, Result, spec};
use crate::store::replace_file;

/// Identifies a process even after its end: no later process is mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The host's number for it.
    pub pid: i32,
    /// Its start time, in clock ticks since boot (`starttime`, proc_pid_stat(5)).
    start: u64,
    /// `/proc/sys/kernel/random/boot_id`
    boot: String,
}

impl ProcessId {
    /// The process that has this number now; `None` if it has ended.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let (state, start) = stat_of(pid.as_raw_nonzero().get())?;
        (state != 'Z').then(|| Self { pid: pid.as_raw_nonzero().get(), start, boot: boot_id() })
    }

    /// True until the process has ended.
    pub fn is_alive(&self) -> bool {
        let alive = |(state, start)| !matches!(state, 'Z' | 'X') && start == self.start;
        stat_of(self.pid).is_some_and(alive) && boot_id() == self.boot
    }

    /// The number, while the process lives.
    pub fn alive(&self) -> Option<Pid> {
        Pid::from_raw(self.pid).filter(|_| self.is_alive())
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The state and start time of a process.
fn stat_of(pid: i32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The program's name may contain anything; it ends with the last parenthesis.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// The last phase of a container that was recorded by the process that runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It never ran.
    #[default]
    Created,
    /// Its first process was started.
    Running,
    /// Its first process has ended.
    Exited,
}

/// `state.json`: the state of a container. Only the holder of its [`RunLock`] writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// The record's id, in case the record is lost.
    pub id: String,
    /// The last known phase. [`Container::status`] returns the present status.
    pub phase: Phase,
    /// Its first process.
    pub process: Option<ProcessId>,
    /// The process that watches it.
    pub monitor: Option<ProcessId>,
    /// Time of its last start, in RFC 3339.
    pub started: Option<String>,
    /// Time of its last end, in RFC 3339.
    pub finished: Option<String>,
    /// Result of its last run: the program's exit code, or 128 plus the number of the signal that ended it.
    pub exit_code: Option<u8>,
    /// Why the last start failed.
    pub error: Option<String>,
    /// The kernel killed a process in it for lack of memory.
    pub oom_killed: bool,
    /// The process that provides its network (pasta).
    pub network: Option<ProcessId>,
    /// Published ports while it runs, each with its number.
    pub ports: Vec<Port>,
}

/// The present status of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It never ran and is not mounted.
    Created,
    /// It is mounted but does not run.
    Mounted,
    /// Its first process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It ran and has ended.
    Exited,
    /// It ran, but its end was not recorded: the machine or the process that watched it was ended.
    Stopped,
}

impl Status {
    /// docker's word for it; `mounted` and `stopped` are our own.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Mounted => "mounted",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Stopped => "stopped",
        }
    }

    /// True if it has processes.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl Container {
    /// The recorded state.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn state(&self) -> Result<State> {
        let path = self.dir.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => spec::parse(&path.display().to_string(), &bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(self.state_of_version_0_1()),
            Err(error) => Err(error).at(path),
        }
    }

    /// The state of a container that never ran, or that was made by version 0.1, which recorded only the exit code.
    fn state_of_version_0_1(&self) -> State {
        let exit_code = fs::read_to_string(self.dir.join("exit")).ok().and_then(|text| text.trim().parse().ok());
        let phase = if exit_code.is_some() { Phase::Exited } else { Phase::Created };
        State { id: self.record.id.clone(), phase, exit_code, ..State::default() }
    }

    /// Records its state.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn save_state(&self, _lock: &RunLock, state: &State) -> Result<()> {
        let bytes = spec::serialize("state.json", state)?;
        replace_file(&self.dir, &self.dir.join("state.json"), &bytes)
    }

    /// Records the id of a container of version 0.1.
    ///
    /// # Errors
    /// When its record cannot be written.
    pub fn give_id(&mut self) -> Result<()> {
        if self.record.id.is_empty() {
            self.record.id = self.id();
            self.save_record()?;
        }
        Ok(())
    }

    /// The host's numbers of its processes; empty if it does not run.
    ///
    /// # Errors
    /// When the state or the processes cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(first) = self.state()?.process.as_ref().and_then(ProcessId::alive) else { return Ok(Vec::new()) };
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(inside) = namespace(&first.as_raw_nonzero().to_string()) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").at("/proc")?.flatten() {
            if let Some(pid) = entry.file_name().to_str().filter(|pid| namespace(pid).as_ref() == Some(&inside)) {
                found.extend(pid.parse::<i32>());
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Its present status.
    ///
    /// # Errors
    /// When its state or the mount table cannot be read.
    pub fn status(&self) -> Result<Status> {
        self.status_of(&self.state()?)
    }

    /// Its present status, from a state that was already read.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn status_of(&self, state: &State) -> Result<Status> {
        if let Some(pid) = state.process.as_ref().and_then(ProcessId::alive) {
            return Ok(if cgroup::is_frozen(pid) { Status::Paused } else { Status::Running });
        }
        let watched = state.monitor.as_ref().is_some_and(ProcessId::is_alive);
        Ok(match state.phase {
            // Its end is about to be recorded.
            Phase::Running if watched => Status::Running,
            // It is about to be unmounted.
            Phase::Exited if watched => Status::Exited,
            // Its mount may have outlived it.
            Phase::Running => Status::Stopped,
            _ if self.is_alive()? => Status::Mounted,
            Phase::Created => Status::Created,
            Phase::Exited => Status::Exited,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successors() {
        let own = ProcessId::of(rustix::process::getpid()).expect("this process");
        assert!(own.is_alive());
        assert!(!ProcessId { start: own.start + 1, ..own.clone() }.is_alive());
        assert!(!ProcessId { boot: "another".to_owned(), ..own }.is_alive());
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = Pid::from_child(&child);
        let id = ProcessId::of(pid);
        child.wait().expect("its end");
        assert!(id.is_none_or(|id| !id.is_alive()) && ProcessId::of(pid).is_none());
    }
}
