//! Whether the store still holds what was put into it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::image::digest::{Digest, DigestWriter};
use crate::image::files::{make_dir, remove_tree};
use crate::image::spec::{self, Descriptor, Index};
use crate::image::{ImageError, IoContext, Result};
use crate::inventory::Unusable;
use crate::store::gc::entries;
use crate::store::{Image, Store, StoredLayer, image_index};

/// Something that is not as it was.
#[derive(Clone, Debug)]
pub struct Damage {
    /// One line that names it.
    pub told: String,
    /// What cannot be trusted any more; nothing, where something is missing.
    pub untrusted: Option<Untrusted>,
}

/// What [`Store::repair`] takes out of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrusted {
    /// A layer's directory. Loading its image again brings it back.
    Layer(PathBuf),
    /// A blob's file. Loading its image again brings it back.
    Blob(PathBuf),
    /// Entries of the index that name a manifest which is not there or damaged.
    Entry(Digest),
    /// A container's directory. It may hold changes that are nowhere else, so it is set aside.
    Container(PathBuf),
    /// The index itself.
    Index,
}

/// What a repair did.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// Layers removed.
    pub layers: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Entries of the index removed.
    pub entries: u64,
    /// Where containers went.
    pub set_aside: Vec<PathBuf>,
    /// What is damaged and stays, and why, one line each.
    pub kept: Vec<String>,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Layers that are sound.
    pub sound: u64,
    /// The rest.
    pub damages: Vec<Damage>,
    /// Sound layers whose inventory does not fit, and why. This is not damage: after a store is copied, no inventory fits.
    pub without_inventory: Vec<(StoredLayer, Unusable)>,
}

impl Verification {
    /// Adds what cannot be read. What may not be read is told and not distrusted: nothing is known to be wrong with it.
    fn add_unreadable(&mut self, told: String, error: &ImageError, untrusted: Untrusted) {
        let is_refused =
            matches!(error, ImageError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
        self.add(told, Some(untrusted).filter(|_| !is_refused));
    }

    fn add(&mut self, told: String, untrusted: Option<Untrusted>) {
        self.damages.push(Damage { told, untrusted });
    }
}

impl Store {
    /// Re-hashes every layer and every blob, and looks for all parts of every image and container. Nothing is removed
    /// meanwhile.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn verify(&self) -> Result<Verification> {
        let _lock = self.lock_shared()?;
        let mut found = Verification::default();
        for (name, path) in entries(&self.root.join("blobs/sha256"))? {
            if let Err(error) = verify_blob(&name, &path) {
                found.add_unreadable(error.to_string(), &error, Untrusted::Blob(path));
            }
        }
        for (name, dir) in entries(&self.layers_dir())? {
            verify_layer(&name, &dir, &mut found);
        }
        for (name, error) in self.container_roots()?.damaged {
            let path = self.containers().join(&name);
            found.add_unreadable(format!("container {name}: {error}"), &error, Untrusted::Container(path));
        }
        self.chain_faults()?.into_iter().for_each(|fault| found.add(fault, None));
        let index = match self.index() {
            Ok(index) => index,
            Err(error) => {
                found.add_unreadable(error.to_string(), &error, Untrusted::Index);
                return Ok(found);
            }
        };
        for entry in index.descriptors().filter(|entry| entry.is_manifest()) {
            let name = image_index::name_of(entry);
            match self.read_image(entry) {
                Ok(image) => self.look_for_layers(&Image { names: name.into_iter().collect(), ..image }, &mut found),
                Err(error) => {
                    let name = name.map_or_else(|| entry.digest.to_string(), |name| name.to_string());
                    found.add_unreadable(format!("image {name}: {error}"), &error, Untrusted::Entry(entry.digest));
                }
            }
        }
        Ok(found)
    }

