//! The images of a store: listing, finding, naming, removing.

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::nearest;
use crate::image::reference::{ImageQuery, Reference};
use crate::image::spec::{self, Descriptor, Index, IndexEntry, Manifest};
use crate::image::{ImageError, Result};
use crate::store::annotations::{ORIGINAL_MANIFEST, REPO_DIGESTS};
use crate::store::index::{self, name_of};
use crate::store::{Freed, Layer, Store};

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its entry in the index, without a name.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its names, in order.
    pub names: Vec<Reference>,
}

/// What a removal did.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// Names that were taken away.
    pub untagged: Vec<Reference>,
    /// The image, if it went with its last name.
    pub deleted: Option<Digest>,
    /// What that freed.
    pub freed: Freed,
}

impl Image {
    /// The image's id: the digest of its configuration.
    pub fn id(&self) -> Digest {
        self.manifest.config.digest
    }

    /// Bytes of its layers as tars.
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum()
    }

    /// The digest of the manifest that it was loaded with, if that was kept.
    pub fn original_manifest(&self) -> Option<Digest> {
        self.descriptor.annotations.get(ORIGINAL_MANIFEST)?.parse().ok()
    }

    /// Where it was pulled from and pushed to: `NAME@DIGEST`.
    pub fn repo_digests(&self) -> Vec<&str> {
        self.descriptor.annotations.get(REPO_DIGESTS).map(|list| list.split(' ').collect()).unwrap_or_default()
    }

    /// True if it has this digest in the repository of `name`.
    fn has_digest(&self, name: &Reference, digest: &Digest) -> bool {
        let elsewhere = name.at_digest(digest);
        self.repo_digests().contains(&elsewhere.as_str())
    }

    /// How to call it in a message: a name or the short id.
    pub fn label(&self) -> String {
        self.names.first().map_or_else(|| short_id(&self.id()), Reference::to_string)
    }
}

