//! Writes the configuration for an OCI runtime: `config.json` of a bundle (OCI runtime specification 1.0,
//! config.md and config-linux.md). Masked and read-only paths are docker's defaults (moby,
//! `oci/defaults.go`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limits::Limits;
use super::network::Port;
use super::privileges::{self, Privileges};
use super::users::Identity;
use crate::image::Result;
use crate::image::config::Process;
use crate::sys::environment::given;

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

pub use super::volume::Volume;

/// The network of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's network.
    #[default]
    Host,
    /// A separate network with nothing but `lo`.
    None,
    /// A separate network that pasta connects with the host's.
    Pasta,
}

/// What the user asks for, in addition to the image's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunOptions {
    /// The command, or arguments of the entry point.
    pub command: Vec<String>,
    /// Replaces the image's entry point; the empty text removes it.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, or `NAME` to pass the caller's value.
    pub env: Vec<String>,
    /// The working directory.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Its host name; by default the container's name.
    pub hostname: Option<String>,
    /// Its network.
    pub network: Network,
    /// Containers whose namespaces it shares: `network` or `pid`, and the other container's id.
    pub shared: BTreeMap<String, String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Publish each port that the image or `expose` names.
    pub publish_all: bool,
    /// Ports that it listens on, in addition to the image's.
    pub expose: Vec<String>,
    /// Addresses of name servers, instead of the host's.
    pub dns: Vec<String>,
    /// Domains in which names are searched, instead of the host's; `.` means none.
    pub dns_search: Vec<String>,
    /// Options for resolv.conf, instead of the host's.
    pub dns_options: Vec<String>,
    /// `NAME:ADDRESS`, for its `/etc/hosts`.
    pub add_hosts: Vec<String>,
    /// It has a terminal.
    pub terminal: bool,
    /// Its standard input is open.
    pub interactive: bool,
    /// Labels: name and value. Filters can select by them.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to end, a name or a number, instead of the image's.
    pub stop_signal: Option<String>,
    /// Seconds that it may take to end after that signal; 10 by default.
    pub stop_timeout: Option<u32>,
    /// Its root file system is read-only.
    pub read_only: bool,
    /// Privileges.
    pub privileges: Privileges,
    /// Resource limits.
    pub limits: Limits,
    /// Devices of the host: `PATH[:PATH][:rwm]`, or names of the Container Device Interface.
    pub devices: Vec<String>,
    /// Directories that are kept apart from the upper, like the image's `Volumes`.
    pub anonymous_volumes: Vec<String>,
    /// Directories in memory (tmpfs): `PATH[:OPTIONS]`.
    pub tmpfs: Vec<String>,
    /// The first process is a small program that forwards signals and reaps children.
    pub init: bool,
    /// It sees the host's processes.
    pub pid_host: bool,
    /// It shares the host's System V and POSIX IPC.
    pub ipc_host: bool,
    /// It has the host's name.
    pub uts_host: bool,
    /// It sees its own control group as the root of all.
    pub cgroup_private: bool,
    /// The control group in which its own is made; the root by default.
    pub cgroup_parent: Option<String>,
    /// Its output is not kept.
    pub no_log: bool,
    /// Bytes that its upper may hold.
    pub upper_size: Option<u64>,
    /// Annotations for the OCI runtime.
    pub annotations: BTreeMap<String, String>,
    /// Kernel parameters of its namespaces: `NAME=VALUE`.
    pub sysctls: Vec<String>,
    /// Further groups: numbers, or names in the image.
    pub groups: Vec<String>,
    /// User and group of the user who runs it, which are the same inside (`--userns keep-id`).
    pub keep_id: Option<(u32, u32)>,
}

impl RunOptions {
    /// The words to run, by docker's rules for entry point and command.
    ///
    /// A command in the image that consists of one empty word counts as none.
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

    /// Gives variables without a value the caller's values, so that a later start by another caller uses the same.
    pub fn settle_environment(&mut self) {
        self.env = self.assignments().collect();
    }

    /// The user's variables; a name alone takes the caller's value, if there is one.
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

/// Sets a variable. Later assignments override earlier ones.
fn assign(env: &mut Vec<String>, assignment: String) {
    let name = assignment.split('=').next().unwrap_or_default();
    env.retain(|present| present.split('=').next() != Some(name));
    env.push(assignment);
}

/// The configuration of one more process: that of the first one with the changes in `options`.
///
/// # Errors
/// When the user asks for a capability that does not exist.
pub(super) fn further_process(first: &Value, options: &RunOptions, identity: Option<&Identity>) -> Result<Value> {
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
        process["capabilities"] = narrowed(identity, first["capabilities"]["bounding"].as_array());
    }
    if options.privileges.privileged {
        let id = |name: &str| first["user"][name].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let same = Identity { uid: id("uid"), gid: id("gid"), ..Identity::default() };
        let all = options.privileges.capabilities()?;
        process["capabilities"] = privileges::of_process(identity.unwrap_or(&same), &all);
        process["noNewPrivileges"] = json!(false);
    }
    options.assignments().for_each(|assignment| assign(&mut env, assignment));
    process["env"] = json!(env);
    Ok(process)
}

