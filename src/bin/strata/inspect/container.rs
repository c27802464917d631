//! `inspect` of a container: those fields of `docker container inspect` that have a meaning here.

use anyhow::Result;
use serde_json::{Map, Value, json};
use stratafs::container::Container;
use stratafs::container::bundle::RunOptions;
use stratafs::container::network::Port;
use stratafs::image::time::Timestamp;
use stratafs::store::Store;

use crate::checkpoints;
use crate::ps::{self, Listed};
use crate::seen::{Kind, Seen};

/// The document of a container. With `with_size`, it says how much the container has written.
pub fn describe(store: &Store, container: Container, with_size: bool) -> Result<Value> {
    let listed = Listed::of(store, container);
    let Listed { container, .. } = &listed;
    let (record, bundle) = (&container.record, ps::bundle(container));
    let (program, arguments) = record.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let dir = container.dir();
    let lower: Vec<String> =
        container.layers(store)?.iter().rev().map(|layer| layer.diff().display().to_string()).collect();
    let place = |name: &str| dir.join(name).display().to_string();
    let driver = serde_json::to_value(record.driver)?;
    let mut value = json!({
        "Id": container.id(),
        "Created": record.created,
        "Path": program,
        "Args": arguments,
        "State": state(&listed),
        "Image": record.image,
        "ImageName": record.image_name,
        "Name": container.name(),
        "RestartCount": 0,
        "Driver": driver,
        "Platform": "linux",
        "LogPath": if dir.join("log").exists() { place("log") } else { String::new() },
        "ExecIDs": null,
        "HostConfig": host_config(&listed, &bundle),
        "GraphDriver": {"Name": driver, "Data": {"LowerDir": lower.join(":"), "UpperDir": place("upper"),
            "WorkDir": place("work"), "MergedDir": record.mountpoint.display().to_string()}},
        "Mounts": listed.mount_documents(),
        "Config": config(store, &listed, &bundle),
        "NetworkSettings": {"Ports": ports(store, &listed), "IPAddress": "",
            "Networks": {listed.network(): {"IPAddress": "", "Gateway": "", "MacAddress": "", "Aliases": null}}},
        "Checkpoints": checkpoints::described(&container.checkpoints(store)?),
        "Mounted": container.is_mounted()?,
        "Mountpoint": record.mountpoint.display().to_string(),
        "Dir": dir.display().to_string(),
    });
    if with_size {
        let bytes = ps::written(container);
        let root: u64 = container.layers(store)?.iter().map(|layer| layer.record.content_size).sum();
        value["SizeRw"] = bytes.into();
        value["SizeRootFs"] = (bytes + root).into();
    }
    Ok(value)
}

fn state(Listed { condition, .. }: &Listed) -> Value {
    let time =
        |time: Option<Timestamp>| time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string());
    let is = |state: &str| condition.state == state;
    json!({
        "Status": condition.state,
        "Running": is("running") || is("paused"),
        "Paused": is("paused"),
        "Restarting": false,
        "OOMKilled": condition.oom_killed,
        "Dead": false,
        "Pid": condition.pid,
        "ExitCode": condition.exit_code.unwrap_or(0),
        "Error": condition.error,
        "StartedAt": time(condition.started),
        "FinishedAt": time(condition.finished),
    })
}

/// docker's key for a port: `80/tcp`.
fn key(port: &Port) -> String {
    format!("{}/{}", port.container, port.protocol.word())
}

/// `{"80/tcp": [{"HostIp": "", "HostPort": "8888"}]}`; `anywhere` is the address to write for a port that listens on all.
fn bindings(ports: &[Port], anywhere: &str) -> Map<String, Value> {
    let mut bindings = Map::new();
    for port in ports {
        let address = port.address.map_or_else(|| anywhere.to_owned(), |address| address.to_string());
        let host = if port.host == 0 { String::new() } else { port.host.to_string() };
        let binding = json!({"HostIp": address, "HostPort": host});
        match bindings.entry(key(port)).or_insert_with(|| json!([])) {
            Value::Array(list) => list.push(binding),
            other => *other = json!([binding]),
        }
    }
    bindings
}

