//! Verifies that the store still holds what was put into it.

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

/// A damaged or missing part.
#[derive(Clone, Debug)]
pub struct Damage {
    /// One line that names it.
    pub told: String,
    /// The part that cannot be trusted any more; `None` if a part is missing.
    pub untrusted: Option<Untrusted>,
}

/// A part that [`Store::repair`] removes from the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrusted {
    /// A layer's directory. Loading its image again restores it.
    Layer(PathBuf),
    /// A blob's file. Loading its image again restores it.
    Blob(PathBuf),
    /// Entries of the index that name a missing or damaged manifest.
    Entry(Digest),
    /// A container's directory. It is set aside, because it may hold changes that exist nowhere else.
    Container(PathBuf),
    /// The index itself.
    Index,
}

/// The result of a repair.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// Number of layers removed.
    pub layers: u64,
    /// Number of blobs removed.
    pub blobs: u64,
    /// Number of index entries removed.
    pub entries: u64,
    /// Where containers were moved.
    pub set_aside: Vec<PathBuf>,
    /// Damaged parts that stay, and why, one line each.
    pub kept: Vec<String>,
}

/// The result of a verification.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Number of undamaged layers.
    pub sound: u64,
    /// The damage.
    pub damages: Vec<Damage>,
    /// Undamaged layers whose inventory does not match, and why. This is not damage: after a store was copied, no inventory
    /// matches.
    pub without_inventory: Vec<(StoredLayer, Unusable)>,
}

impl Verification {
    /// Adds an unreadable part. A part that this process has no permission to read is reported, but still trusted:
    /// nothing is known to be wrong with it.
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
    /// Hashes every layer and every blob again, and checks that all parts of every image and container exist. Nothing
    /// is removed in the meantime.
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

    /// Hashes the layers of these images again.
    ///
    /// # Errors
    /// None; damage is in the result.
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

    /// Removes parts that were found damaged and still are: in the meantime, loading the image again may have replaced
    /// one. Parts that a mounted container uses stay.
    ///
    /// # Errors
    /// When a part cannot be removed.
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
                // After the blobs, so that an entry whose manifest was just removed is removed too.
                Untrusted::Entry(manifest) => repaired.entries += self.drop_unreadable(manifest)?,
                Untrusted::Container(dir) => self.set_aside(dir, is_in_use, &mut repaired)?,
                Untrusted::Index => self.rebuild_index(&mut repaired)?,
            }
        }
        Ok(repaired)
    }

    /// The layers of mounted containers, by their directory's name, each with its container.
    fn layers_in_use(&self, is_in_use: &dyn Fn(&str) -> bool) -> Result<HashMap<String, String>> {
        let roots = self.container_roots()?;
        let mut used = HashMap::new();
        for container in roots.sound.into_iter().filter(|container| is_in_use(&container.name)) {
            used.extend(container.layers.iter().map(|layer| (layer.hex(), container.name.clone())));
        }
        // The layers of these containers are unknown.
        let unknown = roots.damaged.into_iter().find(|(name, _)| is_in_use(name));
        used.extend(unknown.map(|(name, _)| (ANY_LAYER.to_owned(), name)));
        Ok(used)
    }

    /// Removes the entries of a manifest, unless its image has become readable.
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

    /// Moves a container with a damaged record out of the way.
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

    /// Moves it to `lost/NAME`, or `lost/NAME.1`, …
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

    /// Makes a new index of the manifests in the store. The names were only in the old one.
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
            // Manifests of other programs name compressed layers; the store's own manifests name those that are here.
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

/// Stands for all layers: the record of a mounted container does not say which layers it has.
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
