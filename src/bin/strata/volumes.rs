//! `volume`: named volumes.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::container::named::NamedVolume;
use stratafs::store::Store;

use super::args::{VolumeArgs, VolumeVerb};
use super::filters::{Filter, all_hold, has_label, truth};
use super::format::{Headings, Template};
use super::options::labels;
use super::output::{each, print_json, print_line};
use super::ps::tree_size;

const HEADINGS: Headings = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Scope", "SCOPE"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
    ("Links", "LINKS"),
];

const TABLE: &str = "table {{.Driver}}\t{{.Name}}";

const FILTERS: [&str; 4] = ["name", "label", "dangling", "driver"];

/// The only driver that exists.
const DRIVER: &str = "local";

pub fn run(store: &Store, args: &VolumeArgs) -> Result<ExitCode> {
    let done = match &args.verb {
        VolumeVerb::Exists { name } => return Ok(found(NamedVolume::open(store, name).is_ok())),
        VolumeVerb::Create { label, name, named, driver: _ } => {
            let volume = match name.as_ref().or(named.as_ref()) {
                Some(name) => NamedVolume::create(store, name, &labels(label))?,
                None => NamedVolume::create_unnamed(store)?,
            };
            Ok(print_line(&volume.name)?)
        }
        VolumeVerb::Ls { quiet, format, filter, json } => {
            let volumes = selected(store, filter)?;
            match quiet {
                true => Ok(volumes.iter().try_for_each(|volume| print_line(&volume.name))?),
                false => list(store, &volumes, format.as_ref(), *json),
            }
        }
        VolumeVerb::Inspect { format, names } => inspect(store, names, format.as_ref()),
        VolumeVerb::Rm { force, names } => each(names, |name| {
            match NamedVolume::open(store, name) {
                Err(_) if *force => return Ok(()),
                volume => volume?.remove(store)?,
            }
            Ok(print_line(name)?)
        }),
        VolumeVerb::Prune { filter, force: _, all: _ } => prune(store, filter).map(drop),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The exit code of `exists`.
pub fn found(is_there: bool) -> ExitCode {
    if is_there { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Removes all volumes that no container uses; returns the bytes that this frees.
pub fn prune(store: &Store, filter: &[Filter]) -> Result<u64> {
    let mut freed = 0;
    each(&NamedVolume::list(store)?, |volume| {
        let is_meant = all_hold(filter, &["label"], |_, value| Ok(has_label(&json!(volume.labels), value)))?;
        if is_meant && volume.users(store)?.is_empty() {
            let bytes = tree_size(&volume.mountpoint);
            volume.clone().remove(store)?;
            freed += bytes;
            print_line(&volume.name)?;
        }
        Ok(())
    })?;
    Ok(freed)
}

/// docker's fields.
fn described(volume: &NamedVolume) -> Value {
    json!({"CreatedAt": volume.created, "Driver": DRIVER, "Labels": volume.labels, "Mountpoint": volume.mountpoint,
        "Name": volume.name, "Options": null, "Scope": "local"})
}

pub fn inspect(store: &Store, names: &[String], format: Option<&Template>) -> Result<()> {
    let mut found = Vec::new();
    let outcome = each(names, |name| {
        found.push(described(&NamedVolume::open(store, name)?));
        Ok(())
    });
    match format {
        Some(template) => template.print(&found, &[])?,
        None => print_json(&Value::Array(found))?,
    }
    outcome
}

fn selected(store: &Store, filter: &[Filter]) -> Result<Vec<NamedVolume>> {
    let mut chosen = Vec::new();
    for volume in NamedVolume::list(store)? {
        let holds = |key: &str, value: &str| {
            Ok(match key {
                "name" => volume.name.contains(value),
                "label" => has_label(&json!(volume.labels), value),
                "dangling" => volume.users(store)?.is_empty() == truth(key, value)?,
                _ => value == DRIVER,
            })
        };
        if all_hold(filter, &FILTERS, holds)? {
            chosen.push(volume);
        }
    }
    Ok(chosen)
}

fn list(store: &Store, volumes: &[NamedVolume], format: Option<&Template>, json: bool) -> Result<()> {
    if json {
        return Ok(print_json(&volumes.iter().map(described).collect())?);
    }
    let mut rows = Vec::new();
    for volume in volumes {
        let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.push(json!({"Name": volume.name, "Driver": DRIVER, "Mountpoint": volume.mountpoint, "Scope": "local",
            "Labels": labels.join(","), "CreatedAt": volume.created,
            "Links": volume.users(store)?.len().to_string()}));
    }
    match format {
        Some(template) => template.print(&rows, HEADINGS),
        None => Template::built_in(TABLE)?.print(&rows, HEADINGS),
    }
}
