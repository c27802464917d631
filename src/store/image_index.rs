//! `index.json`: the images and their names. It has one entry for each name of an image, or one entry without a name.

use std::collections::HashSet;
use std::fs::File;

use crate::image::digest::Digest;
use crate::image::files::read_limited;
use crate::image::reference::Reference;
use crate::image::spec::{self, Descriptor, IMAGE_NAME, Index, IndexEntry, REF_NAME};
use crate::image::{IoContext, Result};
use crate::store::annotations::{ORIGINAL_MANIFEST, REPO_DIGESTS, VERIFIED_BLOBS};
use crate::store::{StagedFile, Store};

impl Store {
    pub(super) fn index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        let name = path.display().to_string();
        if self.is_nothing() {
            return Ok(Index::new(Vec::new()));
        }
        let bytes = read_limited(&mut File::open(&path).at(&path)?, &name)?;
        spec::parse(&name, &bytes)
    }

    /// The marks ([`crate::store::blob_mark`]) of all blobs that were verified to be layers of the store's images.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) fn verified_blobs(&self) -> Result<HashSet<String>> {
        let index = self.index()?;
        let lists = index.descriptors().filter_map(|entry| entry.annotations.get(VERIFIED_BLOBS));
        Ok(lists.flat_map(|list| list.split(' ')).map(str::to_owned).collect())
    }

    /// Changes the index exclusively and durably.
    pub(super) fn update_index<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        self.update_index_after(change, || Ok(()))
    }

    /// Changes the index exclusively and durably, after `publish` has put everything in place that the change names. The new
    /// index is already on the disk when `publish` runs: a full disk is noticed before anything is published.
    pub(super) fn update_index_after<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T>,
        publish: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        let _lock = self.lock_index()?;
        let before = self.index()?;
        let mut index = before.clone();
        let outcome = change(&mut index)?;
        let changed = match index != before {
            true => Some(StagedFile::new(&self.tmp(), &spec::serialize("index.json", &index)?)?),
            false => None,
        };
        publish()?;
        if let Some(staged) = changed {
            staged.publish(&self.root.join("index.json"))?;
        }
        Ok(outcome)
    }
}

/// The image name of an entry.
pub(super) fn name_of(entry: &Descriptor) -> Option<Reference> {
    let full = entry.annotations.get(IMAGE_NAME).and_then(|name| name.parse().ok());
    full.or_else(|| entry.annotations.get(REF_NAME)?.parse().ok())
}

/// Adds words to an annotation that is a list of words, unless they are in it.
pub(super) fn add_words(entry: &mut Descriptor, annotation: &str, words: &str) {
    let list = entry.annotations.entry(annotation.to_owned()).or_default();
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        if !list.split(' ').any(|known| known == word) {
            list.push_str(if list.is_empty() { "" } else { " " });
            list.push_str(word);
        }
    }
}

/// Copies what is known of an image to all its entries: where it was seen, and its original manifest.
fn share_knowledge(index: &mut Index, manifest: &Descriptor) {
    let mut known = manifest.clone();
    for entry in index.descriptors().filter(|entry| entry.digest == manifest.digest) {
        for (name, text) in &entry.annotations {
            match name.as_str() {
                REPO_DIGESTS | VERIFIED_BLOBS => add_words(&mut known, name, text),
                ORIGINAL_MANIFEST => drop(known.annotations.entry(name.clone()).or_insert_with(|| text.clone())),
                _ => {}
            }
        }
    }
    for entry in &mut index.manifests {
        let IndexEntry::Known(entry) = entry else { continue };
        if entry.digest == manifest.digest {
            for name in [REPO_DIGESTS, VERIFIED_BLOBS, ORIGINAL_MANIFEST] {
                let text = known.annotations.get(name).cloned();
                entry.annotations.extend(text.map(|text| (name.to_owned(), text)));
            }
        }
    }
}

/// Adds an image under `names`, which other images lose. An image without a name is added only once.
pub(super) fn add(index: &mut Index, manifest: &Descriptor, names: &[Reference]) {
    add_entries(index, manifest, names);
    share_knowledge(index, manifest);
}

