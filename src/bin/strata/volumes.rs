//! `volume`: named volumes.

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::container::named::NamedVolume;
use stratafs::store::Store;

use super::args::{VolumeArgs, VolumeVerb};
use super::options::labels;
use super::output::{each, print_json, print_line, print_table};

pub fn run(store: &Store, args: &VolumeArgs) -> Result<()> {
    match &args.verb {
        VolumeVerb::Create { label, name } => {
            let volume = match name {
                Some(name) => NamedVolume::create(store, name, &labels(label))?,
                None => NamedVolume::create_unnamed(store)?,
            };
            Ok(print_line(&volume.name)?)
        }
        VolumeVerb::Ls { quiet, json } => list(store, *quiet, *json),
        VolumeVerb::Inspect { names } => {
            let mut found = Vec::new();
            let outcome = each(names, |name| {
                found.push(described(&NamedVolume::open(store, name)?));
                Ok(())
            });
            print_json(&Value::Array(found))?;
            outcome
        }
        VolumeVerb::Rm { force, names } => each(names, |name| {
            match NamedVolume::open(store, name) {
                Err(_) if *force => return Ok(()),
                volume => volume?.remove(store)?,
            }
            Ok(print_line(name)?)
        }),
        VolumeVerb::Prune { force: _ } => {
            let unused = NamedVolume::list(store)?;
            each(&unused, |volume| {
                if volume.users(store)?.is_empty() {
                    volume.clone().remove(store)?;
                    print_line(&volume.name)?;
                }
                Ok(())
            })
        }
    }
}

/// docker's fields.
fn described(volume: &NamedVolume) -> Value {
    json!({"CreatedAt": volume.created, "Driver": "local", "Labels": volume.labels, "Mountpoint": volume.mountpoint,
        "Name": volume.name, "Options": null, "Scope": "local"})
}

fn list(store: &Store, quiet: bool, json: bool) -> Result<()> {
    let volumes = NamedVolume::list(store)?;
    if json {
        return Ok(print_json(&volumes.iter().map(described).collect())?);
    }
    if quiet {
        return Ok(volumes.iter().try_for_each(|volume| print_line(&volume.name))?);
    }
    let rows: Vec<Vec<String>> = volumes.iter().map(|volume| vec!["local".to_owned(), volume.name.clone()]).collect();
    Ok(print_table(&["DRIVER", "VOLUME NAME"], &rows)?)
}