fn user(identity: &Identity) -> Value {
    json!({"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.additional_gids})
}

/// The capabilities that the first process may gain, for a process of another user.
fn narrowed(identity: &Identity, bounding: Option<&Vec<Value>>) -> Value {
    let names = || bounding.into_iter().flatten().filter_map(Value::as_str);
    let bare: Vec<&str> = names().map(|name| name.trim_start_matches("CAP_")).collect();
    privileges::of_process(identity, &bare)
}

/// What the configuration is written for.
pub(super) struct Setting<'a> {
    pub(super) name: &'a str,
    pub(super) root: &'a Path,
    pub(super) cgroup: &'a str,
    pub(super) image: &'a Process,
    pub(super) identity: &'a Identity,
    /// Namespaces of other containers that it joins: the kind, and the path of each.
    pub(super) joined: &'a [(String, String)],
    /// Mounts in addition to the user's volumes: the host's network files, the image's own volumes.
    pub(super) volumes: &'a [Volume],
}

/// The runtime's configuration.
///
/// # Errors
/// When the user asks for something that does not exist: a capability, a seccomp profile.
pub(super) fn configuration(options: &RunOptions, setting: &Setting<'_>) -> Result<Value> {
    let hostname = options.hostname.as_deref().unwrap_or(setting.name);
    let identity = setting.identity;
    let working_dir = options.working_dir.as_deref().unwrap_or(&setting.image.working_dir);
    let privileges = &options.privileges;
    let mut document = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": user(identity),
            "args": options.words(setting.image),
            "env": options.environment(setting.image, identity, hostname),
            "cwd": if working_dir.is_empty() { "/" } else { working_dir },
            "capabilities": privileges::of_process(identity, &privileges.capabilities()?),
            "noNewPrivileges": privileges.no_new_privileges,
        },
        "root": {"path": setting.root, "readonly": options.read_only},
        "mounts": mounts(options, setting),
        "linux": {
            "resources": resources(options),
            "cgroupsPath": setting.cgroup,
            "namespaces": namespaces(options, setting),
        },
    });
    if !options.limits.ulimits.is_empty() {
        document["process"]["rlimits"] = options.limits.rlimits();
    }
    if let Some(score) = options.limits.oom_score_adj {
        document["process"]["oomScoreAdj"] = json!(score);
    }
    if !options.uts_host {
        document["hostname"] = json!(hostname);
    }
    if !privileges.privileged {
        document["linux"]["maskedPaths"] = json!(MASKED);
        document["linux"]["readonlyPaths"] = json!(READ_ONLY);
    }
    if !options.annotations.is_empty() {
        document["annotations"] = json!(options.annotations);
    }
    if let Some(filter) = privileges.seccomp()? {
        document["linux"]["seccomp"] = filter;
    }
    let sysctls = sysctls(options);
    if sysctls.as_object().is_some_and(|sysctls| !sysctls.is_empty()) {
        document["linux"]["sysctl"] = sysctls;
    }
    Ok(document)
}

fn namespaces(options: &RunOptions, setting: &Setting<'_>) -> Value {
    let own = [
        ("pid", !options.pid_host),
        ("ipc", !options.ipc_host),
        ("uts", !options.uts_host),
        ("mount", true),
        ("cgroup", options.cgroup_private),
        ("network", options.network != Network::Host),
    ];
    let joined = setting.joined.iter().map(|(kind, path)| json!({"type": kind, "path": path}));
    let is_joined = |kind: &str| setting.joined.iter().any(|(joined, _)| joined == kind);
    let own = own.into_iter().filter(|(kind, own)| *own && !is_joined(kind)).map(|(kind, _)| json!({ "type": kind }));
    own.chain(joined).collect()
}

/// Kernel parameters: the user's. In a separate network, any user may also listen on any port, as with docker.
fn sysctls(options: &RunOptions) -> Value {
    const PORTS: &str = "net.ipv4.ip_unprivileged_port_start";
    let mut sysctls = json!({});
    if options.network == Network::Pasta && Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start").exists() {
        sysctls[PORTS] = json!("0");
    }
    for (name, value) in options.sysctls.iter().filter_map(|word| word.split_once('=')) {
        sysctls[name] = json!(value);
    }
    sysctls
}

fn mounts(options: &RunOptions, setting: &Setting<'_>) -> Vec<Value> {
    let file_system = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let privileged = options.privileges.privileged;
    let mut mounts = vec![
        file_system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        file_system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        file_system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        file_system("/sys", "sysfs", &["nosuid", "noexec", "nodev", if privileged { "rw" } else { "ro" }]),
        file_system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        file_system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    if options.ipc_host {
        mounts
            .push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rw"]}));
    } else {
        let size = format!("size={}", options.limits.shm_size.unwrap_or(64 << 20));
        mounts.push(file_system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
    }
    for word in &options.tmpfs {
        let (destination, further) = word.split_once(':').unwrap_or((word, ""));
        let mut words = vec!["nosuid", "nodev"];
        words.extend(further.split(',').filter(|word| !word.is_empty()));
        if !words.iter().any(|word| *word == "exec" || *word == "noexec") {
            words.push("noexec");
        }
        mounts.push(file_system(destination, "tmpfs", &words));
    }
    // A directory is mounted before the directories in it, whichever option names them.
    let mut volumes: Vec<&Volume> = setting.volumes.iter().chain(&options.volumes).collect();
    volumes.sort_by_key(|volume| volume.destination.components().count());
    for volume in volumes {
        let access = if volume.read_only { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": volume.destination, "type": "bind", "source": volume.source,
            "options": ["rbind", volume.propagation.as_deref().unwrap_or("rprivate"), access],
        }));
    }
    mounts
}

fn resources(options: &RunOptions) -> Value {
    let mut resources = options.limits.resources();
    resources["devices"] = json!([{"allow": false, "access": "rwm"}]);
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
}