fn add_entries(index: &mut Index, manifest: &Descriptor, names: &[Reference]) {
    for name in names {
        take_name(index, name, &manifest.digest);
    }
    let mut bare = manifest.clone();
    bare.annotations.remove(REF_NAME);
    bare.annotations.remove(IMAGE_NAME);
    if names.is_empty() {
        if !index.descriptors().any(|entry| entry.digest == manifest.digest) {
            index.manifests.push(bare.into());
        }
        return;
    }
    index.manifests.retain(|entry| !is_nameless(entry, &manifest.digest));
    for name in names {
        let mut entry = bare.clone();
        entry.annotations.insert(REF_NAME.to_owned(), name.to_string());
        entry.annotations.insert(IMAGE_NAME.to_owned(), name.full());
        index.manifests.push(entry.into());
    }
}

fn is_nameless(entry: &IndexEntry, digest: &Digest) -> bool {
    entry.descriptor().is_some_and(|entry| entry.digest == *digest && name_of(entry).is_none())
}

/// Removes `name` from the images that have it. An image other than `heir` that loses its last name stays without a name.
fn take_name(index: &mut Index, name: &Reference, heir: &Digest) {
    for manifest in remove_name(index, name) {
        let still_listed = index.descriptors().any(|entry| entry.digest == manifest.digest);
        if manifest.digest != *heir && !still_listed {
            index.manifests.push(manifest.into());
        }
    }
}

/// Removes the entries of `name`; returns them without the name.
pub(super) fn remove_name(index: &mut Index, name: &Reference) -> Vec<Descriptor> {
    let mut removed = Vec::new();
    index.manifests.retain(|entry| match entry.descriptor() {
        Some(descriptor) if name_of(descriptor).as_ref() == Some(name) => {
            let mut bare = descriptor.clone();
            bare.annotations.remove(REF_NAME);
            bare.annotations.remove(IMAGE_NAME);
            removed.push(bare);
            false
        }
        _ => true,
    });
    removed
}

/// Removes the entries for which `goes` is true; returns them. Foreign ones stay.
pub(super) fn remove_entries(index: &mut Index, goes: impl Fn(&Descriptor) -> bool) -> Vec<Descriptor> {
    let mut removed = Vec::new();
    index.manifests.retain(|entry| match entry.descriptor() {
        Some(descriptor) if goes(descriptor) => {
            removed.push(descriptor.clone());
            false
        }
        _ => true,
    });
    removed
}

/// Removes a word from an annotation that is a list of words, in every entry of a manifest.
pub(super) fn remove_word(index: &mut Index, manifest: &Digest, annotation: &str, word: &str) {
    for entry in &mut index.manifests {
        let IndexEntry::Known(entry) = entry else { continue };
        let Some(list) = entry.annotations.get_mut(annotation).filter(|_| entry.digest == *manifest) else { continue };
        *list = list.split(' ').filter(|known| *known != word).collect::<Vec<_>>().join(" ");
        if list.is_empty() {
            entry.annotations.remove(annotation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Descriptor {
        Descriptor::of(spec::MANIFEST, text.as_bytes())
    }

    fn names(index: &Index) -> Vec<(Digest, Option<String>)> {
        index.descriptors().map(|entry| (entry.digest, name_of(entry).map(|name| name.to_string()))).collect()
    }

    #[test]
    fn a_name_moves_and_its_old_image_stays() {
        let (old, new) = (manifest("old"), manifest("new"));
        let name: Reference = "a".parse().expect("name");
        let other: Reference = "b".parse().expect("name");
        let mut index = Index::new(vec![]);
        add(&mut index, &old, &[]);
        add(&mut index, &old, &[]);
        assert_eq!(names(&index), [(old.digest, None)]);
        add(&mut index, &old, std::slice::from_ref(&name));
        assert_eq!(names(&index), [(old.digest, Some("a:latest".to_owned()))]);
        add(&mut index, &new, &[name.clone(), other]);
        assert_eq!(
            names(&index),
            [(old.digest, None), (new.digest, Some("a:latest".to_owned())), (new.digest, Some("b:latest".to_owned()))]
        );
        add(&mut index, &old, &[name]);
        assert_eq!(
            names(&index),
            [(new.digest, Some("b:latest".to_owned())), (old.digest, Some("a:latest".to_owned()))]
        );
    }
}
