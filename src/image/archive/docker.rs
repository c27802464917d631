//! Docker-archives: `manifest.json` lists the images (moby's "Docker Image Specification v1.2", "Combined Image
//! JSON + Filesystem Changeset Format"). Docker >= 25 writes an OCI layout around it.

use serde::Deserialize;
use serde_json::Value;

use crate::image::archive::{Archive, FoundImage, FoundLayer, check, digest_in_name};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::document;
use crate::image::error::{ImageError, Result};
use crate::image::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Item {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

pub(crate) fn images(archive: &Archive) -> Result<Vec<FoundImage>> {
    let location = archive.locate("manifest.json");
    let bad = |reason: String| ImageError::document(&location, reason);
    let value = document::value(&archive.document("manifest.json")?).map_err(|error| bad(error.to_string()))?;
    let items = match value {
        Value::Array(items) => items,
        // Careless tools write a single image this way.
        Value::Object(item) => vec![Value::Object(item)],
        Value::Null => Vec::new(),
        _ => return Err(bad("is not a list".to_owned())),
    };
    let mut images = Vec::new();
    for item in items {
        let object = document::object(item).ok_or_else(|| bad("an entry is not an object".to_owned()))?;
        let object = document::normal(object, document::ARCHIVE_ITEM).map_err(bad)?;
        let item = Item::deserialize(Value::Object(object)).map_err(|error| bad(error.to_string()))?;
        images.push(image(archive, item)?);
    }
    Ok(images)
}

fn image(archive: &Archive, item: Item) -> Result<FoundImage> {
    let location = archive.locate(&item.config);
    if item.config.is_empty() {
        return Err(ImageError::document(archive.locate("manifest.json"), "an image has no Config"));
    }
    let bytes = archive.document(&item.config)?;
    if let Some(promised) = digest_in_name(&item.config) {
        check(&location, &promised, &Digest::of(&bytes))?;
    }
    let config = ImageConfig::parse(&location, bytes)?;
    let members = item.layers;
    if members.len() != config.diff_ids().len() {
        let reason = format!("names {} layers, manifest.json {}", config.diff_ids().len(), members.len());
        return Err(ImageError::document(location, reason));
    }
    let layer = |(member, &diff_id): (String, &Digest)| FoundLayer { member, diff_id, descriptor: None };
    let layers = members.into_iter().zip(config.diff_ids()).map(layer).collect();
    let names = usable_names(item.repo_tags.into_iter().filter(|name| !is_none(name)).collect());
    Ok(FoundImage { names, config, layers, manifest: None })
}

/// Docker writes this for an image without a name.
fn is_none(name: &str) -> bool {
    name.is_empty() || name == "<none>:<none>"
}

/// Leaves invalid names out: an archive must not add a name that the user cannot type.
pub(crate) fn usable_names(names: Vec<String>) -> Vec<Reference> {
    let usable = |name: String| match name.parse() {
        Ok(reference) => Some(reference),
        Err(error) => {
            tracing::warn!("{error}; the image is loaded without it");
            None
        }
    };
    names.into_iter().filter_map(usable).collect()
}
