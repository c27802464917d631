//! Containers of users without privilege.
//!
//! Such a user is root in its own user namespace. User 0 there is the user itself; 1 and up are its subordinate ids
//! (`/etc/subuid`, `/etc/subgid`), set by `newuidmap` and `newgidmap`. Without either, the namespace has one id only. The driver
//! mounts in a mount namespace that belongs to the user namespace, so every process in it sees the mount. The OCI runtime runs
//! there too. On disk, all files belong to the user. The owner and mode that a container sees are kept in an attribute
//! (`user.containers.override_stat`), so a commit finds them independently of the ids that the next user has.
//!
//! The namespaces exist as long as a process runs in them, at least the driver. They are found by its mount.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde_json::{Value, json};

use super::Container;
use super::mount::is_mountpoint_in;
use super::runtime::in_path;
use crate::image::{ImageError, IoContext, Result};
use crate::sys::fork::{Forked, fork};
use crate::sys::namespace::unshare_user_and_mounts;

/// Names the namespace in messages.
const PLACE: &str = "user namespace";

/// One row of a namespace's map of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    inside: u32,
    outside: u32,
    count: u32,
}

/// True if this process is root, or became root by [`enter`].
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a user without privilege root in a new namespace; returns true if that was necessary.
///
/// # Errors
/// The machine allows no user namespaces, or the user's subordinate ids are unusable.
pub fn enter() -> Result<bool> {
    if is_root() {
        return Ok(false);
    }
    let (users, groups) = own_rows();
    let has_ranges = users.len() > 1 && groups.len() > 1;
    if has_ranges && let Some(program) = missing_program() {
        tracing::warn!("{program} is not installed, so the container has one id only; apt-get install uidmap");
    }
    if has_ranges && missing_program().is_none() {
        enter_with_ranges(&users, &groups)?;
    } else {
        enter_alone(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())?;
    }
    Ok(true)
}

/// The first program that is missing and without which subordinate ids cannot be used.
pub fn missing_program() -> Option<&'static str> {
    ["newuidmap", "newgidmap"].into_iter().find(|program| in_path(program).is_none())
}

/// True if this user has subordinate ids.
pub fn has_ranges() -> bool {
    let (users, groups) = own_rows();
    users.len() > 1 && groups.len() > 1
}

/// The map of this user's ids, and the map of the group ids.
fn own_rows() -> (Vec<Row>, Vec<Row>) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let name = user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    let rows = |table: &str, own: u32| {
        let text = fs::read_to_string(table).unwrap_or_default();
        map(own, &subordinate(&text, name.as_deref(), uid))
    };
    (rows("/etc/subuid", uid), rows("/etc/subgid", gid))
}

fn refused(error: &io::Error) -> ImageError {
    ImageError::refused(PLACE, format!("cannot be made: {error} (see strata doctor)"))
}

/// With one id, which a process may map by itself.
fn enter_alone(uid: u32, gid: u32) -> Result<()> {
    unshare_user_and_mounts().map_err(|error| refused(&error))?;
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        let path = Path::new("/proc/self").join(file);
        fs::write(&path, text).at(&path)?;
    }
    Ok(())
}

