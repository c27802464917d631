//! Replaces the lower layers of a mount, by those of an earlier checkpoint or by merged ones.
//!
//! The lowest layers that both stacks have in common keep their ids. New layers get ids above all ids that were ever used, so an
//! id never means two layers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::config::{Inventories, OverlayConfig};
use crate::marks::chain::ChainId;
use crate::union::layer::pivot::open_dir;
use crate::union::layer::{ChangeError, Dir, Layer, LayerId, LayerStack, Stat, Successor};

/// The lower layers that a mount will have.
#[derive(Debug)]
pub struct NextLowers {
    /// The new ones, topmost first.
    added: Vec<Layer>,
    /// Number of the lowest layers, which stay.
    common: usize,
    /// The root of the topmost layer, open for reading.
    pub(super) root: OwnedFd,
    /// The id in the chain mark of the topmost layer.
    pub(super) top: Option<ChainId>,
}

/// The lower layers that were taken away from a mount.
#[derive(Debug)]
pub struct Past {
    /// Topmost first.
    layers: Vec<Layer>,
    /// Number of layers in their place.
    added: usize,
}

/// The lower layers that a mount will have after some were merged.
#[derive(Debug)]
pub struct MergedLowers(Vec<Slot>);

/// One of these layers.
#[derive(Debug)]
enum Slot {
    /// A layer of the mount, with this id.
    Same(LayerId),
    /// A merged layer. It gets the id of one of its sources.
    Merged(Box<Layer>),
}

impl Past {
    /// The layer with this id, if it is one of these.
    pub(crate) fn layer(&self, id: LayerId) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// True if the mount has new layers.
    pub(crate) fn has_added(&self) -> bool {
        self.added > 0
    }
}

impl LayerStack {
    /// Opens and checks the layers at `paths`, topmost first.
    ///
    /// # Errors
    /// One line naming the layer and what is wrong with it.
    pub(crate) fn prepare_lowers(&self, paths: &[PathBuf], config: &OverlayConfig) -> Result<NextLowers, ChangeError> {
        let none = || ChangeError { errno: Errno::INVAL, line: "no layers are named".to_owned() };
        let root = open_dir(paths.first().ok_or_else(none)?)?;
        let common = self.count_common(paths)?;
        let (above, _) = paths.split_at_checked(paths.len().saturating_sub(common)).ok_or_else(none)?;
        let added = above.iter().map(|path| open_layer(path, config)).collect::<Result<Vec<_>, _>>()?;
        let kept = self.lowers().iter().skip(self.visible.saturating_sub(common));
        let chains: Vec<_> = added.iter().chain(kept).map(|layer| (layer.path.as_path(), layer.chain)).collect();
        check_order(&chains)?;
        let top = chains.first().and_then(|(_, chain)| *chain).map(|chain| chain.id);
        Ok(NextLowers { added, common, root, top })
    }

    /// Returns how many of the lowest layers of this mount are also the lowest of `paths`.
    fn count_common(&self, paths: &[PathBuf]) -> Result<usize, ChangeError> {
        let mut common = 0;
        for (layer, path) in self.lowers().iter().rev().zip(paths.iter().rev()) {
            let fail = |errno| ChangeError::new(path, errno);
            let found = Stat::of(open_dir(path)?.as_fd(), c"").map_err(fail)?;
            if found.id() != layer.root.stat_self().map_err(fail)?.id() {
                break;
            }
            common += 1;
        }
        Ok(common)
    }

    /// Replaces the lower layers that are not among the next ones. Returns the replaced ones.
    pub(crate) fn replace_lowers(&mut self, next: NextLowers) -> Past {
        let NextLowers { mut added, common, .. } = next;
        let mut id = self.upper_id;
        for layer in added.iter_mut().rev() {
            id = id.next();
            layer.id = id;
            layer.fs = self.filesystems.add_root(layer.device);
        }
        let gone = self.visible.saturating_sub(common);
        let count = added.len();
        let layers: Vec<Layer> = self.lowers.splice(..gone, added).collect();
        self.visible = common + count;
        Past { layers, added: count }
    }

    /// Undoes [`Self::replace_lowers`].
    pub(crate) fn restore_lowers(&mut self, past: Past) {
        self.visible = (self.visible + past.layers.len()).saturating_sub(past.added);
        drop(self.lowers.splice(..past.added, past.layers));
    }

    /// Makes the successor the upper, above the layers that [`Self::replace_lowers`] put there.
    ///
    /// # Errors
    /// One line of text. Nothing has changed on an error.
    pub(crate) fn replace_upper(&mut self, successor: &mut Successor) -> Result<(), ChangeError> {
        let top = self.lowers.first().map_or(self.upper_id, |layer| layer.id.max(self.upper_id));
        let upper = self.upper_mut().ok_or_else(|| ChangeError::refused("there is no upperdir"))?;
        upper.replace(successor)?;
        self.upper_id = top;
        self.begin_generation();
        Ok(())
    }
}

