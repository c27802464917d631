//! Turns the options of `run` and `create` into the options of a run.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use stratafs::container::bundle::{Network, RunOptions, Volume};
use stratafs::container::devices::is_known;
use stratafs::container::limits::Limits;
use stratafs::container::named::NamedVolume;
use stratafs::container::network::Port;
use stratafs::container::privileges::Privileges;
use stratafs::container::rootless;
use stratafs::container::{ChangeLock, Container};
use stratafs::image::config::is_signal;
use stratafs::store::Store;

use super::args::{
    ContainerArgs, DriverArg, LimitArgsOfContainer, NetworkArg, NetworkArgs, PrivilegeArgs, StorageArgs, VolumeArg,
};
use super::output::{parse_size, tell};

/// The options for a run. Named volumes are made, and kept by the locks, which must be held until the container exists. `rootless`: a
/// user without privileges makes the container.
pub fn options_of(
    store: &Store,
    args: &ContainerArgs,
    command: Vec<String>,
    rootless: bool,
) -> Result<(RunOptions, Vec<ChangeLock>)> {
    refuse(args)?;
    let keep_id = kept_ids(&args.privileges, rootless)?;
    let mut options = RunOptions {
        command,
        entrypoint: args.entrypoint.clone(),
        env: environment(&args.env_file, &args.env)?,
        working_dir: args.workdir.clone(),
        user: args.user.clone().or_else(|| keep_id.map(|(uid, gid)| format!("{uid}:{gid}"))),
        keep_id,
        network: network_of(&args.network)?,
        shared: shared(store, args, rootless)?,
        ports: ports_of(&args.network)?,
        publish_all: args.network.publish_all,
        expose: args.network.expose.clone(),
        hostname: args.network.hostname.clone(),
        dns: args.network.dns.clone(),
        dns_search: args.network.dns_search.clone(),
        dns_options: args.network.dns_option.clone(),
        add_hosts: args.network.add_host.clone(),
        terminal: args.tty,
        interactive: args.interactive,
        read_only: args.storage.read_only,
        labels: labels(&assignments("--label-file", &args.label_file, &args.label)?),
        annotations: labels(&args.annotation),
        stop_signal: args.stop_signal.clone(),
        stop_timeout: args.stop_timeout,
        privileges: privileges_of(&args.privileges)?,
        limits: limits_of(&args.limits)?,
        upper_size: upper_size(args)?,
        cgroup_parent: args.limits.cgroup_parent.clone(),
        cgroup_private: args.privileges.cgroupns.as_deref() == Some("private"),
        no_log: args.keep.log_driver.as_deref() == Some("none"),
        devices: devices_of(&args.storage)?,
        tmpfs: args.storage.tmpfs.clone(),
        init: args.privileges.init,
        pid_host: args.privileges.pid.as_deref() == Some("host"),
        ipc_host: args.privileges.ipc.as_deref() == Some("host"),
        uts_host: args.privileges.uts.as_deref() == Some("host"),
        sysctls: sysctls(args),
        groups: args.privileges.group_add.clone(),
        ..RunOptions::default()
    };
    for volume in &args.storage.volume {
        match volume {
            VolumeArg::Given(volume) => options.volumes.push(volume.clone()),
            VolumeArg::Own(destination) => options.anonymous_volumes.push(destination.clone()),
        }
    }
    for words in &args.storage.mount {
        add_mount(&mut options, words)?;
    }
    for word in &args.storage.volumes_from {
        add_volumes_of(store, &mut options, word)?;
    }
    for word in &options.tmpfs {
        if !word.starts_with('/') || word.split(':').next() == Some("/") {
            bail!("--tmpfs {word}: an absolute path, and not the whole file system");
        }
    }
    let mut kept = Vec::new();
    for volume in &mut options.volumes {
        if let Some(name) = &volume.volume {
            let (found, lock) = NamedVolume::hold(store, name)?;
            volume.source = found.mountpoint;
            kept.push(lock);
        }
    }
    options.settle_environment();
    Ok((options, kept))
}

/// `--storage-opt size=BYTES`
fn upper_size(args: &ContainerArgs) -> Result<Option<u64>> {
    let mut size = None;
    for word in &args.storage.storage_opt {
        let bytes = match word.split_once('=') {
            Some(("size", bytes)) => parse_size(bytes),
            _ => bail!("--storage-opt {word}: there is only size=BYTES"),
        };
        let bytes = bytes.map_err(|reason| anyhow!("--storage-opt {word}: {reason}"))?;
        size = Some(u64::try_from(bytes)?);
    }
    if size.is_some() && !matches!(args.driver, DriverArg::Stratafs) {
        bail!("--storage-opt size=: needs --driver stratafs; overlayfs has no limit of its own");
    }
    Ok(size)
}