/// The ports that are published now. Ports that are exposed but not published are null.
fn ports(store: &Store, Listed { container, condition, .. }: &Listed) -> Value {
    let mut ports = bindings(&condition.published, "0.0.0.0");
    let config = container.config(store).ok();
    let exposed = config.as_ref().and_then(|config| config.document().get("config")?.get("ExposedPorts")?.as_object());
    let named = exposed.into_iter().flat_map(|exposed| exposed.keys().cloned());
    let asked = container.record.options.expose.iter().map(|port| match port.contains('/') {
        true => port.clone(),
        false => format!("{port}/tcp"),
    });
    if condition.pid != 0 {
        for port in named.chain(asked) {
            ports.entry(port).or_insert(Value::Null);
        }
    }
    Value::Object(ports)
}

fn host_config(listed: &Listed, bundle: &Value) -> Value {
    let (record, options) = (&listed.container.record, &listed.container.record.options);
    let is = |host: bool, other: &str| if host { "host".to_owned() } else { other.to_owned() };
    let binds: Vec<String> = listed.mounts.iter().filter_map(bind).collect();
    let tmpfs: Map<String, Value> = listed.mounts.iter().filter_map(in_memory).collect();
    let sysctls: Map<String, Value> = options
        .sysctls
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let mut config = json!({
        "Binds": binds,
        "NetworkMode": listed.network(),
        "PortBindings": bindings(&options.ports, ""),
        "PublishAllPorts": options.publish_all,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": record.remove_at_exit,
        "Privileged": options.privileges.privileged,
        "CapAdd": options.privileges.cap_add,
        "CapDrop": options.privileges.cap_drop,
        "SecurityOpt": security(options),
        "ReadonlyRootfs": bundle["root"]["readonly"].as_bool().unwrap_or(options.read_only || record.read_only),
        "Dns": options.dns,
        "DnsSearch": options.dns_search,
        "DnsOptions": options.dns_options,
        "ExtraHosts": options.add_hosts,
        "GroupAdd": options.groups,
        "PidMode": options.shared.get("pid").map_or_else(|| is(options.pid_host, ""), |id| format!("container:{id}")),
        "IpcMode": is(options.ipc_host, "private"),
        "UTSMode": is(options.uts_host, ""),
        "UsernsMode": if options.keep_id.is_some() { "keep-id" } else { "" },
        "Init": options.init,
        "Devices": options.devices.iter().map(|word| device(word)).collect::<Value>(),
        "Tmpfs": tmpfs,
        "Sysctls": sysctls,
        "LogConfig": {"Type": if options.no_log { "none" } else { "local" }, "Config": {}},
        "Runtime": record.runtime.clone().unwrap_or_else(|| "oci".to_owned()),
    });
    if let (Value::Object(all), Value::Object(limits)) = (&mut config, limits(options)) {
        all.extend(limits);
    }
    config
}

/// The part of docker's `HostConfig` that limits the container.
fn limits(options: &RunOptions) -> Value {
    let limits = &options.limits;
    json!({
        "ShmSize": limits.shm_size.unwrap_or(64 << 20),
        "Memory": limits.memory.unwrap_or(0),
        "MemorySwap": limits.memory_swap.unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "CpuQuota": limits.cpu_quota.unwrap_or(0),
        "CpuPeriod": limits.cpu_period.unwrap_or(0),
        "CpusetMems": limits.memory_nodes.clone().unwrap_or_default(),
        "BlkioWeight": limits.block_weight.unwrap_or(0),
        "MemorySwappiness": limits.swappiness,
        "OomKillDisable": limits.no_oom_kill,
        "CgroupnsMode": if options.cgroup_private { "private" } else { "host" },
        "CgroupParent": options.cgroup_parent.clone().unwrap_or_default(),
        "StorageOpt": options.upper_size.map_or_else(|| json!({}), |bytes| json!({"size": bytes.to_string()})),
        "Annotations": options.annotations,
        "NanoCpus": limits.cpus.map_or(0, |cpus| (cpus * 1e9).round() as i64),
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "CpusetCpus": limits.cpuset.clone().unwrap_or_default(),
        "PidsLimit": limits.pids.unwrap_or(0),
        "Ulimits": ulimits(options),
        "OomScoreAdj": limits.oom_score_adj.unwrap_or(0),
    })
}

