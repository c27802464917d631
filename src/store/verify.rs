//! Whether the store still holds what was put into it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::digest::DigestWriter;
use crate::image::files::remove_tree;
use crate::image::{IoContext, Result};
use crate::inventory::Unusable;
use crate::store::gc::entries;
use crate::store::{Image, Layer, Store, index};

/// Something that is not as it was.
#[derive(Clone, Debug)]
pub struct Damage {
    /// One line that names it.
    pub told: String,
    /// What cannot be trusted any more; nothing, where something is missing.
    pub untrusted: Option<Untrusted>,
}

/// What [`Store::repair`] removes, so that loading its image again brings it back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrusted {
    /// A layer's directory.
    Layer(PathBuf),
    /// A blob's file.
    Blob(PathBuf),
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Layers that are sound.
    pub sound: u64,
    /// The rest.
    pub damages: Vec<Damage>,
    /// Sound layers whose inventory does not fit, and why. No damage: a store that was copied has none that fit.
    pub without_inventory: Vec<(Layer, Unusable)>,
}

impl Verification {
    fn add(&mut self, told: String, untrusted: Option<Untrusted>) {
        self.damages.push(Damage { told, untrusted });
    }
}

impl Store {
    /// Re-hashes every layer and every blob, and looks for all parts of every image. Nothing is removed meanwhile.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn verify(&self) -> Result<Verification> {
        let _lock = self.lock_shared()?;
        let mut found = Verification::default();
        for (name, path) in entries(&self.root.join("blobs/sha256"))? {
            if let Err(told) = verify_blob(&name, &path) {
                found.add(told, Some(Untrusted::Blob(path)));
            }
        }
        for (name, dir) in entries(&self.layers_dir())? {
            verify_layer(&name, &dir, &mut found);
        }
        for entry in self.index()?.descriptors().filter(|entry| entry.is_manifest()) {
            match self.read_image(entry) {
                Ok(image) => {
                    let names = index::name_of(entry).into_iter().collect();
                    self.look_for_layers(&Image { names, ..image }, &mut found);
                }
                Err(error) => found.add(format!("image {}: {error}", entry.digest), None),
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

    /// Removes what was found damaged. Gives the number of layers and of blobs.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn repair(&self, found: &Verification) -> Result<(u64, u64)> {
        let _lock = self.lock_exclusive()?;
        let mut untrusted: Vec<&Untrusted> =
            found.damages.iter().filter_map(|damage| damage.untrusted.as_ref()).collect();
        untrusted.sort();
        untrusted.dedup();
        let (mut layers, mut blobs) = (0, 0);
        for thing in untrusted {
            match thing {
                Untrusted::Layer(dir) => {
                    let name = dir.file_name().unwrap_or_default().to_string_lossy();
                    self.discard(&name, dir)?;
                    layers += 1;
                }
                Untrusted::Blob(file) => {
                    remove_tree(file)?;
                    blobs += 1;
                }
            }
        }
        Ok((layers, blobs))
    }
}

fn verify_blob(name: &str, path: &Path) -> std::result::Result<(), String> {
    let mut hashed = DigestWriter::new(io::sink());
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hashed))
        .at(path)
        .map_err(|error| error.to_string())?;
    let (_, digest, _) = hashed.finish();
    if digest.hex() == name { Ok(()) } else { Err(format!("{}: its bytes are {digest}", path.display())) }
}

fn verify_layer(name: &str, dir: &Path, found: &mut Verification) {
    let untrusted = || Some(Untrusted::Layer(dir.to_owned()));
    let layer = match Layer::load(dir.to_owned()) {
        Ok(layer) if layer.id().hex() == name => layer,
        Ok(layer) => {
            let told = format!("{}: its record is that of layer {}", dir.display(), layer.id());
            return found.add(told, untrusted());
        }
        Err(error) => return found.add(error.to_string(), untrusted()),
    };
    let problems = match layer.verify() {
        Ok(problems) => problems,
        Err(error) => vec![error.to_string()],
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
