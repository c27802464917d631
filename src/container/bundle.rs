//! What an OCI runtime is told: `config.json` of a bundle (OCI runtime specification 1.0, config.md and
//! config-linux.md). Capabilities, masked and read-only paths are docker's defaults (moby, `oci/defaults.go`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::Port;
use super::paths::clean;
use super::users::Identity;
use crate::image::config::Process;
use crate::sys::environment::given;

/// What docker leaves to root in a container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The network of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// One of its own with nothing but `lo`.
    None,
    /// One of its own that pasta joins with the host's.
    Pasta,
}

/// A directory or file of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// It cannot be changed there.
    pub read_only: bool,
}

impl Volume {
    /// A file or directory of the host that can be changed.
    pub(super) fn bind(source: PathBuf, destination: PathBuf) -> Self {
        Self { source, destination, read_only: false }
    }
}

impl std::str::FromStr for Volume {
    type Err = crate::image::ImageError;

    /// The last `:/` is between source and destination, so that a source may have colons in its name.
    fn from_str(text: &str) -> crate::image::Result<Self> {
        let bad = |reason: &str| crate::image::ImageError::malformed(text, reason);
        let form = "a volume reads SOURCE:DESTINATION[:ro], with an absolute destination";
        let at = text.rfind(":/").ok_or_else(|| bad(form))?;
        let (source, rest) = (&text[..at], &text[at + 1..]);
        let (destination, options) = rest.split_once(':').unwrap_or((rest, "rw"));
        let mut read_only = false;
        for option in options.split(',') {
            match option {
                "ro" => read_only = true,
                "rw" | "z" | "Z" => {}
                _ => return Err(bad("the options of a volume are ro and rw")),
            }
        }
        if source.is_empty() {
            return Err(bad(form));
        }
        let destination = clean(Path::new(destination));
        if destination == Path::new("/") {
            return Err(bad("a volume cannot be the whole file system of a container"));
        }
        let source = std::path::absolute(source).map_err(|error| bad(&error.to_string()))?;
        Ok(Self { source, destination, read_only })
    }
}

/// What the user asks of a run, beside what the image says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunOptions {
    /// The command, or arguments of the entry point.
    pub command: Vec<String>,
    /// Instead of the image's entry point; empty text: none.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, or `NAME` to pass the caller's.
    pub env: Vec<String>,
    /// Where it starts.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// What of the host it sees.
    pub volumes: Vec<Volume>,
    /// Its host name; none: the container's name.
    pub hostname: Option<String>,
    /// Its network.
    pub network: Network,
    /// Ports of the host that lead into it.
    pub ports: Vec<Port>,
    /// A port of the host leads to each port that the image, or `expose`, names.
    pub publish_all: bool,
    /// Ports that it listens on, beside those that the image names.
    pub expose: Vec<String>,
    /// Addresses of name servers, instead of the host's.
    pub dns: Vec<String>,
    /// Domains in which names are looked for, instead of the host's; `.`: none.
    pub dns_search: Vec<String>,
    /// Options for resolv.conf, instead of the host's.
    pub dns_options: Vec<String>,
    /// `NAME:ADDRESS`, for its `/etc/hosts`.
    pub add_hosts: Vec<String>,
    /// It has a terminal.
    pub terminal: bool,
    /// Its standard input is open.
    pub interactive: bool,
    /// `NAME` and value, for whoever looks for it by them.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to end, instead of the image's: a name or a number.
    pub stop_signal: Option<String>,
    /// Seconds that it may take to end when it is asked to; none: 10.
    pub stop_timeout: Option<u32>,
    /// It cannot change its root file system.
    pub read_only: bool,
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Number of processes.
    pub pids: Option<i64>,
}

impl RunOptions {
    /// The words to run: docker's rules for entry point and command.
    ///
    /// An image's command of one empty word is none.
    pub fn words(&self, image: &Process) -> Vec<String> {
        let (entrypoint, default) = match &self.entrypoint {
            Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
            Some(program) => (vec![program.clone()], Vec::new()),
            None => (named(&image.entrypoint), named(&image.cmd)),
        };
        let command = if self.command.is_empty() { default } else { self.command.clone() };
        entrypoint.into_iter().chain(command).collect()
    }

    fn environment(&self, image: &Process, identity: &Identity, hostname: &str) -> Vec<String> {
        let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={}", identity.home)];
        if self.terminal {
            env.push("TERM=xterm".to_owned());
        }
        image.env.iter().cloned().chain(self.assignments()).for_each(|assignment| assign(&mut env, assignment));
        env
    }

    /// Puts the caller's values in the place of variables without one, so that a later start by another caller finds the
    /// same.
    pub fn settle_environment(&mut self) {
        self.env = self.assignments().collect();
    }

    /// The user's variables; a name alone passes the caller's on, if it has one.
    fn assignments(&self) -> impl Iterator<Item = String> {
        self.env.iter().filter_map(|assignment| match assignment.contains('=') {
            true => Some(assignment.clone()),
            false => given(assignment).map(|value| format!("{assignment}={value}")),
        })
    }
}

fn named(words: &[String]) -> Vec<String> {
    if words == [""] { Vec::new() } else { words.to_vec() }
}

/// Sets a variable; what comes later wins.
fn assign(env: &mut Vec<String>, assignment: String) {
    let name = assignment.split('=').next().unwrap_or_default();
    env.retain(|present| present.split('=').next() != Some(name));
    env.push(assignment);
}