/// A line of `Binds`: the argument of `-v`.
fn bind(mount: &Seen) -> Option<String> {
    let access = if mount.read_only { "ro" } else { "rw" };
    let source = match &mount.kind {
        Kind::Bind => mount.source.display().to_string(),
        // A volume whose name is a number belongs to the container alone.
        Kind::Volume(name) if mount.source.ends_with("_data") => name.clone(),
        _ => return None,
    };
    Some(format!("{source}:{}:{access}", mount.destination.display()))
}

fn in_memory(mount: &Seen) -> Option<(String, Value)> {
    match &mount.kind {
        Kind::Memory(options) => Some((mount.destination.display().to_string(), options.as_str().into())),
        _ => None,
    }
}

fn security(options: &RunOptions) -> Vec<String> {
    let filter = options.privileges.seccomp.as_ref().map(|seccomp| format!("seccomp={seccomp}"));
    let fixed = options.privileges.no_new_privileges.then(|| "no-new-privileges".to_owned());
    fixed.into_iter().chain(filter).collect()
}

/// `HOST[:CONTAINER][:rwm]`
fn device(word: &str) -> Value {
    let mut parts = word.split(':');
    let host = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let inside = rest.iter().find(|part| part.starts_with('/')).copied().unwrap_or(host);
    let access = rest.iter().find(|part| !part.starts_with('/')).copied().unwrap_or("rwm");
    json!({"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": access})
}

fn ulimits(options: &RunOptions) -> Value {
    let one = |limit: &stratafs::container::limits::Ulimit| {
        // docker writes -1 for an unlimited one.
        let number = |value: u64| i64::try_from(value).unwrap_or(-1);
        json!({"Name": limit.name(), "Soft": number(limit.soft()), "Hard": number(limit.hard())})
    };
    options.limits.ulimits.iter().map(one).collect()
}

/// What the container runs, from its bundle. If it never ran, from the image and the user's options.
fn config(store: &Store, listed: &Listed, bundle: &Value) -> Value {
    let container = &listed.container;
    let options = &container.record.options;
    let image = container.config(store).ok().and_then(|config| config.document().get("config").cloned());
    let mut config = image.as_ref().and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    let process = &bundle["process"];
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("Image", container.record.image_name.clone().into());
    set("Labels", listed.labels.clone());
    set("Hostname", options.hostname.clone().unwrap_or_else(|| container.name().to_owned()).into());
    set("Tty", options.terminal.into());
    set("OpenStdin", options.interactive.into());
    if let Some(user) = &options.user {
        set("User", user.clone().into());
    }
    if let Some(entrypoint) = &options.entrypoint {
        // An empty entry point replaces the image's, and then the image's command is not used either.
        set("Entrypoint", if entrypoint.is_empty() { Value::Null } else { json!([entrypoint]) });
        set("Cmd", Value::Null);
    }
    if !options.command.is_empty() {
        set("Cmd", options.command.clone().into());
    }
    if let Some(signal) = &options.stop_signal {
        set("StopSignal", signal.clone().into());
    }
    if let Some(seconds) = options.stop_timeout {
        set("StopTimeout", seconds.into());
    }
    if let Some(dir) = &options.working_dir {
        set("WorkingDir", dir.clone().into());
    }
    if process.is_object() {
        set("Env", process["env"].clone());
        set("WorkingDir", process["cwd"].clone());
    } else if !options.env.is_empty() {
        let of_image = image.as_ref().and_then(|config| config["Env"].as_array()).cloned().unwrap_or_default();
        set("Env", of_image.into_iter().chain(options.env.iter().map(|word| word.as_str().into())).collect());
    }
    Value::Object(config)
}