/// `--sysctl`, and `--domainname`, which is a kernel parameter too.
fn sysctls(args: &ContainerArgs) -> Vec<String> {
    let domain = args.network.domainname.iter().map(|name| format!("kernel.domainname={name}"));
    args.privileges.sysctl.iter().cloned().chain(domain).collect()
}

fn owner_of_volumes(store: &Store, word: &str) -> Result<Container> {
    let name = word.split(':').next().unwrap_or_default();
    Container::open(store, name).map_err(|error| anyhow!("--volumes-from {error}"))
}

/// Keeps the containers of `--volumes-from` from being removed until the container that uses their volumes exists: from then on
/// their removal is refused.
pub fn keep_owners_of_volumes(store: &Store, args: &ContainerArgs) -> Result<Vec<ChangeLock>> {
    let lock = |word: &String| {
        let lock = owner_of_volumes(store, word)?.lock_for_reading();
        lock.map_err(|error| anyhow!("--volumes-from {error}"))
    };
    args.storage.volumes_from.iter().map(lock).collect()
}

/// Adds the volumes of another container (`--volumes-from CONTAINER[:ro]`), except where there is one already.
fn add_volumes_of(store: &Store, options: &mut RunOptions, word: &str) -> Result<()> {
    let read_only = match word.split_once(':') {
        None | Some((_, "rw" | "z" | "Z")) => false,
        Some((_, "ro")) => true,
        Some(_) => bail!("--volumes-from {word}: reads CONTAINER[:ro]"),
    };
    let other = owner_of_volumes(store, word)?;
    let own = other.own_volumes(store).map_err(|error| anyhow!("--volumes-from {error}"))?;
    for volume in other.record.options.volumes.iter().cloned().chain(own) {
        if !options.volumes.iter().any(|known| known.destination == volume.destination) {
            options.volumes.push(Volume { read_only: volume.read_only || read_only, propagation: None, ..volume });
        }
    }
    Ok(())
}

/// Options that are not supported, and what to use instead.
fn refuse(args: &ContainerArgs) -> Result<()> {
    if let Some(reason) = args.foreign.refused() {
        bail!(reason);
    }
    if let Some(dir) = args.workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        bail!("--workdir {dir}: an absolute path is needed");
    }
    if let Some(address) = args.network.dns.iter().find(|address| !is_address(address)) {
        bail!("--dns {address}: not an address");
    }
    if let Some(word) = args.network.add_host.iter().find(|word| !is_host_line(word)) {
        bail!("--add-host {word}: reads NAME:ADDRESS");
    }
    if let Some(port) = args.network.expose.iter().find(|port| !is_port_range(port)) {
        bail!("--expose {port}: reads PORT[-PORT][/tcp|/udp]");
    }
    if let Some(signal) = args.stop_signal.as_ref().filter(|signal| !is_signal(signal)) {
        bail!("--stop-signal {signal}: no such signal");
    }
    if let Some(path) = args.limits.cgroup_parent.as_ref().filter(|path| path.split('/').any(|step| step == "..")) {
        bail!("--cgroup-parent {path}: must not lead upwards");
    }
    if let Some(word) = args.env.iter().find(|word| word.is_empty() || word.starts_with('=')) {
        bail!("--env {word}: reads NAME[=VALUE]");
    }
    if let Some(word) = args.keep.log_opt.first() {
        tell(&format!("strata: --log-opt {word} has no effect: the log is kept whole"));
    }
    args.foreign.without_effect().into_iter().for_each(|told| tell(&format!("strata: {told}")));
    let name = args.name.as_deref().unwrap_or("NAME");
    match args.keep.restart.as_deref() {
        None | Some("no") => {}
        Some(policy) => bail!(
            "--restart {policy}: no daemon of ours restarts containers; systemd does, by a unit with \
             [Service] ExecStart=strata start -a {name}, ExecStop=strata stop {name}, Restart={}",
            if policy.starts_with("on-failure") { "on-failure" } else { "always" }
        ),
    }
    Ok(())
}

