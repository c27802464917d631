//! Verbs about images in the store.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::container::{Container, rootless};
use stratafs::image::digest::Digest;
use stratafs::image::reference::Reference;
use stratafs::image::time::Timestamp;
use stratafs::inventory::Unusable;
use stratafs::store::trace::Traced;
use stratafs::store::{Image, Layer, Removed, Repaired, Store, short_id};
use stratafs::text::shown_path;

use super::args::{Df, Gc, History, Images, Inspect, Layers, Rmi, Tag, Verify, Which};
use super::checkpoints;
use super::containers::listed;
use super::output::{each, print_document, print_json, print_line, print_table, shorten, size};

const NONE: &str = "<none>";

pub fn list(store: &Store, args: &Images) -> Result<()> {
    let mut images = store.images()?;
    if let Some(wanted) = &args.name {
        images.iter_mut().for_each(|image| image.names.retain(|name| means(wanted, name)));
        images.retain(|image| !image.names.is_empty());
    }
    if args.json {
        return Ok(print_json(&images.iter().map(summary).collect())?);
    }
    let id = |image: &Image| if args.no_trunc { image.id().to_string() } else { short_id(&image.id()) };
    if args.quiet {
        return Ok(images.iter().try_for_each(|image| print_line(&id(image)))?);
    }
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for image in &images {
        let created = image.config.created().map_or_else(|| "N/A".to_owned(), |created| created.ago(now));
        let row = |repository: String, tag: &str| {
            vec![repository, tag.to_owned(), id(image), created.clone(), size(content_size(store, image))]
        };
        if image.names.is_empty() {
            rows.push(row(NONE.to_owned(), NONE));
        }
        rows.extend(image.names.iter().map(|name| row(name.repository(), name.tag())));
    }
    Ok(print_table(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &rows)?)
}

/// `debian` means every tag of that repository, `debian:12` one.
fn means(wanted: &str, name: &Reference) -> bool {
    let same = |reference: Reference| {
        let tagged = wanted.rsplit('/').next().is_some_and(|last| last.contains(':'));
        reference.repository() == name.repository() && (!tagged || reference.tag() == name.tag())
    };
    wanted.parse().is_ok_and(same)
}

/// Bytes of file contents if the layers are here, else of the tars.
fn content_size(store: &Store, image: &Image) -> u64 {
    let contents = |layers: Vec<Layer>| layers.iter().map(|layer| layer.record.content_size).sum();
    store.layers_of(image).map_or_else(|_| image.size(), contents)
}

fn summary(image: &Image) -> Value {
    json!({
        "Id": image.id(),
        "Names": names(image),
        "Digest": image.descriptor.digest,
        "Created": image.config.created().map(|created| created.to_string()),
        "Size": image.size(),
        "Layers": image.config.diff_ids(),
    })
}

fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(Reference::to_string).collect()
}

pub fn inspect(store: &Store, args: &Inspect) -> Result<()> {
    let mut all = Vec::new();
    let found = each(&args.names, |name| {
        if let Ok(container) = Container::open(store, name)
            && !args.config
        {
            all.push(describe_container(store, &container)?);
            return Ok(());
        }
        let image = store.find(name)?;
        if args.config {
            print_document(image.config.bytes())?;
        } else {
            all.push(describe(store, &image));
        }
        Ok(())
    });
    if !args.config && (found.is_ok() || !all.is_empty()) {
        print_json(&Value::Array(all))?;
    }
    found
}

/// The fields of `docker image inspect` that mean something here, and where the layers are.
fn describe(store: &Store, image: &Image) -> Value {
    let document = image.config.document();
    let field = |name: &str| document.get(name).cloned().unwrap_or(Value::Null);
    let layer_dirs: Vec<String> = store
        .layers_of(image)
        .map(|layers| layers.iter().map(|layer| layer.diff().display().to_string()).collect())
        .unwrap_or_default();
    json!({
        "Id": image.id(),
        "RepoTags": names(image),
        "RepoDigests": image.repo_digests(),
        "Digest": image.descriptor.digest,
        "Created": field("created"),
        "Author": field("author"),
        "Architecture": field("architecture"),
        "Variant": field("variant"),
        "Os": field("os"),
        "Size": image.size(),
        "Config": field("config"),
        "RootFS": {"Type": "layers", "Layers": image.config.diff_ids()},
        "History": field("history"),
        "LayerDirs": layer_dirs,
    })
}

