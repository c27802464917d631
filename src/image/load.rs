//! Archive to store.

use std::fs::File;
use std::io::{self, Read};

use super::archive::{Archive, FoundImage, FoundLayer, Source, Spooling, check, digest_in_name, size};
use super::digest::Digest;
use super::layer::UnpackOptions;
use super::reference::Reference;
use super::spec::Platform;
use super::store::{Layer, Transaction};
use super::{IoContext, Result};

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which image of an index with several platforms; none: this machine's.
    pub platform: Option<Platform>,
    /// Keep compressed layers and original manifests.
    pub keep_blobs: bool,
    /// How to unpack layers.
    pub unpack: UnpackOptions,
}

/// Who wants to know how far it is.
pub trait Progress {
    /// A layer is in the store already.
    fn exists(&mut self, diff_id: &Digest);
    /// A layer of so many (perhaps compressed) bytes begins.
    fn begins(&mut self, diff_id: &Digest, size: u64);
    /// More of it was read.
    fn advances(&mut self, bytes: u64);
    /// It is complete.
    fn ends(&mut self, diff_id: &Digest);
}

/// Nobody does.
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
    /// The names it got.
    pub names: Vec<Reference>,
}

/// Opens an archive to be loaded. Of one that must be spooled, layers that the store has are left out.
///
/// # Errors
/// When it cannot be read.
pub fn open(into: &Transaction<'_>, source: Source<'_>, options: &LoadOptions) -> Result<Archive> {
    let known = |member: &str| {
        let digest = digest_in_name(member).filter(|_| !options.keep_blobs);
        digest.is_some_and(|digest| matches!(into.find_layer(&[], &digest), Ok(Some(_))))
    };
    Archive::open(source, &Spooling { scratch: into.scratch(), skip: &known, limits: &options.unpack.limits })
}

/// Adds all images of an archive; the caller publishes. Of a layer that is in the store nothing is read.
///
/// # Errors
/// When the archive is bad or not what it says; nothing must then be published.
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
    let mut stack: Vec<Layer> = Vec::new();
    for found in &image.layers {
        let layer = match into.find_layer(&stack, &found.diff_id)? {
            Some(layer) => {
                progress.exists(&found.diff_id);
                layer
            }
            None => add_layer(into, archive, &stack, found, options, progress)?,
        };
        if options.keep_blobs {
            keep_blob(into, archive, found)?;
        }
        stack.push(layer);
    }
    let original = match image.manifest.filter(|_| options.keep_blobs) {
        Some(bytes) => Some(into.add_blob(&bytes)?),
        None => None,
    };
    into.add_image(&image.config, &stack, &image.names, original)?;
    Ok(Loaded { id: image.config.id(), names: image.names })
}

fn add_layer(
    into: &mut Transaction<'_>,
    archive: &Archive,
    below: &[Layer],
    found: &FoundLayer,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Layer> {
    let location = archive.locate(&found.member);
    let member = archive.member(&found.member)?;
    let length = member.remaining();
    if let Some(descriptor) = &found.descriptor {
        check(&location, &size(descriptor.size), &size(length))?;
    }
    progress.begins(&found.diff_id, length);
    let mut input = Counted { inner: member, progress };
    let added = into.add_layer(&location, below, Some(&found.diff_id), &mut input, &options.unpack)?;
    if let Some(descriptor) = &found.descriptor {
        let (digest, bytes) = added.compressed.unwrap_or((added.layer.record.diff_id, added.layer.record.size));
        check(&location, &descriptor.digest, &digest)?;
        check(&location, &size(descriptor.size), &size(bytes))?;
    }
    progress.ends(&found.diff_id);
    Ok(added.layer)
}

/// Keeps a layer's blob if it is compressed; an uncompressed one can be re-assembled.
fn keep_blob(into: &mut Transaction<'_>, archive: &Archive, found: &FoundLayer) -> Result<()> {
    let Some(descriptor) = found.descriptor.as_ref().filter(|descriptor| descriptor.digest != found.diff_id) else {
        return Ok(());
    };
    let path = into.scratch().join("kept");
    let mut reader = super::digest::DigestReader::new(archive.member(&found.member)?);
    let mut file = File::create(&path).at(&path)?;
    io::copy(&mut reader, &mut file).at(archive.locate(&found.member))?;
    let (_, digest, _) = reader.finish();
    check(&archive.locate(&found.member), &descriptor.digest, &digest)?;
    into.add_blob_file(digest, &path)
}

struct Counted<'p, R> {
    inner: R,
    progress: &'p mut dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advances(count as u64);
        Ok(count)
    }
}
