//! Options of `run` and `create`: storage, privileges and limits of a container.

use std::path::PathBuf;

use clap::Args;
use stratafs::container::bundle::Volume;
use stratafs::container::limits::Ulimit;

/// What a container sees.
#[derive(Args)]
#[command(next_help_heading = "What it sees")]
pub struct StorageArgs {
    /// Show it a directory of the host (begins with / or ./) or a named volume; a destination alone is a volume of its own
    #[arg(short, long, value_name = "[SOURCE:]DESTINATION[:ro]", value_parser = parse_volume)]
    pub volume: Vec<VolumeArg>,
    /// The same in words: type=bind|volume|tmpfs,source=...,destination=...[,readonly][,tmpfs-size=...][,tmpfs-mode=...]
    #[arg(long, value_name = "WORDS")]
    pub mount: Vec<String>,
    /// A directory in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// It cannot change its root file system
    #[arg(long)]
    pub read_only: bool,
    /// Show it a device: a path, or a name of the Container Device Interface (vendor.com/class=name)
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// Show it the volumes of another container; `:ro`: read-only
    #[arg(long, value_name = "CONTAINER[:ro]")]
    pub volumes_from: Vec<String>,
    /// `size=BYTES`: how much it may write (needs --driver stratafs)
    #[arg(long, value_name = "NAME=VALUE")]
    pub storage_opt: Vec<String>,
    /// NVIDIA graphics cards that the Container Device Interface knows: all, a number, or device=0,1
    #[arg(long, value_name = "GPUS")]
    pub gpus: Option<String>,
}

/// The value of `-v`.
#[derive(Clone, Debug)]
pub enum VolumeArg {
    /// A directory or file of the host, or a named volume.
    Given(Volume),
    /// A directory that only this container uses.
    Own(String),
}

fn parse_volume(text: &str) -> Result<VolumeArg, String> {
    if text.starts_with('/') && !text.contains(':') {
        return Ok(VolumeArg::Own(text.to_owned()));
    }
    text.parse().map(VolumeArg::Given).map_err(|error: stratafs::image::ImageError| error.to_string())
}

/// Privileges of a container.
#[derive(Args)]
#[command(next_help_heading = "What it may do")]
pub struct PrivilegeArgs {
    /// Give it a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Let it do all that you may: every capability and device, no filter of system calls
    #[arg(long)]
    pub privileged: bool,
    /// no-new-privileges, seccomp=unconfined, seccomp=FILE
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// A small program is its first process, passes signals on and reaps children
    #[arg(long)]
    pub init: bool,
    /// `host`: it sees the host's processes; `container:NAME`: that container's
    #[arg(long, value_name = "MODE", value_parser = parse_pid)]
    pub pid: Option<String>,
    /// `host`: it shares the host's IPC
    #[arg(long, value_name = "MODE", value_parser = ["host", "private", "shareable"])]
    pub ipc: Option<String>,
    /// `host`: it has the host's name
    #[arg(long, value_name = "MODE", value_parser = ["host", "private"])]
    pub uts: Option<String>,
    /// `keep-id`: this user keeps the same id inside [default: host: this user is root inside]
    #[arg(long, value_name = "MODE")]
    pub userns: Option<String>,
    /// `private`: it sees its own control group as the root of all [default: host]
    #[arg(long, value_name = "MODE", value_parser = ["host", "private"])]
    pub cgroupns: Option<String>,
    /// A kernel parameter of its namespaces
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_assignment)]
    pub sysctl: Vec<String>,
    /// A further group, by the image's own names, or a number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
}

fn parse_pid(text: &str) -> Result<String, String> {
    match text {
        "host" | "private" => Ok(text.to_owned()),
        _ if text.strip_prefix("container:").is_some_and(|name| !name.is_empty()) => Ok(text.to_owned()),
        _ => Err("host, private or container:NAME".to_owned()),
    }
}

/// A text with a name before its `=`.
fn parse_assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("reads NAME=VALUE".to_owned()),
    }
}