fn describe_container(store: &Store, container: &Container) -> Result<Value> {
    let mut value = serde_json::to_value(&container.record)?;
    value["checkpoints"] = checkpoints::described(&container.checkpoints(store)?);
    value["name"] = json!(container.name());
    value["state"] = serde_json::to_value(container.state()?)?;
    value["status"] = json!(container.status()?.word());
    value["mounted"] = json!(container.is_mounted()?);
    value["dir"] = json!(container.dir());
    Ok(value)
}

pub fn history(store: &Store, args: &History) -> Result<()> {
    let image = store.find(&args.image)?;
    let sizes: Vec<u64> = match store.layers_of(&image) {
        Ok(layers) => layers.iter().map(|layer| layer.record.content_size).collect(),
        Err(_) => image.manifest.layers.iter().map(|layer| layer.size).collect(),
    };
    let mut sizes = sizes.into_iter();
    let mut lines: Vec<_> = image
        .config
        .history()
        .into_iter()
        .map(|line| {
            let bytes = if line.empty_layer == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
            (line, bytes)
        })
        .collect();
    lines.reverse();
    if args.json {
        let line = |(line, bytes)| -> Result<Value> {
            let mut value = serde_json::to_value(line)?;
            value["size"] = json!(bytes);
            Ok(value)
        };
        return Ok(print_json(&lines.into_iter().map(line).collect::<Result<_>>()?)?);
    }
    let id_of = |number| if number == 0 { short_id(&image.id()) } else { "<missing>".to_owned() };
    if args.quiet {
        return Ok((0..lines.len()).try_for_each(|number| print_line(&id_of(number)))?);
    }
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for (number, (line, bytes)) in lines.into_iter().enumerate() {
        let id = id_of(number);
        let created =
            line.created.as_deref().and_then(Timestamp::parse).map_or_else(|| "N/A".to_owned(), |at| at.ago(now));
        let command = line.created_by.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let command = if args.no_trunc { command } else { shorten(&command, 45) };
        rows.push(vec![id, created, command, size(bytes), line.comment.unwrap_or_default()]);
    }
    Ok(print_table(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)?)
}

pub fn tag(store: &Store, args: &Tag) -> Result<()> {
    Ok(store.tag(&store.find(&args.image)?, &args.name)?)
}

pub fn remove(store: &Store, args: &Rmi) -> Result<()> {
    each(&args.images, |image| {
        let Removed { untagged, deleted, .. } = store.remove(image, args.force)?;
        for name in untagged {
            print_line(&format!("Untagged: {name}"))?;
        }
        Ok(deleted.map_or(Ok(()), |id| print_line(&format!("Deleted: {id}")))?)
    })
}

/// Which images have which layers.
fn users(store: &Store) -> Result<BTreeMap<Digest, Vec<String>>> {
    let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for image in store.images()? {
        for layer in store.layers_of(&image).unwrap_or_default() {
            users.entry(layer.id()).or_default().push(image.label());
        }
    }
    users.values_mut().for_each(|names| names.dedup());
    Ok(users)
}

pub fn layers(store: &Store, args: &Layers) -> Result<()> {
    let image = store.find(&args.image)?;
    let users = users(store)?;
    let label = image.label();
    let sharers = |layer: &Layer| -> Vec<String> {
        users.get(&layer.id()).into_iter().flatten().filter(|name| **name != label).cloned().collect()
    };
    let layers = store.layers_of(&image)?;
    if args.json {
        let value = |layer: &Layer| {
            json!({"DiffId": layer.record.diff_id, "Id": layer.id(), "Dir": layer.diff(), "TarSize": layer.record.size,
                "ContentSize": layer.record.content_size, "Entries": layer.record.entries, "SharedWith": sharers(layer)})
        };
        return Ok(print_json(&layers.iter().map(value).collect())?);
    }
    if args.quiet {
        return Ok(layers.iter().rev().try_for_each(|layer| print_line(&layer.record.diff_id.to_string()))?);
    }
    let row = |layer: &Layer| {
        let shared = sharers(layer);
        let shared = if shared.is_empty() { "-".to_owned() } else { shared.join(", ") };
        vec![short_id(&layer.record.diff_id), size(layer.record.content_size), layer.record.entries.to_string(), shared]
    };
    let rows: Vec<_> = layers.iter().rev().map(row).collect();
    Ok(print_table(&["LAYER", "SIZE", "ENTRIES", "SHARED WITH"], &rows)?)
}

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
    found.damages.iter().for_each(|damage| super::output::tell(&damage.told));
    if args.repair && !found.damages.is_empty() {
        let repaired = store.repair(&found, &|name| Container::is_in_use(store, name))?;
        repaired.set_aside.iter().try_for_each(|place| print_line(&format!("Moved to {}", shown_path(place))))?;
        repaired.kept.iter().for_each(|told| super::output::tell(told));
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

/// Tells of inventories that do not fit, or makes them again. An inventory fits in one user namespace: a user without
/// privilege may have them for its own, where `mount` works, or for the one that its containers run in. Those that do not
/// fit here are looked at and made there. There is no way back, so this is the last thing that a process does.
fn verify_inventories(unfit: &[(Layer, Unusable)], repair: bool) -> Result<()> {
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
            super::output::tell(&format!("layer {}: {told}: {why}; --repair makes it again", layer.record.diff_id));
        }
    }
    Ok(())
}

