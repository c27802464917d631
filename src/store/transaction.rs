//! Adding images to a store: everything is staged in `tmp/`, then published at once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use crate::image::config::{ImageConfig, chain_ids};
use crate::image::digest::Digest;
use crate::image::files::{make_dir, sync_dir};
use crate::image::reference::Reference;
use crate::image::spec::{self, Annotations, Descriptor, Manifest};
use crate::image::unpack::{self, Lowers, UnpackOptions, Unpacked};
use crate::image::{ImageError, IoContext, Result};
use crate::inventory;
use crate::store::annotations::{ORIGINAL_MANIFEST, REPO_DIGESTS, VERIFIED_BLOBS, blob_mark};
use crate::store::images::Image;
use crate::store::layers::{LayerRecord, StoredLayer};
use crate::store::{Store, StoreLock, image_index};

/// New layers, blobs and images. If it is dropped without [`publish`](Self::publish), the store stays as it was.
#[derive(Debug)]
pub struct Transaction<'s> {
    store: &'s Store,
    /// Declared first, so that nothing is made in the stage while that is removed.
    inventories: Inventories,
    stage: tempfile::TempDir,
    /// Number of layer directories that were made in the stage.
    staged: usize,
    layers: Vec<StoredLayer>,
    blobs: Vec<Digest>,
    images: Vec<(Descriptor, Vec<Reference>)>,
    watcher: Watcher,
    /// Declared last, so that the stage is removed before the lock is released.
    lock: StoreLock,
}

/// Inventories that are made while other layers are added.
#[derive(Debug, Default)]
struct Inventories(Vec<JoinHandle<()>>);

impl Inventories {
    fn begin(&mut self, layer: &StoredLayer) {
        let layer = layer.clone();
        self.0.push(std::thread::spawn(move || layer.ensure_inventory()));
    }

    /// Waits until all are complete. Best effort: a layer works without.
    fn wait(&mut self) {
        for inventory in self.0.drain(..) {
            if inventory.join().is_err() {
                tracing::warn!("making a layer's inventory failed");
            }
        }
    }
}

impl Drop for Inventories {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Called with the number of bytes that were read from a single layer since the last call.
struct Watcher(Option<Box<dyn Fn(u64) + Send + Sync>>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.is_some()).finish()
    }
}

/// A stream that reports its progress.
struct Watched<'w> {
    input: &'w mut dyn Read,
    watcher: &'w Watcher,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Some(watch) = &self.watcher.0 {
            watch(count as u64);
        }
        Ok(count)
    }
}

/// The result of adding a layer.
#[derive(Clone, Debug)]
pub struct AddedLayer {
    /// The layer, which may have been there before.
    pub layer: StoredLayer,
    /// Digest and size of the compressed stream, if it was compressed.
    pub compressed: Option<(Digest, u64)>,
}

impl Store {
    /// Begins a transaction.
    ///
    /// # Errors
    /// When the store cannot be locked or written.
    pub fn begin(&self) -> Result<Transaction<'_>> {
        self.sweep_tmp()?;
        let lock = self.lock_shared()?;
        let stage = tempfile::Builder::new().prefix("add-").tempdir_in(self.tmp()).at(self.tmp())?;
        Ok(Transaction {
            store: self,
            inventories: Inventories::default(),
            stage,
            staged: 0,
            layers: Vec::new(),
            blobs: Vec::new(),
            images: Vec::new(),
            watcher: Watcher(None),
            lock,
        })
    }
}

/// A layer's directory in the stage.
pub(super) struct Staged(PathBuf);

