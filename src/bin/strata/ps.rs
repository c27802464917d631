//! `ps`: the list of containers.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use stratafs::container::bundle::Network;
use stratafs::container::network::Port;
use stratafs::container::{Container, Damaged};
use stratafs::image::time::Timestamp;
use stratafs::store::Store;

use super::args::Ps;
use super::condition::Condition;
use super::filters::{Filter, all_hold, has_label};
use super::format::{Headings, Template};
use super::output::{created_at, print_json, print_line, shorten, size, tell};
use super::seen::{Kind, Seen};

const HEADINGS: Headings = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("ImageID", "IMAGE ID"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Pid", "PID"),
    ("ExitCode", "EXIT CODE"),
];

const TABLE: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

const FILTERS: [&str; 13] = [
    "id", "name", "label", "status", "exited", "ancestor", "before", "since", "volume", "network", "publish", "expose",
    "health",
];

/// Width of a command in the table.
const COMMAND_WIDTH: usize = 30;

/// True if `value` is the port in the container, with or without its protocol.
fn is_port(port: &Port, value: &str) -> bool {
    let (number, protocol) = value.split_once('/').unwrap_or((value, port.protocol.word()));
    number == port.container.to_string() && protocol == port.protocol.word()
}

/// A container and its data in `ps`.
pub struct Listed {
    pub container: Container,
    pub condition: Condition,
    pub labels: Value,
    pub mounts: Vec<Seen>,
}

/// All containers. Damaged ones are reported and left out.
pub fn listed(store: &Store) -> Result<Vec<Container>> {
    if store.is_nothing() {
        return Ok(Vec::new());
    }
    let listed = Container::list(store)?;
    for Damaged { name, reason } in &listed.damaged {
        tell(&format!("strata: container {name} is damaged: {reason}; strata rm -f {name} removes it"));
    }
    Ok(listed.containers)
}

/// All containers with their state, the oldest first.
pub fn with_conditions(store: &Store) -> Result<Vec<Listed>> {
    Ok(listed(store)?.into_iter().map(|container| Listed::of(store, container)).collect())
}

/// The labels of the container, over those of its image.
pub fn labels(store: &Store, container: &Container) -> Value {
    let image = container.config(store).ok();
    let labels = image.and_then(|config| config.document().get("config")?.get("Labels").cloned());
    let mut labels = labels.filter(Value::is_object).unwrap_or_else(|| json!({}));
    for (key, value) in &container.record.options.labels {
        labels[key] = value.as_str().into();
    }
    labels
}