impl LayerStack {
    /// Opens and checks the layers at `paths`, topmost first. Some of them replace layers of the mount.
    ///
    /// # Errors
    /// One line of text.
    pub(crate) fn prepare_merged(
        &self,
        paths: &[PathBuf],
        config: &OverlayConfig,
    ) -> Result<MergedLowers, ChangeError> {
        let mut slots = Vec::with_capacity(paths.len());
        let mut chains = Vec::with_capacity(paths.len() + 1);
        chains.push((Path::new("the upperdir"), self.upper_chain()));
        // Layers that are not matched yet, and the free ids of the mount's layers since the last match.
        let mut rest = self.lowers();
        let mut waiting: Vec<usize> = Vec::new();
        for path in paths {
            let fail = |errno| ChangeError::new(path, errno);
            let id = Stat::of(open_dir(path)?.as_fd(), c"").map_err(fail)?.id();
            let is_it = |layer: &Layer| layer.root.stat_self().is_ok_and(|stat| stat.id() == id);
            match rest.iter().position(is_it) {
                Some(at) => {
                    let (gone, from) = rest.split_at_checked(at).unwrap_or_default();
                    give_ids(&mut slots, &mut waiting, gone)?;
                    let Some((found, below)) = from.split_first() else { continue };
                    slots.push(Slot::Same(found.id));
                    chains.push((path.as_path(), found.chain));
                    rest = below;
                }
                None => {
                    let layer = open_layer(path, config)?;
                    chains.push((path.as_path(), layer.chain));
                    waiting.push(slots.len());
                    slots.push(Slot::Merged(Box::new(layer)));
                }
            }
        }
        give_ids(&mut slots, &mut waiting, rest)?;
        check_order(&chains)?;
        Ok(MergedLowers(slots))
    }

    /// Puts merged layers in the place of their sources. Returns the sources.
    pub(crate) fn replace_merged(&mut self, merged: MergedLowers) -> Past {
        let mut before: Vec<Layer> = self.lowers.drain(..self.visible).collect();
        let (mut layers, mut added) = (Vec::with_capacity(merged.0.len()), 0);
        for slot in merged.0 {
            match slot {
                Slot::Same(id) => {
                    let at = before.iter().position(|layer| layer.id == id);
                    layers.extend(at.map(|at| before.remove(at)));
                }
                Slot::Merged(mut layer) => {
                    layer.fs = self.filesystems.add_root(layer.device);
                    added += 1;
                    layers.push(*layer);
                }
            }
        }
        self.visible = layers.len();
        self.lowers.splice(..0, layers);
        self.generation += 1;
        Past { layers: before, added }
    }

    /// Undoes [`Self::replace_merged`].
    pub(crate) fn restore_unmerged(&mut self, past: Past) {
        let rest = self.lowers.split_off(self.visible);
        self.lowers.retain(|layer| past.layer(layer.id).is_none());
        self.lowers.extend(past.layers);
        self.lowers.sort_by_key(|layer| std::cmp::Reverse(layer.id));
        self.visible = self.lowers.len();
        self.lowers.extend(rest);
    }
}

/// Gives the merged layers at `waiting` ids of the layers `gone`, which had this place in the stack.
fn give_ids(slots: &mut [Slot], waiting: &mut Vec<usize>, gone: &[Layer]) -> Result<(), ChangeError> {
    let mut ids = gone.iter().map(|layer| layer.id);
    for at in waiting.drain(..) {
        let id = ids.next().ok_or_else(|| ChangeError::refused("the mount lacks a layer that was merged"))?;
        if let Some(Slot::Merged(layer)) = slots.get_mut(at) {
            layer.id = id;
        }
    }
    Ok(())
}

fn open_layer(path: &Path, config: &OverlayConfig) -> Result<Layer, ChangeError> {
    let mut layer = Layer::of_root(Dir::root(open_dir(path)?)).map_err(|errno| ChangeError::new(path, errno))?;
    path.clone_into(&mut layer.path);
    layer.find_chain().map_err(|error| ChangeError { errno: Errno::IO, line: error.to_string() })?;
    if config.inventory != Inventories::Off && config.timeout.is_none() {
        layer.find_inventory();
    }
    Ok(layer)
}

/// Checks that each layer is directly above the layer that its chain mark names.
fn check_order(layers: &[(&Path, Option<crate::marks::chain::Chain>)]) -> Result<(), ChangeError> {
    for (at, (path, chain)) in layers.iter().enumerate() {
        let below = layers.get(at + 1).and_then(|(_, chain)| *chain).map(|chain| chain.id);
        let needed = chain.and_then(|chain| chain.below);
        if let Some(id) = needed.filter(|id| below != Some(*id)) {
            let line = format!("lower layer {} needs the checkpoint layer {id} directly below it", path.display());
            return Err(ChangeError { errno: Errno::INVAL, line });
        }
    }
    Ok(())
}
