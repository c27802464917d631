//! The layers of a store: `layers/HEX/`.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::config::{ImageConfig, chain_ids};
use crate::image::digest::Digest;
use crate::image::files::{is_gone, open_dir, read_limited};
use crate::image::layer;
use crate::image::spec;
use crate::image::verify;
use crate::image::{ImageError, IoContext, Result};
use crate::inventory::{self, Inventory, Unusable};
use crate::store::Store;
use crate::store::gc::entries;

/// `layer.json`: the record of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerRecord {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// For a layer that depends on those below it (it has a hard link to one of their files): the chain id
    /// with which it was unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<Digest>,
    /// Size of the uncompressed tar in bytes.
    pub size: u64,
    /// Bytes of file contents.
    pub content_size: u64,
    /// Number of the tar's entries.
    pub entries: u64,
}

impl LayerRecord {
    /// The name of its directory: the diff id, or the chain id if it depends on the layers below.
    pub fn id(&self) -> Digest {
        self.chain_id.unwrap_or(self.diff_id)
    }
}

/// A layer in a store, or about to be published there.
#[derive(Clone, Debug)]
pub struct StoredLayer {
    pub(super) dir: PathBuf,
    /// Its record.
    pub record: LayerRecord,
}

impl StoredLayer {
    /// The name of its directory.
    pub fn id(&self) -> Digest {
        self.record.id()
    }

    /// The directory to mount.
    pub fn diff(&self) -> PathBuf {
        self.dir.join("diff")
    }

    /// Opens the directory to mount.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open_diff(&self) -> Result<OwnedFd> {
        open_dir(&self.diff())
    }

    /// Opens the recipe of the layer's tar.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open_recipe(&self) -> Result<File> {
        let path = self.dir.join("recipe");
        File::open(&path).at(&path)
    }

    /// Compares its files with its recipe; returns the damage, one line for each file.
    ///
    /// # Errors
    /// When it cannot be read at all.
    pub fn verify(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let diff = self.open_diff()?;
        let mut recipe = BufReader::new(self.open_recipe()?);
        let mut report = |error: layer::LayerError| {
            problems.push(error.to_string());
            Ok(())
        };
        let sound = verify::verify(&mut recipe, diff.as_fd(), &mut report);
        match sound {
            Ok(true) => {}
            Ok(false) if problems.is_empty() => problems.push("its tar cannot be re-assembled".to_owned()),
            Ok(false) => {}
            Err(error) => problems.push(error.to_string()),
        }
        Ok(problems)
    }

    /// Makes the layer's inventory if it has no usable one. Best effort: the layer works without.
    pub fn ensure_inventory(&self) {
        let made = self.open_diff().and_then(|diff| match Inventory::open(diff.as_fd(), &self.diff()) {
            Ok(_) => Ok(()),
            Err(_) => self.make_inventory(),
        });
        if let Err(error) = made {
            // For example because the store is read-only.
            tracing::debug!("layer {}: no inventory: {error}", self.record.diff_id);
        }
    }

    /// Makes the layer's inventory again.
    ///
    /// # Errors
    /// When the layer cannot be read, or the store cannot be written.
    pub fn make_inventory(&self) -> Result<()> {
        inventory::write(&self.diff()).map(drop).at(self.diff())
    }

    /// Compares the layer's inventory with the layer.
    ///
    /// # Errors
    /// The fault of the inventory.
    pub fn check_inventory(&self) -> Result<std::result::Result<(), Unusable>> {
        Ok(inventory::check(&self.diff()))
    }

    /// Size of the layer's inventory; 0 if it has none.
    pub fn inventory_size(&self) -> u64 {
        let path = inventory::path_of(&self.diff());
        path.and_then(|path| std::fs::symlink_metadata(path).ok()).map_or(0, |metadata| metadata.len())
    }

    pub(super) fn load(dir: PathBuf) -> Result<Self> {
        let path = dir.join("layer.json");
        let name = path.display().to_string();
        let bytes = read_limited(&mut File::open(&path).at(&path)?, &name)?;
        Ok(Self { dir, record: spec::parse(&name, &bytes)? })
    }
}

impl Store {
    /// The layer with this diff id on this chain, if the store has it.
    pub(super) fn find_layer(&self, diff_id: &Digest, chain_id: &Digest) -> Result<Option<StoredLayer>> {
        for id in [diff_id, chain_id] {
            let dir = self.layers_dir().join(id.hex());
            if is_gone(&dir)? {
                continue;
            }
            let layer = StoredLayer::load(dir)?;
            // The chain id of a single layer is its diff id; another layer there belongs to another chain.
            if layer.record.diff_id == *diff_id && layer.id() == *id {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// The layers of an image, the lowest first.
    ///
    /// # Errors
    /// When a layer is not in the store.
    pub fn stack(&self, config: &ImageConfig) -> Result<Vec<StoredLayer>> {
        let chain = chain_ids(config.diff_ids());
        let missing = |diff_id: &Digest| {
            ImageError::refused(format!("layer {diff_id}"), "is not unpacked in this store; load the image again")
        };
        let layer = |(diff_id, chain_id)| self.find_layer(diff_id, chain_id)?.ok_or_else(|| missing(diff_id));
        config.diff_ids().iter().zip(&chain).map(layer).collect()
    }

    /// Layers by their ids, in the order given.
    ///
    /// # Errors
    /// When a layer is not in the store.
    pub fn layers_by_id(&self, ids: &[Digest]) -> Result<Vec<StoredLayer>> {
        ids.iter().map(|id| StoredLayer::load(self.layers_dir().join(id.hex()))).collect()
    }

    /// Every layer of the store, sorted by id. Those with an unusable record are logged and left out.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn all_layers(&self) -> Result<Vec<StoredLayer>> {
        let mut layers = Vec::new();
        if self.is_nothing() {
            return Ok(layers);
        }
        for (name, dir) in entries(&self.layers_dir())? {
            match StoredLayer::load(dir.clone()) {
                Ok(layer) => layers.push(layer),
                // It was removed after the directory was read.
                Err(_) if is_gone(&dir).unwrap_or(false) => {}
                Err(error) => tracing::warn!("layer {name} is damaged: {error} (strata verify --repair)"),
            }
        }
        Ok(layers)
    }
}