    /// Re-hashes the layers of these images.
    ///
    /// # Errors
    /// None; what is wrong is in the result.
    pub fn verify_images(&self, images: &[Image]) -> Result<Verification> {
        let _lock = self.lock_shared()?;
        let mut found = Verification::default();
        let mut dirs = Vec::new();
        for image in images {
            self.look_for_layers(image, &mut found);
            dirs.extend(
                self.layers_of(image).unwrap_or_default().into_iter().map(|layer| (layer.id().hex(), layer.dir)),
            );
        }
        dirs.sort();
        dirs.dedup();
        dirs.iter().for_each(|(name, dir)| verify_layer(name, dir, &mut found));
        Ok(found)
    }

    fn look_for_layers(&self, image: &Image, found: &mut Verification) {
        if let Err(error) = self.layers_of(image) {
            found.add(format!("image {}: {error}", image.label()), None);
        }
    }

    /// Takes out of the store what was found damaged and still is: whoever loaded it again in between has put a sound one
    /// in its place. What a mounted container uses stays.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn repair(&self, found: &Verification, is_in_use: &dyn Fn(&str) -> bool) -> Result<Repaired> {
        let _lock = self.lock_exclusive()?;
        let mut untrusted: Vec<&Untrusted> =
            found.damages.iter().filter_map(|damage| damage.untrusted.as_ref()).collect();
        untrusted.sort();
        untrusted.dedup();
        let used = self.layers_in_use(is_in_use)?;
        let mut repaired = Repaired::default();
        for thing in untrusted {
            match thing {
                Untrusted::Layer(dir) => {
                    let name = dir.file_name().unwrap_or_default().to_string_lossy();
                    let mut again = Verification::default();
                    verify_layer(&name, dir, &mut again);
                    if again.damages.is_empty() || !is_there(dir) {
                        continue;
                    }
                    match used.get(name.as_ref()).or_else(|| used.get(ANY_LAYER)) {
                        Some(user) => {
                            repaired
                                .kept
                                .push(format!("layer {name}: container {user} has it mounted; unmount it first"));
                        }
                        None => {
                            self.discard(dir)?;
                            repaired.layers += 1;
                        }
                    }
                }
                Untrusted::Blob(file) => {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    if is_there(file) && verify_blob(&name, file).is_err() {
                        remove_tree(file)?;
                        repaired.blobs += 1;
                    }
                }
                // After the blobs, so that an entry whose manifest was just removed goes with it.
                Untrusted::Entry(manifest) => repaired.entries += self.drop_unreadable(manifest)?,
                Untrusted::Container(dir) => self.set_aside(dir, is_in_use, &mut repaired)?,
                Untrusted::Index => self.rebuild_index(&mut repaired)?,
            }
        }
        Ok(repaired)
    }

    /// The layers that mounted containers have, by their directory's name, and which container it is.
    fn layers_in_use(&self, is_in_use: &dyn Fn(&str) -> bool) -> Result<HashMap<String, String>> {
        let roots = self.container_roots()?;
        let mut used = HashMap::new();
        for container in roots.sound.into_iter().filter(|container| is_in_use(&container.name)) {
            used.extend(container.layers.iter().map(|layer| (layer.hex(), container.name.clone())));
        }
        // Which layers these have is not known.
        let unknown = roots.damaged.into_iter().find(|(name, _)| is_in_use(name));
        used.extend(unknown.map(|(name, _)| (ANY_LAYER.to_owned(), name)));
        Ok(used)
    }

    /// Removes the entries of a manifest, unless its image can be read by now.
    fn drop_unreadable(&self, manifest: &Digest) -> Result<u64> {
        let removed = self.update_index(|index| {
            let is_readable =
                index.descriptors().any(|entry| entry.digest == *manifest && self.read_image(entry).is_ok());
            match is_readable {
                true => Ok(Vec::new()),
                false => Ok(image_index::remove_entries(index, |entry| entry.digest == *manifest)),
            }
        })?;
        Ok(removed.len() as u64)
    }

    /// Moves a container whose record is damaged out of the way.
    fn set_aside(&self, dir: &Path, is_in_use: &dyn Fn(&str) -> bool, repaired: &mut Repaired) -> Result<()> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !self.container_roots()?.damaged.iter().any(|(damaged, _)| *damaged == name) {
            return Ok(());
        }
        if is_in_use(&name) {
            repaired.kept.push(format!("container {name}: is mounted; strata rm -f {name} removes it"));
            return Ok(());
        }
        repaired.set_aside.push(self.move_to_lost(dir, &name)?);
        Ok(())
    }

    /// Moves something to `lost/NAME`, or `lost/NAME.1`, …
    fn move_to_lost(&self, path: &Path, name: &str) -> Result<PathBuf> {
        let lost = self.root.join("lost");
        make_dir(&lost, 0o700)?;
        let mut place = lost.join(name);
        for number in 1.. {
            match renameat_with(CWD, path, CWD, &place, RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(Errno::EXIST) => place = lost.join(format!("{name}.{number}")),
                Err(error) => return Err(error).at(path),
            }
        }
        Ok(place)
    }

    /// Makes a new index of the manifests that are here. What they were called was in the old one only.
    fn rebuild_index(&self, repaired: &mut Repaired) -> Result<()> {
        let _lock = self.lock_index()?;
        if self.index().is_ok() {
            return Ok(());
        }
        let mut manifests = Vec::new();
        for (name, path) in entries(&self.root.join("blobs/sha256"))? {
            let Ok(digest) = Digest::from_hex(&name) else { continue };
            let size = fs::symlink_metadata(&path).at(&path)?.len();
            let mut entry = Descriptor::new(spec::MANIFEST, digest, size);
            if size > spec::DOCUMENT_LIMIT || self.kept_blob(&digest).is_none() {
                continue;
            }
            // Manifests of other programs name compressed layers; the store's own name those that are here.
            if let Ok(image) = self.read_image(&entry)
                && manifest_names_layers(&image)
            {
                entry.platform = image.config.platform();
                manifests.push(entry);
            }
        }
        let path = self.root.join("index.json");
        if is_there(&path) {
            repaired.set_aside.push(self.move_to_lost(&path, "index.json")?);
        }
        repaired.kept.push(format!("index.json: made again of {} images, without their names", manifests.len()));
        self.replace("index.json", &spec::serialize("index.json", &Index::new(manifests))?)
    }
}

