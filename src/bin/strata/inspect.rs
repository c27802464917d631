//! `inspect` and `history`.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use stratafs::container::Container;
use stratafs::image::time::Timestamp;
use stratafs::store::{Image, Store, short_id};

use super::args::{History, Inspect, KindArg};
use super::checkpoints;
use super::format::{Headings, Template};
use super::images::names;
use super::output::{created_at, each, print_document, print_json, print_line, shorten, size};
use super::ps::{self, Listed};

const HEADINGS: Headings = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Columns that a command takes in the table.
const COMMAND_WIDTH: usize = 45;

pub fn inspect(store: &Store, args: &Inspect) -> Result<()> {
    let mut all = Vec::new();
    let found = each(&args.names, |name| {
        if !args.config
            && args.r#type != Some(KindArg::Image)
            && let Some(value) = container(store, name, args)?
        {
            all.push(value);
            return Ok(());
        }
        if args.r#type == Some(KindArg::Volume) {
            bail!("{name}: no such volume");
        }
        let image = store.find(name)?;
        if args.config {
            print_document(image.config.bytes())?;
        } else {
            all.push(describe(store, &image));
        }
        Ok(())
    });
    match &args.format {
        Some(template) => template.print(&all, &[])?,
        None if !args.config && (found.is_ok() || !all.is_empty()) => print_json(&Value::Array(all))?,
        None => {}
    }
    found
}

