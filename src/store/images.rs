//! The images of a store: listing, finding, naming and removing them.

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::nearest;
use crate::image::reference::{ImageQuery, Reference};
use crate::image::spec::{self, Descriptor, Index, Manifest};
use crate::image::{ImageError, Result};
use crate::store::annotations::{ORIGINAL_MANIFEST, REPO_DIGESTS};
use crate::store::image_index::{self, name_of};
use crate::store::{Freed, Store, StoredLayer};

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its index entry, without a name.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its names, sorted.
    pub names: Vec<Reference>,
}

/// The result of a removal.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// Names that were removed, in docker's short form; also `NAME@DIGEST`.
    pub untagged: Vec<String>,
    /// The image, if it was removed with its last name.
    pub deleted: Option<Digest>,
    /// The space that was freed.
    pub freed: Freed,
}

impl Image {
    /// The image's id: the digest of its configuration.
    pub fn id(&self) -> Digest {
        self.manifest.config.digest
    }

    /// Total size of its layers as tars.
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum()
    }

    /// The digest of the manifest that it was loaded with, if it was kept.
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

    /// Its label in messages: a name or the short id.
    pub fn label(&self) -> String {
        self.names.first().map_or_else(|| short_id(&self.id()), Reference::to_string)
    }
}

/// The first 12 digits, as in docker's output.
pub fn short_id(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

impl Store {
    /// Every image, the newest first. Unreadable entries are left out, with a warning.
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
                // It was removed after the index was read.
                Err(_) if !self.index()?.descriptors().any(|known| known.digest == entry.digest) => {}
                Err(error) => {
                    let name = name.map_or_else(|| short_id(&entry.digest), |name| name.to_string());
                    tracing::warn!("image {name} is damaged: {error}; load it again, or strata rmi {name}");
                }
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

    /// The image that the user's `text` refers to: a name, an id, or the beginning of an id.
    ///
    /// # Errors
    /// When there is none, or there are several.
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
            image_index::add(index, &image.descriptor, std::slice::from_ref(name));
            Ok(())
        })
    }

    /// Fails if an image was removed after it was found. The caller holds the lock, so it cannot be removed after this.
    ///
    /// # Errors
    /// When it is gone, or the index cannot be read.
    pub(crate) fn refuse_if_gone(&self, image: &Image) -> Result<()> {
        refuse_if_gone(&self.index()?, image)
    }

    /// Removes the name by which `text` refers to an image; the image is removed with its last name. If `text` is an id, the
    /// image is removed with its only name. Several names need `force`, and so does an image with containers. `NAME@DIGEST`
    /// removes only that reference. An unreadable entry of the index can be removed by its name or its digest.
    ///
    /// # Errors
    /// When there is no such image, or it is in use.
    pub fn remove(&self, text: &str, force: bool) -> Result<Removed> {
        let _lock = self.lock_exclusive()?;
        let query: ImageQuery = text.parse()?;
        let image = match self.find(text) {
            Ok(image) => image,
            Err(error @ ImageError::NoSuchImage { .. }) => return self.remove_unreadable(&query)?.ok_or(error),
            Err(error) => return Err(error),
        };
        let named = match &query {
            ImageQuery::Named(name, Some(digest)) => return self.remove_digest(&image, name, digest, force),
            ImageQuery::Named(name, None) | ImageQuery::NamedOrId(name, _) => {
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
        if goes {
            return self.delete(&image, untagged.iter().map(Reference::to_string).collect(), force);
        }
        self.update_index(|index| {
            for name in &untagged {
                image_index::remove_name(index, name);
            }
            Ok(())
        })?;
        let untagged = untagged.iter().map(Reference::to_string).collect();
        Ok(Removed { untagged, deleted: None, freed: Freed::default() })
    }

    /// Removes an image with all its entries.
    fn delete(&self, image: &Image, untagged: Vec<String>, force: bool) -> Result<Removed> {
        if !force {
            self.refuse_if_used(image)?;
        }
        self.update_index(|index| {
            image_index::remove_entries(index, |entry| entry.digest == image.descriptor.digest);
            Ok(())
        })?;
        Ok(Removed { untagged, deleted: Some(image.id()), freed: self.sweep()? })
    }

    /// Removes `NAME@DIGEST`. An image that has neither a name nor another such reference is removed too.
    fn remove_digest(&self, image: &Image, name: &Reference, digest: &Digest, force: bool) -> Result<Removed> {
        let reference = name.at_digest(digest);
        let left = image.repo_digests().into_iter().filter(|known| *known != reference).count();
        if left == image.repo_digests().len() && !image.names.is_empty() {
            let names = image.names.iter().map(Reference::to_string).collect::<Vec<_>>().join(", ");
            let reason = format!("is no reference of its own; remove the image by its name ({names})");
            return Err(ImageError::refused(reference, reason));
        }
        if left == 0 && image.names.is_empty() {
            return self.delete(image, vec![reference], force);
        }
        self.update_index(|index| {
            image_index::remove_word(index, &image.descriptor.digest, REPO_DIGESTS, &reference);
            Ok(())
        })?;
        Ok(Removed { untagged: vec![reference], deleted: None, freed: Freed::default() })
    }

    /// Removes entries of the index whose image cannot be read; returns `None` if no entry matches the text.
    fn remove_unreadable(&self, query: &ImageQuery) -> Result<Option<Removed>> {
        let is_meant = |entry: &Descriptor| {
            let named = |name: &Reference| {
                let known = name_of(entry);
                known.as_ref() == Some(name) || known.is_some() && known == name.at_localhost()
            };
            let begins = |id: &str| entry.digest.hex().starts_with(id);
            match query {
                ImageQuery::Named(name, None) => named(name),
                ImageQuery::Named(name, Some(digest)) => named(name) && entry.digest == *digest,
                ImageQuery::Id(id) => begins(id),
                ImageQuery::NamedOrId(name, id) => named(name) || begins(id),
            }
        };
        let removed = self.update_index(|index| Ok(image_index::remove_entries(index, |entry| is_meant(entry))))?;
        if removed.is_empty() {
            return Ok(None);
        }
        let call =
            |entry: &Descriptor| name_of(entry).map_or_else(|| entry.digest.to_string(), |name| name.to_string());
        Ok(Some(Removed { untagged: removed.iter().map(call).collect(), deleted: None, freed: self.sweep()? }))
    }

    fn refuse_if_used(&self, image: &Image) -> Result<()> {
        match self.container_roots()?.sound.into_iter().find(|container| container.image == image.id()) {
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
    /// When a layer is not in the store.
    pub fn layers_of(&self, image: &Image) -> Result<Vec<StoredLayer>> {
        self.stack(&image.config)
    }
}

fn refuse_if_gone(index: &Index, image: &Image) -> Result<()> {
    match index.descriptors().any(|entry| entry.digest == image.descriptor.digest) {
        true => Ok(()),
        false => Err(ImageError::refused(image.label(), "was removed meanwhile")),
    }
}

/// A name without a registry may also refer to podman's `localhost/NAME`.
fn by_name<'i>(images: &'i [Image], name: &Reference) -> Option<&'i Image> {
    let bearing = |name: &Reference| images.iter().find(|image| image.names.contains(name));
    bearing(name).or_else(|| bearing(&name.at_localhost()?))
}

/// Finds an image by the beginning of its id, or by the whole digest of its manifest.
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