/// With ranges. `newuidmap` and `newgidmap` are set-user-id and must be called from outside the namespace, so a
/// child that was forked before calls them.
fn enter_with_ranges(users: &[Row], groups: &[Row]) -> Result<()> {
    let (mut begin, mut start) = io::pipe().at(PLACE)?;
    let (mut answer, mut report) = io::pipe().at(PLACE)?;
    let ourselves = rustix::process::getpid();
    match fork().at(PLACE)? {
        Forked::Child => {
            drop((start, answer));
            let mut started = [0];
            let told = match begin.read_exact(&mut started) {
                Ok(()) => {
                    give_ids("newuidmap", ourselves, users).and_then(|()| give_ids("newgidmap", ourselves, groups))
                }
                // The parent has failed and reports it itself.
                Err(_) => Ok(()),
            };
            let written = told.err().map_or(Ok(()), |error| report.write_all(error.to_string().as_bytes()));
            std::process::exit(i32::from(written.is_err()));
        }
        Forked::Parent(child) => {
            drop((begin, report));
            let entered = unshare_user_and_mounts();
            let mut told = String::new();
            if entered.is_ok() {
                start.write_all(b"!").at(PLACE)?;
                answer.read_to_string(&mut told).at(PLACE)?;
            }
            drop(start);
            waitpid(Some(child), WaitOptions::empty()).at(PLACE)?;
            entered.map_err(|error| refused(&error))?;
            if told.is_empty() { Ok(()) } else { Err(ImageError::refused(PLACE, told)) }
        }
    }
}

fn give_ids(program: &str, process: Pid, rows: &[Row]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg(process.as_raw_nonzero().to_string());
    command.args(rows.iter().flat_map(|row| [row.inside, row.outside, row.count]).map(|number| number.to_string()));
    let output = command.output().map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {told}")))
}

/// The name of a user in `/etc/passwd`.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let entry = passwd.lines().find(|line| line.split(':').nth(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    entry.split(':').next().map(str::to_owned)
}

/// A user's ranges in `/etc/subuid` or `/etc/subgid` (subuid(5)): `NAME-OR-UID:FIRST:COUNT`.
fn subordinate(table: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let of_user = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let ours = Some(owner) == name || owner.parse() == Ok(uid);
        (ours && count > 0).then_some((first, count))
    };
    table.lines().filter_map(of_user).collect()
}

/// The user as 0, followed by its ranges.
fn map(own: u32, ranges: &[(u32, u32)]) -> Vec<Row> {
    let mut rows = vec![Row { inside: 0, outside: own, count: 1 }];
    let mut inside = 1_u32;
    for &(outside, count) in ranges {
        rows.push(Row { inside, outside, count });
        inside = inside.saturating_add(count);
    }
    rows
}