/// Resource limits of a container.
#[derive(Args)]
#[command(next_help_heading = "What it may use")]
pub struct LimitArgsOfContainer {
    /// Memory: bytes, or with k, m, g
    #[arg(short, long, value_name = "BYTES", value_parser = parse_memory)]
    pub memory: Option<i64>,
    /// Memory and swap together; -1: any
    #[arg(long, value_name = "BYTES", value_parser = parse_swap, allow_negative_numbers = true)]
    pub memory_swap: Option<i64>,
    /// Memory that it keeps when there is little
    #[arg(long, value_name = "BYTES", value_parser = crate::output::parse_size)]
    pub memory_reservation: Option<i64>,
    /// Number of processes; -1: any
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Processors, also parts of one
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    pub cpus: Option<f64>,
    /// Microseconds of processors in each period, instead of --cpus; -1: any
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true, value_parser = parse_quota,
        conflicts_with = "cpus")]
    pub cpu_quota: Option<i64>,
    /// The length of a period [default: 100000]
    #[arg(long, value_name = "MICROSECONDS", conflicts_with = "cpus",
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    pub cpu_period: Option<u64>,
    /// Weight against other containers, 1024 by default
    #[arg(short, long, value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,
    /// The processors that it may run on
    #[arg(long, value_name = "0-2,4", value_parser = parse_set)]
    pub cpuset_cpus: Option<String>,
    /// The memory nodes that it may use
    #[arg(long, value_name = "0-2,4", value_parser = parse_set)]
    pub cpuset_mems: Option<String>,
    /// Weight against other containers for block devices, 10 to 1000
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(10..=1000))]
    pub blkio_weight: Option<u16>,
    /// How willingly the kernel swaps it out, 0 to 100 (only with version 1 of control groups)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(0..=100))]
    pub memory_swappiness: Option<u64>,
    /// The kernel does not end it when its memory runs out (only with version 1 of control groups)
    #[arg(long, requires = "memory")]
    pub oom_kill_disable: bool,
    /// A limit of its processes: nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<Ulimit>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES", value_parser = crate::output::parse_size)]
    pub shm_size: Option<i64>,
    /// How willingly the kernel ends it when memory runs out, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// The control group in which its own is made [default: /]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
}

/// The least memory that a container can start with.
const LEAST_MEMORY: i64 = 6 << 20;

fn parse_memory(text: &str) -> Result<i64, String> {
    match crate::output::parse_size(text)? {
        bytes if bytes < LEAST_MEMORY => Err("at least 6m".to_owned()),
        bytes => Ok(bytes),
    }
}

fn parse_quota(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(quota) if quota == -1 || quota >= 1_000 => Ok(quota),
        Ok(_) => Err("at least 1000, or -1".to_owned()),
        Err(_) => Err("a number of microseconds".to_owned()),
    }
}

/// A list as in cpuset(7): `0-2,4`.
fn parse_set(text: &str) -> Result<String, String> {
    let number = |word: &str| word.parse::<u32>().ok();
    let is_range = |word: &str| match word.split_once('-') {
        Some((first, last)) => number(first).is_some_and(|first| number(last) >= Some(first)),
        None => number(word).is_some(),
    };
    if text.split(',').all(is_range) { Ok(text.to_owned()) } else { Err("a list of numbers, as 0-2,4".to_owned()) }
}

fn parse_swap(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { crate::output::parse_size(text) }
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number of processors, as 1.5".to_owned())?;
    if number.is_finite() && number >= 0.01 { Ok(number) } else { Err("at least 0.01 of a processor".to_owned()) }
}

/// The name of a container, and how it is kept.
#[derive(Args)]
#[command(next_help_heading = "How it is kept")]
pub struct KeepArgs {
    /// Write its id into a file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Remove a container of that name first
    #[arg(long, requires = "name")]
    pub replace: bool,
    /// `no`; others are refused with the systemd unit to write
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// `none`: keep no log of its output
    #[arg(long, value_name = "DRIVER", value_parser = ["json-file", "local", "k8s-file", "none"])]
    pub log_driver: Option<String>,
    /// Accepted without effect: the log is kept whole
    #[arg(long, value_name = "NAME=VALUE", hide = true)]
    pub log_opt: Vec<String>,
}