/// The first 12 digits, as docker shows ids.
pub fn short_id(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

impl Store {
    /// Every image, the newest first. Entries that cannot be read are left out with a warning.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images: Vec<Image> = Vec::new();
        for entry in self.index()?.descriptors().filter(|entry| entry.is_manifest()) {
            let name = name_of(entry);
            if let Some(known) = images.iter_mut().find(|image| image.descriptor.digest == entry.digest) {
                known.names.extend(name);
                continue;
            }
            match self.read_image(entry) {
                Ok(image) => images.push(Image { names: name.into_iter().collect(), ..image }),
                Err(error) => tracing::warn!("image {}: {error}", entry.digest),
            }
        }
        images.iter_mut().for_each(|image| image.names.sort());
        images.sort_by_key(|image| std::cmp::Reverse(image.config.created().unwrap_or_default()));
        Ok(images)
    }

    pub(super) fn read_image(&self, entry: &Descriptor) -> Result<Image> {
        let bytes = self.read_blob(&entry.digest)?;
        let manifest: Manifest = spec::parse(&format!("manifest {}", entry.digest), &bytes)?;
        let config = self.read_blob(&manifest.config.digest)?;
        let config = ImageConfig::parse(&format!("config {}", manifest.config.digest), config)?;
        Ok(Image { descriptor: entry.clone(), manifest, config, names: Vec::new() })
    }

    /// The image that the user means by `text`: a name, an id, or the beginning of an id.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find(&self, text: &str) -> Result<Image> {
        let images = self.images()?;
        match text.parse()? {
            ImageQuery::Named(name, None) => {
                by_name(&images, &name).ok_or_else(|| no_such_image(&images, text, Some(&name)))
            }
            ImageQuery::Named(name, Some(digest)) => by_name(&images, &name)
                .filter(|image| digest == image.descriptor.digest)
                .or_else(|| images.iter().find(|image| image.has_digest(&name, &digest)))
                .ok_or_else(|| no_such_image(&images, text, Some(&name))),
            ImageQuery::Id(id) => by_id(&images, &id)?.ok_or_else(|| no_such_image(&images, text, None)),
            ImageQuery::NamedOrId(name, id) => match by_name(&images, &name) {
                Some(image) => Ok(image),
                None => by_id(&images, &id)?.ok_or_else(|| no_such_image(&images, text, Some(&name))),
            },
        }
        .cloned()
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// When the index cannot be changed.
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<()> {
        let _lock = self.lock_shared()?;
        self.update_index(|index| {
            refuse_if_gone(index, image)?;
            index::add(index, &image.descriptor, std::slice::from_ref(name));
            Ok(())
        })
    }

    /// For who holds the lock, and so keeps it from being removed: an error if an image found before is there no more.
    ///
    /// # Errors
    /// When it is gone, or the index cannot be read.
    pub fn refuse_if_gone(&self, image: &Image) -> Result<()> {
        refuse_if_gone(&self.index()?, image)
    }

    /// Takes away the name by which `text` means an image, and the image with its last name. Meant by its id, an
    /// image goes with its only name; several need `force`, as does an image that a container is made of.
    ///
    /// # Errors
    /// When there is no such image, or it is in use.
    pub fn remove(&self, text: &str, force: bool) -> Result<Removed> {
        let _lock = self.lock_exclusive()?;
        let image = self.find(text)?;
        let named = match text.parse()? {
            ImageQuery::Named(name, _) | ImageQuery::NamedOrId(name, _) => {
                [Some(name.clone()), name.at_localhost()].into_iter().flatten().find(|name| image.names.contains(name))
            }
            ImageQuery::Id(_) => None,
        };
        let untagged = match named {
            Some(name) => vec![name],
            None if image.names.len() > 1 && !force => {
                let names = image.names.iter().map(Reference::to_string).collect::<Vec<_>>().join(", ");
                return Err(ImageError::refused(
                    text,
                    format!("has several names ({names}); remove those, or --force"),
                ));
            }
            None => image.names.clone(),
        };
        let goes = untagged.len() == image.names.len();
        if goes && !force {
            self.refuse_if_used(&image)?;
        }
        self.update_index(|index| {
            for name in &untagged {
                index::remove_name(index, name);
            }
            if goes {
                let entry_of_image = |entry: &IndexEntry| {
                    entry.descriptor().is_some_and(|entry| entry.digest == image.descriptor.digest)
                };
                index.manifests.retain(|entry| !entry_of_image(entry));
            }
            Ok(())
        })?;
        let freed = if goes { self.sweep()? } else { Freed::default() };
        Ok(Removed { untagged, deleted: goes.then(|| image.id()), freed })
    }

    fn refuse_if_used(&self, image: &Image) -> Result<()> {
        match self.container_roots()?.into_iter().find(|container| container.image == image.id()) {
            Some(container) => {
                let reason = format!("container {} is made of it; remove that first, or --force", container.name);
                Err(ImageError::refused(image.label(), reason))
            }
            None => Ok(()),
        }
    }

    /// The layers of an image found by [`find`](Self::find), the lowest first.
    ///
    /// # Errors
    /// When one is not in the store.
    pub fn layers_of(&self, image: &Image) -> Result<Vec<Layer>> {
        self.stack(&image.config)
    }
}

fn refuse_if_gone(index: &Index, image: &Image) -> Result<()> {
    match index.descriptors().any(|entry| entry.digest == image.descriptor.digest) {
        true => Ok(()),
        false => Err(ImageError::refused(image.label(), "was removed meanwhile")),
    }
}

/// A name without a registry may also mean podman's `localhost/NAME`.
fn by_name<'i>(images: &'i [Image], name: &Reference) -> Option<&'i Image> {
    let bearing = |name: &Reference| images.iter().find(|image| image.names.contains(name));
    bearing(name).or_else(|| bearing(&name.at_localhost()?))
}

/// By the beginning of the image's id, or the whole digest of its manifest.
fn by_id<'i>(images: &'i [Image], id: &str) -> Result<Option<&'i Image>> {
    let fits = |image: &&Image| image.id().hex().starts_with(id) || image.descriptor.digest.hex() == id;
    let found: Vec<&Image> = images.iter().filter(fits).collect();
    match found.as_slice() {
        [] => Ok(None),
        [image] => Ok(Some(image)),
        several => {
            let candidates = several.iter().map(|image| short_id(&image.id())).collect::<Vec<_>>().join(", ");
            Err(ImageError::Ambiguous { prefix: id.to_owned(), candidates })
        }
    }
}

fn no_such_image(images: &[Image], text: &str, name: Option<&Reference>) -> ImageError {
    let names: Vec<String> = images.iter().flat_map(|image| &image.names).map(Reference::to_string).collect();
    let asked = name.map_or_else(|| text.to_owned(), Reference::to_string);
    ImageError::NoSuchImage { name: text.to_owned(), near: nearest(&asked, names.iter().map(String::as_str)) }
}
