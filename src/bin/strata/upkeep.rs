//! Verbs that maintain the store: `gc`, `verify`, and docker's prune.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use stratafs::container::{Container, rootless};
use stratafs::image::time::Timestamp;
use stratafs::inventory::Unusable;
use stratafs::store::{Image, Removed, Repaired, Store, StoredLayer, Verification};
use stratafs::text::shown_path;

use super::args::{ContainerPrune, Gc, ImagePrune, PruneArgs, SystemPrune, Verify};
use super::checkpoints;
use super::containers::newest_first;
use super::filters::{Filter, all_hold, has_label, moment};
use super::images::labels;
use super::output::{each, print_json, print_line, size, tell};
use super::ps::{self, Listed};

const FILTERS: [&str; 2] = ["until", "label"];

pub fn gc(store: &Store, args: &Gc) -> Result<()> {
    let freed = store.gc(args.untagged)?;
    checkpoints::tidy(store)?;
    Ok(print_line(&format!("Removed {} layers and {} blobs, {}", freed.layers, freed.blobs, size(freed.bytes)))?)
}

pub fn verify(store: &Store, args: &Verify) -> Result<ExitCode> {
    let found = match args.images.as_slice() {
        [] => store.verify()?,
        names => store.verify_images(&names.iter().map(|name| store.find(name)).collect::<Result<Vec<_>, _>>()?)?,
    };
    if args.json && !args.repair {
        return print_verification(&found);
    }
    found.damages.iter().for_each(|damage| tell(&damage.told));
    if args.repair && !found.damages.is_empty() {
        let repaired = store.repair(&found, &|name| Container::is_in_use(store, name))?;
        repaired.set_aside.iter().try_for_each(|place| print_line(&format!("Moved to {}", shown_path(place))))?;
        repaired.kept.iter().for_each(|told| tell(told));
        let Repaired { layers, blobs, entries, .. } = repaired;
        let entries = if entries > 0 { format!(" and {entries} names or entries") } else { String::new() };
        print_line(&format!("Removed {layers} damaged layers and {blobs} blobs{entries}; load their images again"))?;
    }
    verify_inventories(&found.without_inventory, args.repair)?;
    if found.damages.is_empty() {
        print_line(&format!("{} layers are sound", found.sound))?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("{} faults were found; {} layers are sound", found.damages.len(), found.sound);
}

/// Prints the result as JSON; the exit code says whether everything is undamaged.
fn print_verification(found: &Verification) -> Result<ExitCode> {
    let damages: Vec<&str> = found.damages.iter().map(|damage| damage.told.as_str()).collect();
    let unfit: Vec<_> = found.without_inventory.iter().map(|(layer, _)| layer.record.diff_id).collect();
    print_json(&json!({"SoundLayers": found.sound, "Damages": damages, "InventoriesNotUsed": unfit}))?;
    Ok(if damages.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reports inventories that do not match, or makes them again. An inventory is valid in one user namespace. A user without
/// privilege may have inventories for its own namespace, where `mount` works, or for that of its containers. Those that are
/// not valid here are checked and made there. A process cannot return from it, so this is its last action.
fn verify_inventories(unfit: &[(StoredLayer, Unusable)], repair: bool) -> Result<()> {
    if unfit.is_empty() {
        return Ok(());
    }
    if let Err(error) = rootless::enter() {
        // No container can run there either.
        tracing::debug!("{error}");
    }
    for (layer, _) in unfit {
        let Err(why) = layer.check_inventory()? else { continue };
        if repair {
            layer.make_inventory()?;
            print_line(&format!("layer {}: made its inventory again ({why})", layer.record.diff_id))?;
        } else {
            let told = "its inventory is not used";
            tell(&format!("layer {}: {told}: {why}; --repair makes it again", layer.record.diff_id));
        }
    }
    Ok(())
}

/// Asks before anything is removed, if standard input is a terminal.
///
/// # Errors
/// The input is no terminal, or the answer is no.
fn confirm(args: &PruneArgs, what: &str) -> Result<()> {
    if args.force {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("this removes {what}; give --force, because there is no terminal to ask on");
    }
    write!(io::stderr(), "This removes {what}. Go on? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was removed"),
    }
}

fn holds(args: &PruneArgs, created: Option<Timestamp>, labels: &serde_json::Value) -> Result<bool> {
    all_hold(&args.filter, &FILTERS, |key, value| match key {
        "until" => Ok(created < Some(moment(key, value)?)),
        _ => Ok(has_label(labels, value)),
    })
}

/// Removes containers that neither run nor are mounted; returns the bytes that this frees.
fn remove_stopped(store: &Store, args: &PruneArgs) -> Result<u64> {
    let mut doomed: Vec<Listed> = Vec::new();
    for listed in ps::with_conditions(store)? {
        let created = Timestamp::parse(&listed.container.record.created);
        let idle = matches!(listed.condition.state.as_str(), "exited" | "created" | "stopped" | "dead");
        if idle && holds(args, created, &ps::labels(store, &listed.container))? {
            doomed.push(listed);
        }
    }
    let mut freed = 0;
    each(&newest_first(doomed, |listed| &listed.container), |listed| {
        let bytes = ps::written(&listed.container);
        listed.container.clone().remove(store)?;
        freed += bytes;
        Ok(print_line(&format!("Deleted: {}", listed.container.name()))?)
    })?;
    Ok(freed)
}

/// Removes images without a name, or all without a container; returns the bytes that this frees.
fn remove_images(store: &Store, args: &PruneArgs, all: bool) -> Result<u64> {
    let used: Vec<_> = ps::listed(store)?.iter().map(|container| container.record.image).collect();
    let mut doomed: Vec<Image> = Vec::new();
    for image in store.images()? {
        let idle = (all || image.names.is_empty()) && !used.contains(&image.id());
        if idle && holds(args, image.config.created(), &labels(&image))? {
            doomed.push(image);
        }
    }
    let mut bytes = 0;
    each(&doomed, |image| {
        let mut words: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        if words.is_empty() {
            words.push(image.id().to_string());
        }
        for word in words {
            let Removed { untagged, deleted, freed } = store.remove(&word, false)?;
            untagged.iter().try_for_each(|name| print_line(&format!("Untagged: {name}")))?;
            deleted.map_or(Ok(()), |id| print_line(&format!("Deleted: {id}")))?;
            bytes += freed.bytes;
        }
        Ok(())
    })?;
    Ok(bytes)
}

fn print_reclaimed(bytes: u64) -> Result<()> {
    Ok(print_line(&format!("Total reclaimed space: {}", size(bytes)))?)
}

pub fn prune_containers(store: &Store, args: &ContainerPrune) -> Result<()> {
    confirm(&args.prune, "all containers that neither run nor are mounted, with their changes")?;
    print_reclaimed(remove_stopped(store, &args.prune)?)
}

pub fn prune_images(store: &Store, args: &ImagePrune) -> Result<()> {
    let what = if args.all { "all images that no container is made of" } else { "all images without a name" };
    confirm(&args.prune, what)?;
    print_reclaimed(remove_images(store, &args.prune, args.all)?)
}

pub fn prune_system(store: &Store, args: &SystemPrune) -> Result<()> {
    let images = if args.all { "all images that no container is made of" } else { "all images without a name" };
    let volumes = if args.volumes { ", and all volumes that no container uses" } else { "" };
    confirm(&args.prune, &format!("all containers that neither run nor are mounted, and {images}{volumes}"))?;
    let containers = remove_stopped(store, &args.prune)?;
    let images = remove_images(store, &args.prune, args.all)?;
    let layers = store.gc(false)?.bytes;
    let of_volumes: Vec<Filter> = args.prune.filter.iter().filter(|filter| filter.key == "label").cloned().collect();
    let volumes = if args.volumes { super::volumes::prune(store, &of_volumes)? } else { 0 };
    print_reclaimed(containers + images + layers + volumes)
}