impl Staged {
    /// Opens the directory into which it is unpacked.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        crate::image::files::open_dir(&self.0.join("diff"))
    }

    /// Unpacks the layer.
    pub(super) fn fill(
        &self,
        name: &str,
        lowers: &Lowers<'_>,
        input: &mut dyn Read,
        options: &UnpackOptions,
    ) -> Result<Unpacked> {
        let recipe_path = self.0.join("recipe");
        let mut recipe = BufWriter::new(File::create(&recipe_path).at(&recipe_path)?);
        let options = UnpackOptions { write_out: true, ..options.clone() };
        let unpacked = unpack::unpack_layer_above(input, self.open()?.as_fd(), lowers, Some(&mut recipe), &options)
            .map_err(|source| ImageError::Layer { layer: name.to_owned(), source })?;
        recipe.flush().at(&recipe_path)?;
        Ok(unpacked)
    }

    /// Makes the inventory of the unpacked layer. Best effort: a layer works without.
    pub(super) fn list(&self) {
        if let Err(error) = inventory::write(&self.0.join("diff")) {
            tracing::debug!("{}: no inventory: {error}", self.0.display());
        }
    }
}

impl Transaction<'_> {
    /// Sets the function that is called with the number of bytes read, whenever a single layer (of `import`, `commit`,
    /// `flatten`) is read.
    pub fn watch(&mut self, watch: impl Fn(u64) + Send + Sync + 'static) {
        self.watcher = Watcher(Some(Box::new(watch)));
    }

    /// A directory on the store's file system that is removed with the transaction.
    pub fn scratch(&self) -> &Path {
        self.stage.path()
    }

    /// Makes a new directory in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.stage.path().join(name);
        make_dir(&path, 0o700)?;
        Ok(path)
    }

    /// The layer with this diff id on top of `below`, if it is staged or in the store.
    ///
    /// # Errors
    /// When the store's record of it is unreadable.
    pub(crate) fn find_layer(&self, below: &[StoredLayer], diff_id: &Digest) -> Result<Option<StoredLayer>> {
        let below: Vec<Digest> = diff_ids_of(below).collect();
        self.find_layer_on(&below, diff_id)
    }

    /// Like `find_layer`, with layers below that may not exist yet.
    ///
    /// # Errors
    /// When the store's record of it is unreadable.
    pub(crate) fn find_layer_on(&self, below: &[Digest], diff_id: &Digest) -> Result<Option<StoredLayer>> {
        let chain_id = chain_of(below.iter().copied(), diff_id);
        let staged = self.layers.iter().find(|layer| {
            let id = layer.id();
            layer.record.diff_id == *diff_id && (id == *diff_id || id == chain_id)
        });
        match staged {
            Some(layer) => Ok(Some(layer.clone())),
            None => self.store.find_layer(diff_id, &chain_id),
        }
    }

    /// Unpacks a layer's tar, compressed or not, on top of `below` (the lowest first).
    ///
    /// # Errors
    /// When the stream is malformed, or has not the digest `expected`.
    pub(crate) fn add_layer(
        &mut self,
        name: &str,
        below: &[StoredLayer],
        expected: Option<&Digest>,
        input: &mut dyn Read,
        options: &UnpackOptions,
    ) -> Result<AddedLayer> {
        let staged = self.stage_layer()?;
        let lowers = open_topmost_first(below)?;
        let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
        let mut input = Watched { input, watcher: &self.watcher };
        let unpacked = staged.fill(name, &Lowers { dirs: &lowers, ready: &|| true }, &mut input, options)?;
        self.take_in(staged, name, below, expected, unpacked)
    }

    /// Makes a place for one more layer.
    pub(super) fn stage_layer(&mut self) -> Result<Staged> {
        let staged = Staged(self.stage.path().join(format!("layer-{}", self.staged)));
        self.staged += 1;
        make_dir(&staged.0, 0o700)?;
        make_dir(&staged.0.join("diff"), 0o755)?;
        Ok(staged)
    }

    /// Checks an unpacked layer, and adds it.
    pub(super) fn take_in(
        &mut self,
        staged: Staged,
        name: &str,
        below: &[StoredLayer],
        expected: Option<&Digest>,
        unpacked: Unpacked,
    ) -> Result<AddedLayer> {
        let dir = staged.0;
        if let Some(expected) = expected {
            check_diff_id(name, expected, &unpacked)?;
        }
        if let Some(layer) = self.find_layer(below, &unpacked.diff_id)? {
            crate::image::files::remove_tree(&dir)?;
            return Ok(AddedLayer { layer, compressed: unpacked.compressed });
        }
        let record = LayerRecord {
            diff_id: unpacked.diff_id,
            chain_id: (unpacked.depends_on_lower && !below.is_empty())
                .then(|| chain_of(diff_ids_of(below), &unpacked.diff_id)),
            size: unpacked.size,
            content_size: unpacked.content_size,
            entries: unpacked.entries,
        };
        let record_path = dir.join("layer.json");
        fs::write(&record_path, spec::serialize("layer.json", &record)?).at(&record_path)?;
        let layer = StoredLayer { dir, record };
        self.inventories.begin(&layer);
        self.layers.push(layer.clone());
        Ok(AddedLayer { layer, compressed: unpacked.compressed })
    }

    /// Adds a blob that is kept.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn add_blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.blobs.contains(&digest) && self.store.kept_blob(&digest).is_none() {
            let path = self.staged_blob(&digest);
            fs::write(&path, bytes).at(&path)?;
            self.blobs.push(digest);
        }
        Ok(digest)
    }

    /// Adds a file of the scratch directory as the blob with this digest.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub(crate) fn add_blob_file(&mut self, digest: Digest, file: &Path) -> Result<()> {
        if !self.blobs.contains(&digest) {
            fs::rename(file, self.staged_blob(&digest)).at(file)?;
            self.blobs.push(digest);
        }
        Ok(())
    }

    /// True if the blob is staged or in the store.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest) || self.store.kept_blob(digest).is_some()
    }

    /// Records where an image that was added has been seen: `NAME@DIGEST`.
    pub(crate) fn add_repo_digest(&mut self, image: &Descriptor, repo_digest: &str) {
        for (descriptor, _) in self.images.iter_mut().filter(|(added, _)| added.digest == image.digest) {
            image_index::add_words(descriptor, REPO_DIGESTS, repo_digest);
        }
    }

    /// Records which blobs were verified to be which layers of an image that was added.
    pub(crate) fn add_verified_blobs(&mut self, image: &Descriptor, marks: &[String]) {
        for (descriptor, _) in self.images.iter_mut().filter(|(added, _)| added.digest == image.digest) {
            image_index::add_words(descriptor, VERIFIED_BLOBS, &marks.join(" "));
        }
    }

    /// The marks of all blobs that were verified to be layers of the store's images.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) fn verified_blobs(&self) -> Result<HashSet<String>> {
        self.store.verified_blobs()
    }

    /// Records where an image of the store has been pushed to (`NAME@DIGEST`), and with which manifest, unless one is
    /// known. Each blob of the manifest is the layer that it stands for.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub(crate) fn remember(&mut self, image: &Image, manifest: &[u8], repo_digest: &str) -> Result<()> {
        let mut descriptor = image.descriptor.clone();
        if image.original_manifest().is_none() {
            let digest = self.add_blob(manifest)?;
            descriptor.annotations.insert(ORIGINAL_MANIFEST.to_owned(), digest.to_string());
        }
        image_index::add_words(&mut descriptor, REPO_DIGESTS, repo_digest);
        let parsed: Manifest = spec::parse("manifest", manifest)?;
        for (blob, diff_id) in parsed.layers.iter().zip(image.config.diff_ids()) {
            image_index::add_words(&mut descriptor, VERIFIED_BLOBS, &blob_mark(&blob.digest, diff_id));
        }
        self.images.push((descriptor, Vec::new()));
        Ok(())
    }

    fn staged_blob(&self, digest: &Digest) -> std::path::PathBuf {
        self.stage.path().join(format!("blob-{}", digest.hex()))
    }

    /// Adds an image whose layers are staged or in the store. `original` is the digest of its original
    /// manifest, if that was added as a blob.
    ///
    /// # Errors
    /// When the layers are not those named by the config.
    pub(crate) fn add_image(
        &mut self,
        config: &ImageConfig,
        layers: &[StoredLayer],
        names: &[Reference],
        original: Option<Digest>,
    ) -> Result<Descriptor> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.record.diff_id).collect();
        if diff_ids != config.diff_ids() {
            return Err(ImageError::document("config", "rootfs.diff_ids are not the layers of the image"));
        }
        self.add_blob(config.bytes())?;
        let manifest = manifest_of(config, layers);
        let bytes = spec::serialize("manifest", &manifest)?;
        let mut descriptor = Descriptor::of(spec::MANIFEST, &bytes);
        descriptor.platform = config.platform();
        if let Some(original) = original {
            descriptor.annotations = Annotations::from([(ORIGINAL_MANIFEST.to_owned(), original.to_string())]);
        }
        self.add_blob(&bytes)?;
        self.images.push((descriptor.clone(), names.to_vec()));
        Ok(descriptor)
    }

    /// Makes everything durable and visible.
    ///
    /// # Errors
    /// When a step fails. Everything published so far is then removed again. If other writers are active, which
    /// may already use it, that is left to [`Store::gc`].
    pub fn publish(mut self) -> Result<()> {
        self.inventories.wait();
        self.sync()?;
        let add = |index: &mut spec::Index| {
            for (manifest, names) in &self.images {
                image_index::add(index, manifest, names);
            }
            Ok(())
        };
        let published = self.store.update_index_after(add, || self.publish_parts());
        if published.is_err() && self.lock.is_alone() {
            self.store.sweep_after_failure();
        }
        published
    }

    fn publish_parts(&self) -> Result<()> {
        let layers_dir = self.store.layers_dir();
        for layer in &self.layers {
            publish_new(&layer.dir, &layers_dir.join(layer.id().hex()))?;
        }
        for digest in &self.blobs {
            publish_new(&self.staged_blob(digest), &self.store.blob_path(digest))?;
        }
        if !self.layers.is_empty() {
            sync_dir(&layers_dir)?;
        }
        if !self.blobs.is_empty() {
            sync_dir(&self.store.root.join("blobs/sha256"))?;
        }
        Ok(())
    }

    /// Writes the staged files to the disk: the many files of a layer by one syncfs, a few documents one by one,
    /// which does not wait for the writes of other programs.
    fn sync(&self) -> Result<()> {
        if self.layers.is_empty() {
            let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).at(path);
            return self.blobs.iter().try_for_each(|digest| sync(&self.staged_blob(digest)));
        }
        self.write_out()
    }

    /// Writes everything on the store's file system to the disk.
    pub(super) fn write_out(&self) -> Result<()> {
        let root = File::open(&self.store.root).at(&self.store.root)?;
        syncfs(&root).at(&self.store.root)
    }
}