/// An address of a name server may name the interface: `fe80::1%eth0`.
fn is_address(text: &str) -> bool {
    text.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`, as docker takes both.
fn is_host_line(word: &str) -> bool {
    let parts = word.split_once([':', '=']);
    parts.is_some_and(|(name, address)| !name.is_empty() && !address.is_empty())
}

fn is_port_range(text: &str) -> bool {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    is_port(first) && is_port(last) && matches!(protocol, "tcp" | "udp")
}

/// The ids that `--userns keep-id` keeps. Root has its own ids anyway.
fn kept_ids(args: &PrivilegeArgs, rootless: bool) -> Result<Option<(u32, u32)>> {
    match args.userns.as_deref() {
        None | Some("host" | "") => Ok(None),
        Some("keep-id") if !rootless => Ok(None),
        Some("keep-id") => match rootless::kept_ids() {
            Some(ids) => Ok(Some(ids)),
            None => bail!("--userns keep-id: needs subordinate ids; strata doctor says how to get them"),
        },
        Some(mode) => bail!(
            "--userns {mode}: not supported; run by a user, root in the container is that user on the host, and all files are \
             that user's; keep-id gives that user the same id in the container"
        ),
    }
}

/// `--device`, and `--gpus` with the names that NVIDIA's tools write for the Container Device Interface.
fn devices_of(args: &StorageArgs) -> Result<Vec<String>> {
    let mut devices = args.device.clone();
    let Some(gpus) = &args.gpus else { return Ok(devices) };
    let quoted = gpus.trim_matches('"');
    let names: Vec<String> = match (quoted.strip_prefix("device="), quoted.parse::<u32>()) {
        (Some(list), _) => list.split(',').map(str::to_owned).collect(),
        (None, Ok(count)) => (0..count).map(|number| number.to_string()).collect(),
        (None, Err(_)) => vec![quoted.to_owned()],
    };
    for name in names {
        let device = format!("nvidia.com/gpu={name}");
        if !is_known(&device) {
            bail!(
                "--gpus {gpus}: no specification in /etc/cdi or /var/run/cdi has such a device; nvidia-ctk cdi generate \
                 --format json --output /etc/cdi/nvidia.json writes one (--device {device} asks for the same)"
            );
        }
        devices.push(device);
    }
    Ok(devices)
}

/// The variables in the files of `--env-file`, then these.
pub fn environment(files: &[PathBuf], words: &[String]) -> Result<Vec<String>> {
    assignments("--env-file", files, words)
}

/// The lines of the files, without comments, then these words.
fn assignments(flag: &str, files: &[PathBuf], words: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("{flag} {}", file.display()))?;
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let name = line.split('=').next().unwrap_or_default();
            if name.is_empty() || name.contains(char::is_whitespace) {
                bail!("{flag} {}: {line:?} is no NAME=VALUE", file.display());
            }
            found.push(line.to_owned());
        }
    }
    found.extend(words.iter().cloned());
    Ok(found)
}

/// The containers whose network or processes it shares.
fn shared(store: &Store, args: &ContainerArgs, rootless: bool) -> Result<BTreeMap<String, String>> {
    let mut shared = BTreeMap::new();
    let network = match &args.network.network {
        Some(NetworkArg::Of(name)) => Some(name.as_str()),
        _ => None,
    };
    let processes = args.privileges.pid.as_deref().and_then(|mode| mode.strip_prefix("container:"));
    for (flag, kind, name) in [("--network", "network", network), ("--pid", "pid", processes)] {
        let Some(name) = name else { continue };
        if rootless {
            bail!(
                "{flag} container:{name}: each container of a user has a user namespace of its own; run them as root"
            );
        }
        let other = Container::open(store, name).map_err(|error| anyhow!("{flag} container:{error}"))?;
        shared.insert(kind.to_owned(), other.id());
    }
    Ok(shared)
}

fn network_of(args: &NetworkArgs) -> Result<Network> {
    let publishes = args.publish_all || !args.publish.is_empty();
    Ok(match &args.network {
        Some(NetworkArg::Of(name)) if publishes => {
            bail!("--network container:{name}: publish the ports (-p) of that container")
        }
        Some(NetworkArg::Host | NetworkArg::Of(_)) => {
            if publishes {
                tell("strata: on the host's network all ports are the host's; -p and -P have no effect");
            }
            Network::Host
        }
        Some(NetworkArg::None) => Network::None,
        Some(NetworkArg::Pasta) => Network::Pasta,
        None if publishes => Network::Pasta,
        None => Network::Host,
    })
}

fn ports_of(args: &NetworkArgs) -> Result<Vec<Port>> {
    let ports: Vec<Vec<Port>> =
        args.publish.iter().map(|text| Port::parse(text).context("--publish")).collect::<Result<_>>()?;
    Ok(ports.concat())
}

/// `NAME=VALUE`, or a bare name.
pub fn labels(words: &[String]) -> BTreeMap<String, String> {
    let pair = |word: &String| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        (name.to_owned(), value.to_owned())
    };
    words.iter().map(pair).collect()
}

fn privileges_of(args: &PrivilegeArgs) -> Result<Privileges> {
    let mut privileges = Privileges {
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        privileged: args.privileged,
        ..Privileges::default()
    };
    args.security_opt.iter().try_for_each(|option| privileges.set(option))?;
    if let Some(file) = privileges.seccomp.as_mut().filter(|file| Path::new(file.as_str()).exists()) {
        *file = std::path::absolute(&*file)?.display().to_string();
    }
    privileges.check()?;
    Ok(privileges)
}

fn limits_of(args: &LimitArgsOfContainer) -> Result<Limits> {
    match (args.memory, args.memory_swap) {
        (None, Some(swap)) if swap >= 0 => bail!("--memory-swap {swap}: needs --memory"),
        (Some(memory), Some(swap)) if (0..memory).contains(&swap) => {
            bail!("--memory-swap {swap}: is memory and swap together; at least as much as --memory ({memory})")
        }
        _ => {}
    }
    if let (Some(memory), Some(reservation)) = (args.memory, args.memory_reservation)
        && reservation > memory
    {
        bail!("--memory-reservation {reservation}: at most as much as --memory ({memory})");
    }
    Ok(Limits {
        memory: args.memory,
        memory_swap: args.memory_swap,
        memory_reservation: args.memory_reservation,
        pids: args.pids_limit,
        cpus: args.cpus,
        cpu_quota: args.cpu_quota,
        cpu_period: args.cpu_period,
        memory_nodes: args.cpuset_mems.clone(),
        block_weight: args.blkio_weight,
        swappiness: args.memory_swappiness,
        no_oom_kill: args.oom_kill_disable,
        cpu_shares: args.cpu_shares,
        cpuset: args.cpuset_cpus.clone(),
        ulimits: args.ulimit.clone(),
        shm_size: args.shm_size,
        oom_score_adj: args.oom_score_adj,
    })
}

/// Parses one `--mount`.
fn add_mount(options: &mut RunOptions, words: &str) -> Result<()> {
    let (mut kind, mut source, mut destination, mut read_only, mut propagation) = ("volume", "", "", false, None);
    let mut memory: Vec<String> = Vec::new();
    for word in words.split(',') {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match (name, value) {
            ("type", value) => kind = value,
            ("source" | "src", value) => source = value,
            ("destination" | "dst" | "target", value) => destination = value,
            ("readonly" | "ro", "" | "true" | "1") => read_only = true,
            ("readonly" | "ro", "false" | "0") => read_only = false,
            ("tmpfs-size", value) => memory.push(format!("size={}", parse_size(value).map_err(anyhow::Error::msg)?)),
            ("tmpfs-mode", value) => memory.push(format!("mode={value}")),
            ("bind-propagation", "rshared" | "shared" | "rslave" | "slave" | "rprivate" | "private") => {
                propagation = Some(value.to_owned());
            }
            // Accepted without effect: there is no other machine here.
            ("consistency" | "volume-nocopy" | "bind-nonrecursive", _) => {}
            _ => bail!("--mount {words}: {word:?} is not known"),
        }
    }
    if !destination.starts_with('/') {
        bail!("--mount {words}: an absolute destination= is needed");
    }
    match kind {
        "tmpfs" => options.tmpfs.push(format!("{destination}:{}", memory.join(","))),
        "volume" if source.is_empty() => options.anonymous_volumes.push(destination.to_owned()),
        "volume" if !source.contains('/') => options.volumes.push(volume(words, source, destination, read_only)?),
        "bind" if !source.is_empty() => {
            let source = std::path::absolute(source)?.display().to_string();
            let volume = volume(words, &source, destination, read_only)?;
            options.volumes.push(Volume { propagation, ..volume });
        }
        _ => bail!("--mount {words}: type=bind with source=, type=volume with a name as source=, or type=tmpfs"),
    }
    Ok(())
}

fn volume(words: &str, source: &str, destination: &str, read_only: bool) -> Result<Volume> {
    Volume::new(source, destination, read_only).map_err(|reason| anyhow::anyhow!("--mount {words}: {reason}"))
}