pub fn usage(store: &Store, args: &Df) -> Result<()> {
    let users = users(store)?;
    let layers = store.all_layers()?;
    let bytes = |select: &dyn Fn(usize) -> bool| -> u64 {
        let count = |layer: &&Layer| select(users.get(&layer.id()).map_or(0, Vec::len));
        layers.iter().filter(count).map(|layer| layer.record.content_size).sum()
    };
    let (all, shared, unused) = (bytes(&|_| true), bytes(&|count| count > 1), bytes(&|count| count == 0));
    let inventories: Vec<u64> = layers.iter().map(Layer::inventory_size).filter(|&bytes| bytes > 0).collect();
    let images = store.images()?.len();
    let containers = listed(store)?.len();
    let (checkpoints, in_checkpoints) = store.checkpoints_size()?;
    if args.json {
        return Ok(print_json(&json!({"Images": images, "Containers": containers,
            "Checkpoints": checkpoints, "CheckpointsSize": in_checkpoints, "Layers": layers.len(),
            "Size": all, "Shared": shared, "Unused": unused,
            "Inventories": inventories.iter().sum::<u64>()}))?);
    }
    if args.quiet {
        return Ok(print_line(&all.to_string())?);
    }
    let row = |what: &str, count: usize, bytes: String| vec![what.to_owned(), count.to_string(), bytes];
    let rows = [
        row("Images", images, String::new()),
        row("Containers", containers, String::new()),
        row("Checkpoints", checkpoints, size(in_checkpoints)),
        row("Layers", layers.len(), size(all)),
        row(
            "  shared",
            layers.iter().filter(|layer| users.get(&layer.id()).is_some_and(|u| u.len() > 1)).count(),
            size(shared),
        ),
        row("  inventories", inventories.len(), size(inventories.iter().sum())),
        row("  unused", layers.iter().filter(|layer| !users.contains_key(&layer.id())).count(), size(unused)),
    ];
    Ok(print_table(&["TYPE", "COUNT", "SIZE"], &rows)?)
}

/// Topmost layer first; what is hidden is told as such.
pub fn which(store: &Store, args: &Which) -> Result<()> {
    let image = store.find(&args.image)?;
    let layers = store.layers_of(&image)?;
    let found = stratafs::store::trace::trace(&layers, &args.path)?;
    if args.json {
        let value =
            |step: &Traced| json!({"DiffId": step.diff_id, "What": step.what.to_string(), "Hidden": step.hidden});
        return Ok(print_json(&found.iter().map(value).collect())?);
    }
    if !found.iter().any(|step| !step.hidden && step.what.is_there()) {
        anyhow::bail!("{}: not in {}", args.path.display(), image.label());
    }
    if args.quiet {
        let visible = found.iter().find(|step| !step.hidden && step.what.is_there());
        return Ok(visible.map_or(Ok(()), |step| print_line(&step.diff_id.to_string()))?);
    }
    let row = |step: &Traced| {
        let hidden = if step.hidden { "hidden" } else { "" };
        vec![short_id(&step.diff_id), step.what.to_string(), hidden.to_owned()]
    };
    Ok(print_table(&["LAYER", "WHAT", ""], &found.iter().map(row).collect::<Vec<_>>())?)
}