/// The document of a container of this name; none if there is none and an image may be meant.
fn container(store: &Store, name: &str, args: &Inspect) -> Result<Option<Value>> {
    match Container::open(store, name) {
        Ok(container) => describe_container(store, container, args.size).map(Some),
        Err(error) if args.r#type == Some(KindArg::Container) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// The fields of `docker image inspect` that mean something here, and where the layers are.
fn describe(store: &Store, image: &Image) -> Value {
    let document = image.config.document();
    let field = |name: &str| document.get(name).cloned().unwrap_or(Value::Null);
    let layer_dirs: Vec<String> = store
        .layers_of(image)
        .map(|layers| layers.iter().map(|layer| layer.diff().display().to_string()).collect())
        .unwrap_or_default();
    let lower: Vec<&str> = layer_dirs.iter().rev().map(String::as_str).collect();
    json!({
        "Id": image.id(),
        "RepoTags": names(image),
        "RepoDigests": image.repo_digests(),
        "Digest": image.descriptor.digest,
        "Parent": "",
        "Comment": image.config.history().last().and_then(|line| line.comment.clone()).unwrap_or_default(),
        "Created": field("created"),
        "Author": field("author"),
        "Architecture": field("architecture"),
        "Variant": field("variant"),
        "Os": field("os"),
        "Size": image.size(),
        "VirtualSize": image.size(),
        "Config": field("config"),
        "GraphDriver": {"Name": "stratafs", "Data": {"LowerDir": lower.join(":")}},
        "RootFS": {"Type": "layers", "Layers": image.config.diff_ids()},
        "History": field("history"),
        "LayerDirs": layer_dirs,
    })
}

/// The fields of `docker container inspect` that mean something here.
fn describe_container(store: &Store, container: Container, with_size: bool) -> Result<Value> {
    let listed = Listed::of(store, container);
    let Listed { container, condition, .. } = &listed;
    let (record, bundle) = (&container.record, ps::bundle(container));
    let time =
        |time: Option<Timestamp>| time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string());
    let is = |state: &str| condition.state == state;
    let (program, arguments) = record.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let dir = container.dir();
    let lower: Vec<String> =
        container.layers(store)?.iter().rev().map(|layer| layer.diff().display().to_string()).collect();
    let place = |name: &str| dir.join(name).display().to_string();
    let mut value = json!({
        "Id": ps::id(container),
        "Created": record.created,
        "Path": program,
        "Args": arguments,
        "State": {
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
        },
        "Image": record.image,
        "ImageName": record.image_name,
        "Name": container.name(),
        "RestartCount": 0,
        "Driver": driver(container),
        "Platform": "linux",
        "LogPath": if dir.join("log").exists() { place("log") } else { String::new() },
        "ExecIDs": null,
        "HostConfig": host_config(container, &bundle),
        "GraphDriver": {"Name": driver(container), "Data": {"LowerDir": lower.join(":"), "UpperDir": place("upper"),
            "WorkDir": place("work"), "MergedDir": record.mountpoint.display().to_string()}},
        "Mounts": listed.mount_documents(),
        "Config": config(store, &listed, &bundle),
        "NetworkSettings": {"Ports": {}, "Networks": {listed.network(): {}}},
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

fn driver(container: &Container) -> Value {
    serde_json::to_value(container.record.driver).unwrap_or(Value::Null)
}

fn host_config(container: &Container, bundle: &Value) -> Value {
    let resources = &bundle["linux"]["resources"];
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let quota = resources["cpu"]["quota"].as_i64().unwrap_or(0);
    let period = resources["cpu"]["period"].as_i64().filter(|&period| period > 0).unwrap_or(100_000);
    json!({
        "AutoRemove": container.record.remove_at_exit,
        "ReadonlyRootfs": bundle["root"]["readonly"].as_bool().unwrap_or(container.record.read_only),
        "Memory": number(&resources["memory"]["limit"]),
        "PidsLimit": number(&resources["pids"]["limit"]),
        "NanoCpus": quota.max(0).saturating_mul(1_000_000_000) / period,
        "Privileged": false,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "Runtime": "oci",
    })
}

/// What the container runs: as its bundle says, or if it never ran, as its image does.
fn config(store: &Store, listed: &Listed, bundle: &Value) -> Value {
    let container = &listed.container;
    let image = container.config(store).ok().and_then(|config| config.document().get("config").cloned());
    let mut config = image.as_ref().and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    let process = &bundle["process"];
    let user = &process["user"];
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("Image", container.record.image_name.clone().into());
    set("Labels", listed.labels.clone());
    if !container.record.command.is_empty() {
        set("Cmd", container.record.command.clone().into());
    }
    if process.is_object() {
        set("Hostname", bundle["hostname"].clone());
        set("Env", process["env"].clone());
        set("WorkingDir", process["cwd"].clone());
        set("Tty", process["terminal"].as_bool().unwrap_or(false).into());
        set("User", format!("{}:{}", user["uid"].as_u64().unwrap_or(0), user["gid"].as_u64().unwrap_or(0)).into());
    }
    Value::Object(config)
}

/// A line of an image's history.
struct Step {
    line: stratafs::image::config::History,
    bytes: u64,
}

fn steps(store: &Store, image: &Image) -> Vec<Step> {
    let sizes: Vec<u64> = match store.layers_of(image) {
        Ok(layers) => layers.iter().map(|layer| layer.record.content_size).collect(),
        Err(_) => image.manifest.layers.iter().map(|layer| layer.size).collect(),
    };
    let mut sizes = sizes.into_iter();
    let step = |line: stratafs::image::config::History| {
        let bytes = if line.empty_layer == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
        Step { line, bytes }
    };
    let mut steps: Vec<Step> = image.config.history().into_iter().map(step).collect();
    steps.reverse();
    steps
}

pub fn history(store: &Store, args: &History) -> Result<()> {
    let image = store.find(&args.image)?;
    let steps = steps(store, &image);
    let id_of = |number: usize| match number {
        0 if args.no_trunc => image.id().to_string(),
        0 => short_id(&image.id()),
        _ => "<missing>".to_owned(),
    };
    if args.style.json {
        let document = |(number, step): (usize, &Step)| {
            json!({"Id": if number == 0 { image.id().to_string() } else { id_of(number) },
                "Created": step.line.created, "CreatedBy": step.line.created_by,
                "Author": step.line.author, "Comment": step.line.comment,
                "EmptyLayer": step.line.empty_layer == Some(true), "Size": step.bytes,
                "Tags": if number == 0 { names(&image) } else { Vec::new() }})
        };
        return Ok(print_json(&steps.iter().enumerate().map(document).collect())?);
    }
    if args.style.quiet {
        return Ok((0..steps.len()).try_for_each(|number| print_line(&id_of(number)))?);
    }
    let now = Timestamp::now();
    let row = |(number, Step { line, bytes }): (usize, &Step)| {
        let created = line.created.as_deref().and_then(Timestamp::parse);
        let command = line.created_by.as_deref().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let since = match (created, args.human) {
            (None, _) => "N/A".to_owned(),
            (Some(created), true) => created.ago(now),
            (Some(created), false) => created.to_string(),
        };
        json!({
            "ID": id_of(number),
            "CreatedSince": since,
            "CreatedAt": created.map_or_else(|| "N/A".to_owned(), created_at),
            "CreatedBy": if args.no_trunc { command } else { shorten(&command, COMMAND_WIDTH) },
            "Size": if args.human { size(*bytes) } else { bytes.to_string() },
            "Comment": line.comment.clone().unwrap_or_default(),
        })
    };
    let rows: Vec<Value> = steps.iter().enumerate().map(row).collect();
    let table = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
    match &args.style.format {
        Some(template) => template.print(&rows, HEADINGS),
        None => Template::built_in(table)?.print(&rows, HEADINGS),
    }
}