/// The configuration of one more process: the first one's, but for what the options say.
pub(super) fn further_process(first: &Value, options: &RunOptions, identity: Option<&Identity>) -> Value {
    let mut process = first.clone();
    process["terminal"] = json!(options.terminal);
    process["args"] = json!(options.command);
    if let Some(dir) = &options.working_dir {
        process["cwd"] = json!(dir);
    }
    let strings =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut env: Vec<String> = strings(&first["env"]);
    if options.terminal {
        assign(&mut env, "TERM=xterm".to_owned());
    }
    if let Some(identity) = identity {
        assign(&mut env, format!("HOME={}", identity.home));
        process["user"] = user(identity);
        process["capabilities"] = capabilities(identity);
    }
    options.assignments().for_each(|assignment| assign(&mut env, assignment));
    process["env"] = json!(env);
    process
}

fn user(identity: &Identity) -> Value {
    json!({"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.additional_gids})
}

/// Root's; others may gain them by programs that have them.
fn capabilities(identity: &Identity) -> Value {
    let held: &[&str] = if identity.uid == 0 { &CAPABILITIES } else { &[] };
    json!({"bounding": CAPABILITIES, "effective": held, "permitted": held})
}

/// What stands behind a container when its configuration is written.
pub(super) struct Setting<'a> {
    pub(super) name: &'a str,
    pub(super) root: &'a Path,
    pub(super) cgroup: &'a str,
    pub(super) image: &'a Process,
    pub(super) identity: &'a Identity,
    /// What is mounted beside the user's volumes: the host's network set-up, the image's own volumes.
    pub(super) volumes: &'a [Volume],
}

/// The runtime's configuration.
pub(super) fn configuration(options: &RunOptions, setting: &Setting<'_>) -> Value {
    let hostname = options.hostname.as_deref().unwrap_or(setting.name);
    let identity = setting.identity;
    let working_dir = options.working_dir.as_deref().unwrap_or(&setting.image.working_dir);
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    if options.network != Network::Host {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": user(identity),
            "args": options.words(setting.image),
            "env": options.environment(setting.image, identity, hostname),
            "cwd": if working_dir.is_empty() { "/" } else { working_dir },
            "capabilities": capabilities(identity),
            "noNewPrivileges": false,
        },
        "root": {"path": setting.root, "readonly": options.read_only},
        "hostname": hostname,
        "mounts": mounts(options, setting),
        "linux": {
            "resources": resources(options),
            "cgroupsPath": setting.cgroup,
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts(options: &RunOptions, setting: &Setting<'_>) -> Vec<Value> {
    let file_system = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        file_system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        file_system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        file_system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        file_system("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        file_system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        file_system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        file_system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    // A directory's mount comes before those in it, whoever wants them.
    let mut volumes: Vec<&Volume> = setting.volumes.iter().chain(&options.volumes).collect();
    volumes.sort_by_key(|volume| volume.destination.components().count());
    for volume in volumes {
        let access = if volume.read_only { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": volume.destination, "type": "bind", "source": volume.source,
            "options": ["rbind", "rprivate", access],
        }));
    }
    mounts
}

fn resources(options: &RunOptions) -> Value {
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(limit) = options.memory {
        resources["memory"] = json!({"limit": limit});
    }
    if let Some(limit) = options.pids {
        resources["pids"] = json!({"limit": limit});
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command() {
        let image = Process { entrypoint: words(&["e"]), cmd: words(&["c", "d"]), ..Process::default() };
        let run = |entrypoint: Option<&str>, command: &[&str]| {
            RunOptions { command: words(command), entrypoint: entrypoint.map(str::to_owned), ..RunOptions::default() }
                .words(&image)
        };
        assert_eq!(run(None, &[]), ["e", "c", "d"]);
        assert_eq!(run(None, &["x"]), ["e", "x"]);
        assert_eq!(run(Some("n"), &[]), ["n"]);
        assert_eq!(run(Some("n"), &["x"]), ["n", "x"]);
        assert_eq!(run(Some(""), &["x"]), ["x"]);
    }

    #[test]
    fn later_assignments_win() {
        let image = Process { env: words(&["PATH=/image", "A=1"]), ..Process::default() };
        let options = RunOptions { env: words(&["A=2", "STRATA_TEST_UNSET_VARIABLE"]), ..RunOptions::default() };
        let identity = Identity { home: "/root".to_owned(), ..Identity::default() };
        assert_eq!(options.environment(&image, &identity, "h"), ["HOSTNAME=h", "HOME=/root", "PATH=/image", "A=2"]);
    }

    #[test]
    fn volumes() {
        let volume: Volume = "/a:/b:ro".parse().expect("volume");
        assert_eq!(volume, Volume { source: "/a".into(), destination: "/b".into(), read_only: true });
        let table = [
            ("/a:b:/c", "/a:b", "/c"),
            ("/a:/b:/c", "/a:/b", "/c"),
            ("/a\\:/c", "/a\\", "/c"),
            ("/a b:/c d", "/a b", "/c d"),
            ("/a:/b/../c//d/", "/a", "/c/d"),
        ];
        for (text, source, destination) in table {
            let volume: Volume = text.parse().expect(text);
            let expected = Volume { source: source.into(), destination: destination.into(), read_only: false };
            assert_eq!(volume, expected, "{text}");
        }
        for bad in ["/a", "/a:b", ":/b", "/a:/b:x", "/a:/", "/a:/.", "/a://", "/a:/b/..", "/a:/:ro"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }
}