impl Container {
    /// Enters the namespaces in which it is mounted, if it runs without privilege; returns true if there are any.
    ///
    /// # Errors
    /// When they are just ending.
    pub fn join(&self) -> Result<bool> {
        if is_root() {
            return Ok(false);
        }
        let Some(process) = self.holder()? else { return Ok(false) };
        let here = std::env::current_dir();
        let handle = pidfd_open(process, PidfdFlags::empty()).at(PLACE)?;
        let both = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
        move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&handle), both).at(PLACE)?;
        // The kernel has changed our working directory to the root.
        here.and_then(std::env::set_current_dir).at(".")?;
        Ok(true)
    }

    /// Does `work` in the namespaces in which it is mounted, if these are not ours.
    ///
    /// # Errors
    /// Errors of `work`, or no second process can be started to do it.
    pub fn in_its_namespace(
        &self,
        work: impl FnOnce() -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        // A process cannot return from a namespace, so a second one is used.
        if is_root() || self.holder().map_err(|error| told(&error))?.is_none() {
            return work();
        }
        let (mut answer, mut report) = io::pipe().map_err(|error| told(&error))?;
        match fork().map_err(|error| told(&error))? {
            Forked::Child => {
                drop(answer);
                let outcome = self.join().map_err(|error| told(&error)).and_then(|_| work());
                let written = outcome.err().map_or(Ok(()), |error| report.write_all(error.as_bytes()));
                std::process::exit(i32::from(written.is_err()));
            }
            Forked::Parent(child) => {
                drop(report);
                let mut said = String::new();
                answer.read_to_string(&mut said).map_err(|error| told(&error))?;
                waitpid(Some(child), WaitOptions::empty()).map_err(|error| told(&error))?;
                if said.is_empty() { Ok(()) } else { Err(said) }
            }
        }
    }

    /// A process in another namespace that has this container mounted.
    pub(super) fn holder(&self) -> Result<Option<Pid>> {
        let ours = fs::read_link("/proc/self/ns/mnt").at("/proc/self/ns/mnt")?;
        for entry in fs::read_dir("/proc").at("/proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
            else {
                continue;
            };
            // Processes of other users cannot be read, and some may have ended.
            let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
            let Ok(table) = fs::read(entry.path().join("mountinfo")) else { continue };
            if namespace != ours && is_mountpoint_in(&table, &self.record.mountpoint) {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    }
}

/// Removes from an OCI runtime's configuration everything that root in a user namespace may not do.
pub(super) fn adapt(document: &mut Value) {
    let groups = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    let alone = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    adapt_to(document, &groups, alone);
}

fn adapt_to(document: &mut Value, groups: &str, alone: bool) {
    // This user has no cgroup.
    let resources = document["linux"]["resources"].take();
    for limit in ["memory", "pids"] {
        if !resources[limit].is_null() {
            tracing::warn!("the limit of {limit} has no effect without privilege");
        }
    }
    if let Some(linux) = document["linux"].as_object_mut() {
        linux.remove("resources");
        linux.remove("cgroupsPath");
    }
    if alone && let Some(user) = document["process"]["user"].as_object_mut() {
        user.remove("additionalGids");
    }
    let Some(mounts) = document["mounts"].as_array_mut() else { return };
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    for mount in mounts {
        if mount["destination"] == "/sys" {
            // A new sysfs would belong to the network's namespace, which is the host's.
            *mount = json!({"destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        } else if mount["destination"] == "/dev/pts"
            && !is_mapped(groups, 5)
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|option| option != "gid=5");
        }
    }
}

/// The user and group that entered the namespace in which this process is root, if it has other ids too.
pub fn kept_ids() -> Option<(u32, u32)> {
    let outside = |file: &str| {
        let text = fs::read_to_string(file).ok()?;
        let first: Vec<u32> = text.lines().next()?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (text.lines().count() > 1 && first.first() == Some(&0)).then(|| first.get(1).copied())?
    };
    Some((outside("/proc/self/uid_map")?, outside("/proc/self/gid_map")?))
}

/// The ids of a namespace inside this one in which `kept`, which is 0 here, has its own number; those below it are one higher
/// here. `count` ids are mapped here.
fn inner(kept: u32, count: u32) -> Vec<Row> {
    let row = |inside, outside, count| Row { inside, outside, count };
    let below = kept.min(count.saturating_sub(1));
    let above = count.saturating_sub(kept.saturating_add(1));
    let rows = [row(0, 1, below), row(kept, 0, 1), row(kept.saturating_add(1), kept.saturating_add(1), above)];
    rows.into_iter().filter(|row| row.count > 0).collect()
}

/// The number of ids mapped in this namespace, by its `uid_map`.
fn mapped(map: &str) -> u32 {
    let count = |line: &str| line.split_whitespace().nth(2).and_then(|count| count.parse().ok()).unwrap_or(0);
    map.lines().map(count).fold(0, u32::saturating_add)
}

fn inner_rows(kept: u32, file: &str) -> Vec<Row> {
    inner(kept, mapped(&fs::read_to_string(file).unwrap_or_default()))
}

/// Makes the runtime create a user namespace in which the user and group that run the container have their own ids.
pub(super) fn keep_id(document: &mut Value, (uid, gid): (u32, u32)) {
    for (kept, file, key) in [(uid, "/proc/self/uid_map", "uidMappings"), (gid, "/proc/self/gid_map", "gidMappings")] {
        let mapping = |row: &Row| json!({"containerID": row.inside, "hostID": row.outside, "size": row.count});
        document["linux"][key] = inner_rows(kept, file).iter().map(mapping).collect();
    }
    if let Some(namespaces) = document["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "user"}));
    }
}

/// Options with which the driver shows the ids stored for a container as the ids of this namespace.
pub(super) fn mount_options(uid: u32, gid: u32) -> String {
    let option = |name: &str, kept, file| {
        let rows: Vec<String> =
            inner_rows(kept, file).iter().map(|row| format!("{}:{}:{}", row.inside, row.outside, row.count)).collect();
        format!(",{name}={}", rows.join(":"))
    };
    option("uidmapping", uid, "/proc/self/uid_map") + &option("gidmapping", gid, "/proc/self/gid_map")
}

/// True if a namespace has an id, according to its `/proc/PID/uid_map` (user_namespaces(7)).
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
        let (first, count) = (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0));
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_user() {
        let table = "other:1:2\nme:100000:65536\n# x\n1000:200000:10\nme:0:0\nme:x:1\n\nme:300000\n";
        assert_eq!(subordinate(table, Some("me"), 1000), [(100_000, 65536), (200_000, 10)]);
        assert_eq!(subordinate(table, None, 1000), [(200_000, 10)]);
        assert_eq!(subordinate(table, Some("nobody"), 1), []);
        assert_eq!(user_name("root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/:/bin/sh\n", 1000).as_deref(), Some("me"));
        assert_eq!(user_name("root:x:0:0::/root:/bin/sh\nbroken", 7), None);
    }

    #[test]
    fn the_user_is_root_and_its_ranges_follow() {
        let row = |inside, outside, count| Row { inside, outside, count };
        assert_eq!(map(1000, &[]), [row(0, 1000, 1)]);
        assert_eq!(map(1000, &[(7, 10), (99, 5)]), [row(0, 1000, 1), row(1, 7, 10), row(11, 99, 5)]);
    }

    #[test]
    fn an_id_is_kept_and_the_others_make_room() {
        let row = |inside, outside, count| Row { inside, outside, count };
        assert_eq!(inner(1000, 65537), [row(0, 1, 1000), row(1000, 0, 1), row(1001, 1001, 64536)]);
        assert_eq!(inner(65536, 65537), [row(0, 1, 65536), row(65536, 0, 1)]);
        assert_eq!(inner(100_000, 65537), [row(0, 1, 65536), row(100_000, 0, 1)]);
        assert_eq!(mapped("         0       1000          1\n         1     100000      65536\n"), 65537);
    }

    #[test]
    fn mapped_ids() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert!(is_mapped(map, 0) && is_mapped(map, 5) && is_mapped(map, 65536) && !is_mapped(map, 65537));
        assert!(!is_mapped("0 1000 1", 5) && !is_mapped("", 0) && !is_mapped("0 x", 0));
    }

    #[test]
    fn what_a_user_may_not_is_left_out() {
        let document = json!({
            "process": {"user": {"uid": 0, "additionalGids": [7]}},
            "mounts": [
                {"destination": "/sys", "type": "sysfs"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"},
                {"destination": "/dev/pts", "options": ["newinstance", "gid=5"]}, {"destination": "/proc"},
            ],
            "linux": {"resources": {"devices": []}, "cgroupsPath": "/x", "namespaces": []},
        });
        let mut alone = document.clone();
        adapt_to(&mut alone, "0 1000 1", true);
        assert_eq!(alone["linux"], json!({"namespaces": []}));
        assert_eq!(alone["process"], json!({"user": {"uid": 0}}));
        let destinations: Vec<_> =
            alone["mounts"].as_array().expect("mounts").iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(destinations, ["/sys", "/dev/pts", "/proc"]);
        assert_eq!(
            (&alone["mounts"][0]["type"], &alone["mounts"][1]["options"]),
            (&json!("bind"), &json!(["newinstance"]))
        );
        let mut ranges = document;
        adapt_to(&mut ranges, "0 1000 1\n1 100000 65536", false);
        assert_eq!(ranges["process"]["user"]["additionalGids"], json!([7]));
        assert_eq!(ranges["mounts"][1]["options"], json!(["newinstance", "gid=5"]));
    }
}
