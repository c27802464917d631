//! Removing what nothing refers to.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::files::{read_limited, remove_tree};
use crate::image::spec::{self, Descriptor, Index, IndexEntry, Manifest};
use crate::image::{ImageError, IoContext, Result};
use crate::store::annotations::ORIGINAL_MANIFEST;
use crate::store::{Layer, Store};

/// What a removal freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Layers removed.
    pub layers: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes of those layers' contents and of the blobs.
    pub bytes: u64,
}

/// What a container keeps from being removed: the part of `containers/NAME/container.json` that the image side
/// reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerRoot {
    #[serde(skip)]
    pub(super) name: String,
    pub(super) image: Digest,
    layers: Vec<Digest>,
    /// The configuration's and manifest's digests, so that a commit still finds its parent after `rmi --force`.
    #[serde(default)]
    blobs: Vec<Digest>,
}

#[derive(Default)]
struct Live {
    layers: HashSet<String>,
    blobs: HashSet<String>,
}

impl Store {
    /// Removes every layer and blob that neither an image nor a container refers to. Waits for writers at work.
    /// With `untagged`, images without a name go first, unless a container is made of them.
    ///
    /// # Errors
    /// When something that may refer to layers cannot be read: then nothing is removed.
    pub fn gc(&self, untagged: bool) -> Result<Freed> {
        let _lock = self.lock_exclusive()?;
        for entry in fs::read_dir(self.tmp()).at(self.tmp())? {
            remove_tree(&entry.at(self.tmp())?.path())?;
        }
        if untagged {
            self.forget_untagged()?;
        }
        self.sweep()
    }

    fn forget_untagged(&self) -> Result<()> {
        let used: Vec<Digest> = self.container_roots()?.into_iter().map(|container| container.image).collect();
        let idle: Vec<Digest> = self
            .images()?
            .into_iter()
            .filter(|image| image.names.is_empty() && !used.contains(&image.id()))
            .map(|image| image.descriptor.digest)
            .collect();
        self.update_index(|index| {
            let goes = |entry: &IndexEntry| entry.descriptor().is_some_and(|entry| idle.contains(&entry.digest));
            index.manifests.retain(|entry| !goes(entry));
            Ok(())
        })
    }

    /// Sweeps; the caller holds the lock exclusively.
    pub(super) fn sweep(&self) -> Result<Freed> {
        let live = self.live()?;
        let mut freed = Freed::default();
        for (name, path) in entries(&self.layers_dir())? {
            if !live.layers.contains(&name) {
                freed.layers += 1;
                freed.bytes += Layer::load(path.clone()).map_or(0, |layer| layer.record.content_size);
                self.discard(&name, &path)?;
            }
        }
        for (name, path) in entries(&self.root.join("blobs/sha256"))? {
            if !live.blobs.contains(&name) {
                freed.blobs += 1;
                freed.bytes += fs::symlink_metadata(&path).at(&path)?.len();
                fs::remove_file(&path).at(&path)?;
            }
        }
        Ok(freed)
    }

    /// Sweeps when something else has gone wrong, which is then what is to be told.
    pub(super) fn sweep_after_failure(&self) {
        if let Err(error) = self.sweep() {
            tracing::debug!("not swept: {error}");
        }
    }

    /// Removes a directory so that it is there whole or not at all.
    pub(super) fn discard(&self, name: &str, path: &Path) -> Result<()> {
        let doomed = self.tmp().join(format!("discarded-{name}"));
        fs::rename(path, &doomed).at(path)?;
        remove_tree(&doomed)
    }

    fn live(&self) -> Result<Live> {
        let mut live = Live::default();
        self.mark(&mut live, self.index()?.descriptors().cloned().collect())?;
        for container in self.container_roots()? {
            live.layers.extend(container.layers.iter().map(Digest::hex));
            live.blobs.extend(container.blobs.iter().map(Digest::hex));
        }
        Ok(live)
    }

    /// Marks what descriptors reach, to any depth. Blobs that are not here (layers, or what another tool left out) reach
    /// nothing.
    ///
    /// # Errors
    /// When a document that may refer to others cannot be read.
    fn mark(&self, live: &mut Live, mut waiting: Vec<Descriptor>) -> Result<()> {
        // A blob may be named as a layer first and as an index later, so `live` does not tell what was read.
        let mut read = HashSet::new();
        while let Some(entry) = waiting.pop() {
            live.blobs.insert(entry.digest.hex());
            if self.kept_blob(&entry.digest).is_none()
                || !read.insert((entry.digest, entry.is_index(), entry.is_manifest()))
            {
                continue;
            }
            if entry.is_index() {
                let index: Index = spec::parse("index", &self.read_blob(&entry.digest)?)?;
                waiting.extend(index.descriptors().cloned());
            } else if entry.is_manifest() {
                self.mark_manifest(live, &entry)?;
                let original = entry.annotations.get(ORIGINAL_MANIFEST).and_then(|digest| digest.parse().ok());
                waiting.extend(original.map(|digest| Descriptor::new(spec::MANIFEST, digest, 0)));
            }
        }
        Ok(())
    }

    fn mark_manifest(&self, live: &mut Live, entry: &Descriptor) -> Result<()> {
        let name = format!("manifest {}", entry.digest);
        let manifest: Manifest = spec::parse(&name, &self.read_blob(&entry.digest)?)?;
        live.blobs.insert(manifest.config.digest.hex());
        live.blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
        if self.kept_blob(&manifest.config.digest).is_some() {
            let config = ImageConfig::parse("config", self.read_blob(&manifest.config.digest)?)?;
            live.layers.extend(config.diff_ids().iter().map(Digest::hex));
            live.layers.extend(crate::image::config::chain_ids(config.diff_ids()).iter().map(Digest::hex));
        }
        Ok(())
    }

    /// What the containers refer to.
    pub(super) fn container_roots(&self) -> Result<Vec<ContainerRoot>> {
        let mut roots = Vec::new();
        for (name, path) in entries(&self.containers())? {
            let record = path.join("container.json");
            match File::open(&record) {
                Ok(mut file) => {
                    let document = record.display().to_string();
                    let bytes = read_limited(&mut file, &document)?;
                    roots.push(ContainerRoot { name, ..spec::parse(&document, &bytes)? });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).at(&record),
            }
        }
        Ok(roots)
    }
}

/// The entries of a directory whose names are text, which is all that this program makes.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| ImageError::refused(entry.path().display().to_string(), "does not belong into a store"))?;
        found.push((name, entry.path()));
    }
    Ok(found)
}
