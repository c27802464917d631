//! OCI image layouts, in a directory or a tar (OCI image specification 1.1, "Image Layout").

use serde::Deserialize;

use crate::image::archive::docker::usable_names;
use crate::image::archive::{Archive, FoundImage, FoundLayer, blob_member};
use crate::image::config::ImageConfig;
use crate::image::error::{ImageError, Result};
use crate::image::reference::Reference;
use crate::image::spec::{self, Descriptor, IMAGE_NAME, Index, Manifest, Platform, REF_NAME};

/// Indexes can be nested; deeper ones are refused.
const INDEX_DEPTH: u32 = 8;

/// A blob of an index: another index, or a manifest.
enum Document {
    Index(Index),
    Manifest(Box<Manifest>, Vec<u8>),
}

pub(crate) fn images(archive: &Archive, platform: Option<&Platform>) -> Result<Vec<FoundImage>> {
    let index: Index = spec::parse(&archive.locate("index.json"), &archive.document("index.json")?)?;
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    let entries: Vec<&Descriptor> = index.descriptors().filter(|entry| !entry.is_attestation()).collect();
    let mut images: Vec<FoundImage> = Vec::new();
    for entry in &entries {
        if is_for_others(entry, &entries, &wanted, platform.is_some()) {
            continue;
        }
        let Some(mut image) = image(archive, entry, &wanted, 0)? else { continue };
        image.names = names_of(entry);
        match images.iter_mut().find(|known| known.config.id() == image.config.id()) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    if entries.is_empty() {
        return Err(archive.error("index.json lists no image"));
    }
    if images.is_empty() {
        return Err(no_platform(archive, &index, &wanted));
    }
    Ok(images)
}

/// True for an entry of another platform, if the user asked for a platform or another entry of the same name fits.
fn is_for_others(entry: &Descriptor, all: &[&Descriptor], wanted: &Platform, insist: bool) -> bool {
    let fits = |entry: &Descriptor| entry.platform.as_ref().is_none_or(|platform| platform.serves(wanted));
    let namesake =
        |other: &&Descriptor| other.annotations.get(REF_NAME) == entry.annotations.get(REF_NAME) && fits(other);
    !fits(entry) && (insist || all.iter().any(namesake))
}

/// The image of an entry. Returns `None` if it is not an image.
fn image(archive: &Archive, entry: &Descriptor, wanted: &Platform, depth: u32) -> Result<Option<FoundImage>> {
    if depth > INDEX_DEPTH {
        return Err(archive.error(format!("indexes are nested more than {INDEX_DEPTH} deep")));
    }
    match document(archive, entry)? {
        None => Ok(None),
        Some(Document::Manifest(manifest, bytes)) => from_manifest(archive, &manifest, bytes),
        Some(Document::Index(index)) => match index.choose(wanted) {
            Some(chosen) => image(archive, chosen, wanted, depth + 1),
            None => Err(no_platform(archive, &index, wanted)),
        },
    }
}

fn no_platform(archive: &Archive, index: &Index, wanted: &Platform) -> ImageError {
    let platforms: Vec<String> = index.platforms().map(Platform::to_string).collect();
    let has = if platforms.is_empty() { String::new() } else { format!("; it has {}", platforms.join(", ")) };
    archive.error(format!("holds no image for {wanted}{has}"))
}

/// Reads the document of an entry. Its media type decides what it is; if that is missing or unspecific, its fields do.
fn document(archive: &Archive, entry: &Descriptor) -> Result<Option<Document>> {
    let known = entry.is_index() || entry.is_manifest();
    if !known && !entry.is_of_any_type() {
        tracing::warn!("{}: {:?} is no image and is left out", archive.name(), entry.media_type);
        return Ok(None);
    }
    let bytes = archive.blob_document(entry)?;
    let location = archive.locate(&blob_member(&entry.digest));
    let shape: Shape = spec::parse(&location, &bytes)?;
    // A document that can be read as both kinds would mean different things to different programs (CVE-2021-41190).
    if shape.manifests.is_some() && (shape.config.is_some() || shape.layers.is_some()) {
        return Err(ImageError::document(location, "is an index and a manifest at the same time"));
    }
    let is_index = if known { entry.is_index() } else { shape.manifests.is_some() };
    if is_index {
        return Ok(Some(Document::Index(spec::parse(&location, &bytes)?)));
    }
    if !known && shape.config.is_none() {
        tracing::warn!("{}: {location} is no image and is left out", archive.name());
        return Ok(None);
    }
    Ok(Some(Document::Manifest(Box::new(spec::parse(&location, &bytes)?), bytes)))
}

/// Which of the fields that distinguish an index from a manifest are present.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

fn from_manifest(archive: &Archive, manifest: &Manifest, bytes: Vec<u8>) -> Result<Option<FoundImage>> {
    let kind = manifest.config.media_type.as_str();
    if !spec::is_image_config(kind) {
        tracing::warn!("{}: an artifact with a config of type {kind:?} is no image and is left out", archive.name());
        return Ok(None);
    }
    let location = archive.locate(&blob_member(&manifest.config.digest));
    let config = ImageConfig::parse(&location, archive.blob_document(&manifest.config)?)?;
    if manifest.layers.len() != config.diff_ids().len() {
        let reason = format!("names {} layers, its manifest {}", config.diff_ids().len(), manifest.layers.len());
        return Err(ImageError::document(location, reason));
    }
    let layer = |(descriptor, &diff_id): (&Descriptor, _)| FoundLayer {
        member: blob_member(&descriptor.digest),
        diff_id,
        descriptor: Some(descriptor.clone()),
    };
    let layers = manifest.layers.iter().zip(config.diff_ids()).map(layer).collect();
    Ok(Some(FoundImage { names: Vec::new(), config, layers, manifest: Some(bytes) }))
}

/// The name of a layout's entry: containerd's full name, or else the reference if it is more than a tag.
fn names_of(entry: &Descriptor) -> Vec<Reference> {
    let full = entry.annotations.get(IMAGE_NAME);
    let reference = entry.annotations.get(REF_NAME).filter(|name| name.contains([':', '/']));
    usable_names(full.or(reference).cloned().into_iter().collect())
}
