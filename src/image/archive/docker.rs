//! Docker-archives: `manifest.json` lists the images (moby's "Docker Image Specification v1.2", "Combined Image
//! JSON + Filesystem Changeset Format"). Docker >= 25 writes an OCI layout around it.

use serde::Deserialize;

use crate::image::archive::{Archive, FoundImage, FoundLayer, check, digest_in_name};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::spec;
use crate::image::{ImageError, Result};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(crate) fn images(archive: &Archive) -> Result<Vec<FoundImage>> {
    let items: Vec<Item> = spec::parse(&archive.locate("manifest.json"), &archive.document("manifest.json")?)?;
    items.into_iter().map(|item| image(archive, item)).collect()
}

fn image(archive: &Archive, item: Item) -> Result<FoundImage> {
    let location = archive.locate(&item.config);
    let bytes = archive.document(&item.config)?;
    if let Some(promised) = digest_in_name(&item.config) {
        check(&location, &promised, &Digest::of(&bytes))?;
    }
    let config = ImageConfig::parse(&location, bytes)?;
    let members = item.layers.unwrap_or_default();
    if members.len() != config.diff_ids().len() {
        let reason = format!("names {} layers, manifest.json {}", config.diff_ids().len(), members.len());
        return Err(ImageError::document(location, reason));
    }
    let layer = |(member, &diff_id): (String, &Digest)| FoundLayer { member, diff_id, descriptor: None };
    let layers = members.into_iter().zip(config.diff_ids()).map(layer).collect();
    let names = usable_names(item.repo_tags.unwrap_or_default());
    Ok(FoundImage { names, config, layers, manifest: None })
}

/// Names that are none are left out: an archive must not plant a name that the user cannot type.
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