/// `config.json` for the runtime; null if the container never ran.
pub fn bundle(container: &Container) -> Value {
    let bytes = fs::read(container.dir().join("config.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}

/// Size of the files in a container's upper directory.
pub fn written(container: &Container) -> u64 {
    tree_size(&container.dir().join("upper"))
}

/// Size of the files below a directory. Files that vanish in the meantime or cannot be read are not counted.
pub fn tree_size(root: &Path) -> u64 {
    let mut bytes = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            match metadata.is_dir() {
                true => pending.push(entry.path()),
                false => bytes += metadata.len(),
            }
        }
    }
    bytes
}

impl Listed {
    pub fn of(store: &Store, container: Container) -> Self {
        Self {
            condition: Condition::of(&container),
            labels: labels(store, &container),
            mounts: Seen::by(&container),
            container,
        }
    }

    /// Its mounts for `inspect`.
    pub fn mount_documents(&self) -> Value {
        self.mounts.iter().map(Seen::document).collect()
    }

    fn holds(&self, all: &[Self], key: &str, value: &str) -> Result<bool> {
        let (container, record) = (&self.container, &self.container.record);
        let other =
            || all.iter().find(|other| other.container.name() == value || other.container.id().starts_with(value));
        Ok(match key {
            "id" => container.id().starts_with(value),
            "name" => container.name().contains(value.trim_start_matches(['^', '/']).trim_end_matches('$')),
            "label" => has_label(&self.labels, value),
            "status" => self.condition.state == value,
            "exited" => self.condition.exit_code.map(|code| code.to_string()).as_deref() == Some(value),
            "ancestor" => {
                let name = record.image_name.as_str();
                let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
                name == value
                    || repository == value
                    || record.image.to_string() == value
                    || record.image.hex().starts_with(value)
            }
            "before" => other().is_some_and(|other| record.created < other.container.record.created),
            "since" => other().is_some_and(|other| record.created > other.container.record.created),
            "volume" => self.mounts.iter().any(|mount| mount.is_meant_by(value)),
            "publish" => record.options.ports.iter().any(|port| is_port(port, value)),
            "expose" => record.options.expose.iter().any(|port| port.split('/').next() == value.split('/').next()),
            // There are no health checks.
            "health" => value == "none",
            _ => self.network() == value,
        })
    }

    /// The word that was given for `--network`.
    pub fn network(&self) -> String {
        let options = &self.container.record.options;
        let word = match options.network {
            Network::Host => "host",
            Network::None => "none",
            Network::Pasta => "pasta",
        };
        options.shared.get("network").map_or_else(|| word.to_owned(), |id| format!("container:{id}"))
    }

    /// The fields of docker's list as text.
    fn row(&self, args: &Ps, now: Timestamp) -> Value {
        let (container, record) = (&self.container, &self.container.record);
        let id = container.id();
        let command = record.command.join(" ");
        let created = Timestamp::parse(&record.created);
        let command = if args.no_trunc { command } else { shorten(&command, COMMAND_WIDTH) };
        let empty = Map::new();
        let labels = self.labels.as_object().unwrap_or(&empty);
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let mounts: Vec<String> = self.mounts.iter().filter_map(Seen::label).collect();
        let volumes = self.mounts.iter().filter(|mount| matches!(mount.kind, Kind::Volume(_))).count();
        json!({
            "ID": if args.no_trunc { id.as_str() } else { id.get(..12).unwrap_or(&id) },
            "Names": container.name(),
            "Image": record.image_name,
            "ImageID": record.image,
            "Command": if command.is_empty() { String::new() } else { format!("\"{command}\"") },
            "CreatedAt": created.map_or_else(|| record.created.clone(), created_at),
            "RunningFor": created.map_or_else(|| "N/A".to_owned(), |created| created.ago(now)),
            "Ports": self.condition.ports,
            "State": self.condition.state,
            "Status": self.condition.status,
            "Size": if args.size { size(written(container)) } else { "0B".to_owned() },
            "Labels": labels.join(","),
            "Mounts": mounts.join(","),
            "Networks": self.network(),
            "LocalVolumes": volumes.to_string(),
            "Mountpoint": record.mountpoint.display().to_string(),
            "Pid": self.condition.pid,
            "ExitCode": self.condition.exit_code,
        })
    }

    /// The same with the keys and values of docker's engine.
    fn document(&self, store: &Store, args: &Ps) -> Value {
        let (container, record) = (&self.container, &self.container.record);
        let mut value = json!({
            "Id": container.id(),
            "Names": [container.name()],
            "Image": record.image_name,
            "ImageID": record.image,
            "Command": record.command,
            "Created": record.created,
            "State": self.condition.state,
            "Status": self.condition.status,
            "Labels": self.labels,
            "Mounts": self.mount_documents(),
            "HostConfig": {"NetworkMode": self.network()},
            "NetworkSettings": {"Networks": {self.network(): {}}},
            "Pid": self.condition.pid,
            "ExitCode": self.condition.exit_code,
            "Mountpoint": record.mountpoint.display().to_string(),
            "Checkpoints": container.checkpoints(store).map_or(0, |all| all.len()),
        });
        if args.size {
            value["SizeRw"] = written(container).into();
        }
        value
    }
}

/// The newest first, as in docker.
fn selected(store: &Store, args: &Ps) -> Result<Vec<Listed>> {
    let mut all = with_conditions(store)?;
    let last = args.last.or(args.latest.then_some(1));
    let asks_for_state = args.filter.iter().any(|Filter { key, .. }| key == "status" || key == "exited");
    let mut chosen = Vec::new();
    for listed in &all {
        let is_shown = args.all || last.is_some() || asks_for_state || listed.condition.is_up();
        chosen.push(is_shown && all_hold(&args.filter, &FILTERS, |key, value| listed.holds(&all, key, value))?);
    }
    let mut chosen = chosen.into_iter();
    all.retain(|_| chosen.next().unwrap_or(false));
    all.reverse();
    all.truncate(last.unwrap_or(usize::MAX));
    Ok(all)
}

pub fn list(store: &Store, args: &Ps) -> Result<()> {
    let containers = selected(store, args)?;
    if args.style.json {
        return Ok(print_json(&containers.iter().map(|listed| listed.document(store, args)).collect())?);
    }
    let now = Timestamp::now();
    let rows: Vec<Value> = containers.iter().map(|listed| listed.row(args, now)).collect();
    if args.style.quiet {
        return Ok(rows.iter().try_for_each(|row| print_line(row["ID"].as_str().unwrap_or_default()))?);
    }
    match &args.style.format {
        Some(template) => template.print(&rows, HEADINGS),
        None => {
            let size = if args.size { "\t{{.Size}}" } else { "" };
            Template::built_in(&format!("{TABLE}{size}"))?.print(&rows, HEADINGS)
        }
    }
}