/// Checks that an unpacked layer has the expected digest.
pub(super) fn check_diff_id(name: &str, expected: &Digest, unpacked: &Unpacked) -> Result<()> {
    if *expected == unpacked.diff_id {
        return Ok(());
    }
    let (expected, found) = (expected.to_string(), unpacked.diff_id.to_string());
    Err(ImageError::Mismatch { subject: format!("{name}: uncompressed layer"), expected, found })
}

/// The store's manifest of an image: its layers are uncompressed tars.
pub(crate) fn manifest_of(config: &ImageConfig, layers: &[StoredLayer]) -> Manifest {
    let layers = layers.iter().map(|layer| Descriptor::new(spec::LAYER, layer.record.diff_id, layer.record.size));
    Manifest::new(Descriptor::of(spec::CONFIG, config.bytes()), layers.collect())
}

/// Opens the directories of layers, which are given lowest first, and returns them topmost first.
pub(crate) fn open_topmost_first(layers: &[StoredLayer]) -> Result<Vec<OwnedFd>> {
    layers.iter().rev().map(StoredLayer::open_diff).collect()
}

fn diff_ids_of(layers: &[StoredLayer]) -> impl Iterator<Item = Digest> {
    layers.iter().map(|layer| layer.record.diff_id)
}

fn chain_of(below: impl Iterator<Item = Digest>, diff_id: &Digest) -> Digest {
    let mut diff_ids: Vec<Digest> = below.collect();
    diff_ids.push(*diff_id);
    chain_ids(&diff_ids).pop().unwrap_or(*diff_id)
}

/// Renames to a content-addressed name: if another writer was faster, its copy is equal.
fn publish_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).at(to),
    }
}
