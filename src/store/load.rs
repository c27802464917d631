//! Loads an archive into the store.

use std::fs::File;
use std::io;

use crate::image::archive::{Archive, ArchiveInput, FoundImage, FoundLayer, Spooling, check, digest_in_name, size};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::spec::Platform;
use crate::image::unpack::UnpackOptions;
use crate::image::{IoContext, Result};
use crate::store::{LayerEvent, NewLayer, Slot, StoredLayer, Transaction, rounds};

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The platform to choose from an index with several; `None` for this machine's.
    pub platform: Option<Platform>,
    /// Keep compressed layers and original manifests.
    pub keep_blobs: bool,
    /// How to unpack layers.
    pub unpack: UnpackOptions,
}

/// Receives progress.
pub trait Progress {
    /// A layer is already in the store.
    fn exists(&mut self, diff_id: &Digest);
    /// A layer of this size, perhaps compressed, begins.
    fn begins(&mut self, diff_id: &Digest, size: u64);
    /// This many more bytes were read.
    fn advances(&mut self, bytes: u64);
    /// The layer is complete.
    fn ends(&mut self, diff_id: &Digest);
}

/// Ignores all progress.
impl Progress for () {
    fn exists(&mut self, _: &Digest) {}
    fn begins(&mut self, _: &Digest, _: u64) {}
    fn advances(&mut self, _: u64) {}
    fn ends(&mut self, _: &Digest) {}
}

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names that it got.
    pub names: Vec<Reference>,
}

/// Opens an archive to be loaded. If it must be spooled, layers that the store has are left out.
///
/// # Errors
/// When it cannot be read.
pub fn open(into: &Transaction<'_>, source: ArchiveInput<'_>, options: &LoadOptions) -> Result<Archive> {
    let known = |member: &str| {
        let digest = digest_in_name(member).filter(|_| !options.keep_blobs);
        digest.is_some_and(|digest| matches!(into.find_layer(&[], &digest), Ok(Some(_))))
    };
    Archive::open(source, &Spooling { scratch: into.scratch(), skip: &known, limits: &options.unpack.limits })
}

/// Adds all images of an archive; the caller publishes. A layer that is in the store is not read.
///
/// # Errors
/// When the archive is malformed or contradicts itself; nothing may be published then.
pub fn load(
    into: &mut Transaction<'_>,
    archive: &Archive,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<Loaded>> {
    let images = archive.images(options.platform.as_ref(), options.keep_blobs)?;
    images.into_iter().map(|image| add(into, archive, image, options, progress)).collect()
}

fn add(
    into: &mut Transaction<'_>,
    archive: &Archive,
    image: FoundImage,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Loaded> {
    let stack = add_stack(into, archive, &image.layers, options, progress)?;
    let original = match image.manifest.filter(|_| options.keep_blobs) {
        Some(bytes) => Some(into.add_blob(&bytes)?),
        None => None,
    };
    into.add_image(&image.config, &stack, &image.names, original)?;
    Ok(Loaded { id: image.config.id(), names: image.names })
}

/// Adds all layers of an image; missing ones are unpacked in parallel.
fn add_stack(
    into: &mut Transaction<'_>,
    archive: &Archive,
    layers: &[FoundLayer],
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<StoredLayer>> {
    let mut stack: Vec<StoredLayer> = Vec::new();
    for now in rounds(layers, |found| found.diff_id, &options.unpack) {
        stack = add_some(into, archive, stack, now, options, progress)?;
    }
    if options.keep_blobs {
        layers.iter().try_for_each(|found| keep_blob(into, archive, found))?;
    }
    Ok(stack)
}

/// Adds some layers on top of existing ones.
fn add_some(
    into: &mut Transaction<'_>,
    archive: &Archive,
    below: Vec<StoredLayer>,
    layers: &[FoundLayer],
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<StoredLayer>> {
    let offset = below.len();
    let mut diff_ids: Vec<Digest> = below.iter().map(|layer| layer.record.diff_id).collect();
    let mut slots: Vec<Slot<'_>> = below.into_iter().map(Slot::There).collect();
    let mut lengths = vec![0; layers.len()];
    for (found, length) in layers.iter().zip(&mut lengths) {
        slots.push(match into.find_layer_on(&diff_ids, &found.diff_id)? {
            Some(layer) => {
                progress.exists(&found.diff_id);
                Slot::There(layer)
            }
            None => {
                let name = archive.locate(&found.member);
                let input = archive.member(&found.member)?;
                *length = input.remaining();
                if let Some(descriptor) = &found.descriptor {
                    check(&name, &size(descriptor.size), &size(*length))?;
                }
                Slot::New(NewLayer { name, expected: found.diff_id, input: Box::new(input) })
            }
        });
        diff_ids.push(found.diff_id);
    }
    let new: Vec<bool> = slots.iter().map(|slot| matches!(slot, Slot::New(_))).collect();
    let added = into.add_layers(slots, &options.unpack, &mut |slot, step| {
        let at = slot - offset;
        match step {
            LayerEvent::Begins => progress.begins(&layers[at].diff_id, lengths[at]),
            LayerEvent::Advances(bytes) => progress.advances(bytes),
            LayerEvent::Ends => progress.ends(&layers[at].diff_id),
            LayerEvent::Fails => {}
        }
    })?;
    let checked = layers.iter().zip(added.iter().zip(new).skip(offset)).filter(|(_, (_, new))| *new);
    for (found, (added, _)) in checked {
        if let Some(descriptor) = &found.descriptor {
            let (digest, bytes) = added.compressed.unwrap_or((added.layer.record.diff_id, added.layer.record.size));
            check(&archive.locate(&found.member), &descriptor.digest, &digest)?;
            check(&archive.locate(&found.member), &size(descriptor.size), &size(bytes))?;
        }
    }
    Ok(added.into_iter().map(|added| added.layer).collect())
}

/// Keeps a layer's blob if it is compressed; an uncompressed one can be re-assembled.
fn keep_blob(into: &mut Transaction<'_>, archive: &Archive, found: &FoundLayer) -> Result<()> {
    let Some(descriptor) = found.descriptor.as_ref().filter(|descriptor| descriptor.digest != found.diff_id) else {
        return Ok(());
    };
    let path = into.scratch().join("kept");
    let mut reader = crate::image::digest::DigestReader::new(archive.member(&found.member)?);
    let mut file = File::create(&path).at(&path)?;
    io::copy(&mut reader, &mut file).at(archive.locate(&found.member))?;
    let (_, digest, _) = reader.finish();
    check(&archive.locate(&found.member), &descriptor.digest, &digest)?;
    into.add_blob_file(digest, &path)
}
