//! Verbs about the layers of an image.

use anyhow::Result;
use serde_json::json;
use stratafs::store::anatomy::Anatomy;
use stratafs::store::trace::Traced;
use stratafs::store::{Store, StoredLayer, short_id};

use super::args::{Layers, Which};
use super::images::users;
use super::output::{print_json, print_line, print_table, size};
use super::pictures;

pub fn layers(store: &Store, args: &Layers) -> Result<()> {
    let image = store.find(&args.image)?;
    if args.tree || args.wasted || args.max_wasted.is_some() {
        let anatomy = Anatomy::of(&store.layers_of(&image)?)?;
        return match args.tree {
            true => pictures::layers(&image, &anatomy, args.depth),
            false => pictures::wasted(&image, &anatomy, args),
        };
    }
    let users = users(store)?;
    let label = image.label();
    let sharers = |layer: &StoredLayer| -> Vec<String> {
        users.get(&layer.id()).into_iter().flatten().filter(|name| **name != label).cloned().collect()
    };
    let layers = store.layers_of(&image)?;
    if args.json {
        let value = |layer: &StoredLayer| {
            json!({"DiffId": layer.record.diff_id, "Id": layer.id(), "Dir": layer.diff(), "TarSize": layer.record.size,
                "ContentSize": layer.record.content_size, "Entries": layer.record.entries, "SharedWith": sharers(layer)})
        };
        return Ok(print_json(&layers.iter().map(value).collect())?);
    }
    if args.quiet {
        return Ok(layers.iter().rev().try_for_each(|layer| print_line(&layer.record.diff_id.to_string()))?);
    }
    let row = |layer: &StoredLayer| {
        let shared = sharers(layer);
        let shared = if shared.is_empty() { "-".to_owned() } else { shared.join(", ") };
        vec![short_id(&layer.record.diff_id), size(layer.record.content_size), layer.record.entries.to_string(), shared]
    };
    let rows: Vec<_> = layers.iter().rev().map(row).collect();
    Ok(print_table(&["LAYER", "SIZE", "ENTRIES", "SHARED WITH"], &rows)?)
}

/// Topmost layer first; hidden files are marked as such.
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
