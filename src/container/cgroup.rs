//! Control groups of a running container (cgroups(7)): finds out whether its processes are frozen, and whether memory ran out.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::confined::mountinfo;

/// The directory of a process' group; with version 1, that of this controller.
pub(super) fn directory(pid: Pid, controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
    let table = fs::read(mountinfo::OWN).ok()?;
    let mounts: Vec<PathBuf> =
        mountinfo::parse(&table).filter(|mount| mount.kind.starts_with(b"cgroup")).map(|mount| mount.point).collect();
    let has = |controllers: &str| controllers.split(',').any(|name| name == controller);
    let fields = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1).map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    };
    let lines: Vec<(String, String)> = groups.lines().filter_map(fields).collect();
    // With version 1, each hierarchy is mounted at a directory with its controllers' names.
    let of_controller = lines.iter().find(|(controllers, _)| has(controllers));
    let found = of_controller.or_else(|| lines.iter().find(|(controllers, _)| controllers.is_empty()))?;
    let below = found.1.trim_start_matches('/');
    let fits = |mount: &&PathBuf| {
        let name = mount.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if found.0.is_empty() { mount.join("cgroup.controllers").exists() } else { has(name) }
    };
    mounts.iter().find(fits).map(|mount| mount.join(below)).filter(|dir| dir.is_dir())
}

/// True if the processes of this one's group are frozen.
pub(super) fn is_frozen(pid: Pid) -> bool {
    directory(pid, "freezer").is_some_and(|dir| {
        let says = |file: &str, text: &str| fs::read_to_string(dir.join(file)).is_ok_and(|read| read.contains(text));
        says("freezer.state", "FROZEN") || says("cgroup.events", "frozen 1")
    })
}

/// True if the kernel killed a process in a group for lack of memory. `group` is [`directory`] for `memory`.
pub(super) fn ran_out_of_memory(group: &Path) -> bool {
    let killed = |line: &str| {
        let count = line.strip_prefix("oom_kill ")?;
        count.trim().parse::<u64>().ok().filter(|count| *count > 0)
    };
    let any = |file: &str| {
        fs::read_to_string(group.join(file)).is_ok_and(|text| text.lines().any(|line| killed(line).is_some()))
    };
    any("memory.oom_control") || any("memory.events")
}