/// Stands for all layers: a container is mounted whose record does not say which it has.
const ANY_LAYER: &str = "";

fn manifest_names_layers(image: &Image) -> bool {
    image.manifest.layers.iter().map(|layer| layer.digest).eq(image.config.diff_ids().iter().copied())
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn verify_blob(name: &str, path: &Path) -> Result<()> {
    let mut hashed = DigestWriter::new(io::sink());
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hashed)).at(path)?;
    let (_, digest, _) = hashed.finish();
    if digest.hex() == name {
        return Ok(());
    }
    Err(ImageError::refused(path.display().to_string(), format!("its bytes are {digest}")))
}

fn verify_layer(name: &str, dir: &Path, found: &mut Verification) {
    let untrusted = || Some(Untrusted::Layer(dir.to_owned()));
    let layer = match StoredLayer::load(dir.to_owned()) {
        Ok(layer) if layer.id().hex() == name => layer,
        Ok(layer) => {
            let told = format!("{}: its record is that of layer {}", dir.display(), layer.id());
            return found.add(told, untrusted());
        }
        Err(error) => return found.add_unreadable(error.to_string(), &error, Untrusted::Layer(dir.to_owned())),
    };
    let problems = match layer.verify() {
        Ok(problems) => problems,
        Err(error) => {
            let told = format!("layer {}: {error}", layer.record.diff_id);
            return found.add_unreadable(told, &error, Untrusted::Layer(dir.to_owned()));
        }
    };
    if problems.is_empty() {
        found.sound += 1;
        if let Ok(Err(why)) = layer.check_inventory() {
            found.without_inventory.push((layer.clone(), why));
        }
    }
    for problem in problems {
        found.add(format!("layer {}: {problem}", layer.record.diff_id), untrusted());
    }
}
