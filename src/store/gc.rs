//! Removes everything without references.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::files::{is_gone, read_limited, remove_tree};
use crate::image::spec::{self, Descriptor, Index, IndexEntry, Manifest};
use crate::image::{ImageError, IoContext, Result};
use crate::store::annotations::ORIGINAL_MANIFEST;
use crate::store::{Store, StoredLayer};
use crate::text::shown_path;

/// The space that a removal freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Number of layers removed.
    pub layers: u64,
    /// Number of blobs removed.
    pub blobs: u64,
    /// Bytes of the blobs, and of those layers' contents.
    pub bytes: u64,
}

/// A container's references: the part of `containers/NAME/container.json` that the image side reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerRoot {
    #[serde(skip)]
    pub(super) name: String,
    pub(super) image: Digest,
    pub(super) layers: Vec<Digest>,
    /// The configuration's and manifest's digests, so that a commit still finds its parent after `rmi --force`.
    #[serde(default)]
    blobs: Vec<Digest>,
}

/// References of all containers whose records are readable.
#[derive(Debug, Default)]
pub(super) struct ContainerRoots {
    pub(super) sound: Vec<ContainerRoot>,
    /// Names of containers with unusable records, and the reasons.
    pub(super) damaged: Vec<(String, ImageError)>,
}

#[derive(Default)]
struct Live {
    layers: HashSet<String>,
    blobs: HashSet<String>,
    /// True if something that refers to layers cannot be read: the layers that it needs are unknown.
    incomplete: bool,
}

impl Store {
    /// Removes every layer and blob that neither an image nor a container refers to. Waits for active writers. With
    /// `untagged`, first removes images without a name, except those of containers. If something that refers to
    /// layers cannot be read, a warning says so and all layers stay.
    ///
    /// # Errors
    /// When the index cannot be read, or a file cannot be removed.
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
        let roots = self.container_roots()?;
        if let Some((name, error)) = roots.damaged.first() {
            // The image of this container is unknown.
            tracing::warn!("container {name} is damaged: {error}; images without a name stay");
            return Ok(());
        }
        let used: Vec<Digest> = roots.sound.into_iter().map(|container| container.image).collect();
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
        let (layers, blobs) = (entries(&self.layers_dir())?, entries(&self.root.join("blobs/sha256"))?);
        for (name, path) in layers {
            if !live.incomplete && !live.layers.contains(&name) {
                freed.layers += 1;
                freed.bytes += StoredLayer::load(path.clone()).map_or(0, |layer| layer.record.content_size);
                self.discard(&path)?;
            }
        }
        for (name, path) in blobs {
            if !live.incomplete && !live.blobs.contains(&name) {
                freed.blobs += 1;
                freed.bytes += fs::symlink_metadata(&path).at(&path)?.len();
                remove_tree(&path)?;
            }
        }
        Ok(freed)
    }

    /// Sweeps after another error, which is the one to be reported.
    pub(super) fn sweep_after_failure(&self) {
        if let Err(error) = self.sweep() {
            tracing::debug!("not swept: {error}");
        }
    }

    /// Removes a directory in one step: it never appears half removed.
    pub(super) fn discard(&self, path: &Path) -> Result<()> {
        let doomed = tempfile::Builder::new().prefix("discarded-").tempdir_in(self.tmp()).at(self.tmp())?;
        let inside = doomed.path().join("it");
        fs::rename(path, &inside).at(path)?;
        remove_tree(&inside)
    }

    fn live(&self) -> Result<Live> {
        let mut live = Live::default();
        let mut read = HashSet::new();
        let mut queue: Vec<Descriptor> = self.index()?.descriptors().cloned().collect();
        while let Some(entry) = queue.pop() {
            live.blobs.insert(entry.digest.hex());
            // A blob may be named first as a layer and later as an index, so `live` does not tell what was read.
            if !read.insert((entry.digest, entry.is_index(), entry.is_manifest())) {
                continue;
            }
            match self.reach(&mut live, &entry) {
                Ok(further) => queue.extend(further),
                Err(error) => {
                    tracing::warn!("{error}; no layers are removed (strata verify --repair)");
                    live.incomplete = true;
                }
            }
        }
        let containers = self.container_roots()?;
        for container in containers.sound {
            live.layers.extend(container.layers.iter().map(Digest::hex));
            live.blobs.extend(container.blobs.iter().map(Digest::hex));
        }
        for (name, error) in containers.damaged {
            tracing::warn!("container {name} is damaged: {error}; no layers are removed until strata rm -f {name}");
            live.incomplete = true;
        }
        Ok(live)
    }

    /// Marks everything that a descriptor refers to directly, and returns further references. Blobs that are not here
    /// (layers, or those that another tool left out) refer to nothing.
    fn reach(&self, live: &mut Live, entry: &Descriptor) -> Result<Vec<Descriptor>> {
        if is_gone(&self.blob_path(&entry.digest))? {
            return Ok(Vec::new());
        }
        if entry.is_index() {
            let index: Index = spec::parse("index", &self.read_blob(&entry.digest)?)?;
            return Ok(index.descriptors().cloned().collect());
        }
        if !entry.is_manifest() {
            return Ok(Vec::new());
        }
        let name = format!("manifest {}", entry.digest);
        let manifest: Manifest = spec::parse(&name, &self.read_blob(&entry.digest)?)?;
        live.blobs.insert(manifest.config.digest.hex());
        live.blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
        if !is_gone(&self.blob_path(&manifest.config.digest))? {
            let config = ImageConfig::parse("config", self.read_blob(&manifest.config.digest)?)?;
            live.layers.extend(config.diff_ids().iter().map(Digest::hex));
            live.layers.extend(crate::image::config::chain_ids(config.diff_ids()).iter().map(Digest::hex));
        }
        let original = entry.annotations.get(ORIGINAL_MANIFEST).and_then(|digest| digest.parse().ok());
        Ok(original.map(|digest| Descriptor::new(spec::MANIFEST, digest, 0)).into_iter().collect())
    }

    /// The containers' references.
    pub(super) fn container_roots(&self) -> Result<ContainerRoots> {
        let mut roots = ContainerRoots::default();
        for (name, path) in entries(&self.containers())? {
            let record = path.join("container.json");
            let document = record.display().to_string();
            let read = File::open(&record)
                .at(&record)
                .and_then(|mut file| read_limited(&mut file, &document))
                .and_then(|bytes| spec::parse::<ContainerRoot>(&document, &bytes));
            match read {
                Ok(root) => roots.sound.push(ContainerRoot { name, ..root }),
                // It was removed after the directory was read.
                Err(_) if is_gone(&path).unwrap_or(false) => {}
                Err(error) => roots.damaged.push((name, error)),
            }
        }
        Ok(roots)
    }
}

/// The entries of a directory whose names are UTF-8, as all names that this program makes. Others are logged and left out.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        match entry.file_name().into_string() {
            Ok(name) => found.push((name, entry.path())),
            Err(_) => tracing::warn!("{} does not belong into a store", shown_path(&entry.path())),
        }
    }
    found.sort();
    Ok(found)
}
