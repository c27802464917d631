//! What lies on each checkpoint layer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{CheckpointLayer, Named, mark_of, names_in};
use crate::image::files::{is_gone, open_dir};
use crate::image::{ImageError, Result};
use crate::marks::chain::{Chain, ChainId};
use crate::store::Store;
use crate::store::gc::entries;

/// A layer or upper directly on a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dependent {
    /// Another layer.
    Layer(ChainId),
    /// The upper of this container.
    Upper(String),
}

/// All checkpoint layers of a store, and the references to them.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The layers.
    pub(crate) layers: BTreeMap<ChainId, CheckpointLayer>,
    /// Other entries beside them: unfinished, or about to be removed.
    pub(crate) rubbish: Vec<PathBuf>,
    /// Containers with their upper's marks.
    pub(crate) uppers: Vec<(String, Chain)>,
    /// Containers with their names for layers.
    pub(crate) names: Vec<(String, Named)>,
    /// Unreadable containers, one line each: the layers that they need are unknown.
    pub(crate) damaged: Vec<String>,
}

impl Store {
    /// Inspects all layers and containers. The caller holds the lock of the chains.
    pub(crate) fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        let dir = self.checkpoints();
        if is_gone(&dir)? {
            return Ok(survey);
        }
        for (name, path) in entries(&dir)? {
            let Ok(id) = name.parse::<ChainId>() else {
                survey.rubbish.extend((name != "lock").then_some(path));
                continue;
            };
            match self.checkpoint_layer(id) {
                Ok(Some(layer)) => drop(survey.layers.insert(id, layer)),
                Ok(None) => survey.rubbish.push(path),
                Err(error) => survey.damaged.push(error.to_string()),
            }
        }
        for (name, path) in entries(&self.containers())? {
            if let Err(error) = survey.container(&name, &path) {
                survey.damaged.push(format!("container {name}: {error}"));
            }
        }
        Ok(survey)
    }
}

impl Survey {
    fn container(&mut self, name: &str, dir: &Path) -> Result<()> {
        self.names.extend(names_in(dir)?.into_iter().map(|named| (name.to_owned(), named)));
        let upper = dir.join("upper");
        // A container that was removed in the meantime, or set aside as damaged, has no upper.
        if fs::symlink_metadata(&upper).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(());
        }
        let mark = mark_of(open_dir(&upper)?.as_fd(), &upper)?;
        self.uppers.extend(mark.map(|mark| (name.to_owned(), mark)));
        Ok(())
    }

    /// The layers and uppers directly on each layer.
    pub(crate) fn dependents(&self) -> HashMap<ChainId, Vec<Dependent>> {
        let mut found: HashMap<ChainId, Vec<Dependent>> = HashMap::new();
        let layers = self.layers.values().map(|layer| (layer.below, Dependent::Layer(layer.id)));
        let uppers = self.uppers.iter().map(|(name, mark)| (mark.below, Dependent::Upper(name.clone())));
        for (below, dependent) in layers.chain(uppers) {
            if let Some(below) = below {
                found.entry(below).or_default().push(dependent);
            }
        }
        found
    }

    /// Layers with a name.
    pub(crate) fn named(&self) -> HashSet<ChainId> {
        self.names.iter().map(|(_, named)| named.id).filter(|id| self.layers.contains_key(id)).collect()
    }

    /// Layers that nothing needs.
    pub(crate) fn dead(&self) -> Vec<&CheckpointLayer> {
        let mut alive = HashSet::new();
        let named = self.named();
        let mut pending: Vec<ChainId> =
            self.uppers.iter().filter_map(|(_, mark)| mark.below).chain(named.iter().copied()).collect();
        while let Some(id) = pending.pop() {
            if alive.insert(id) {
                pending.extend(self.layers.get(&id).and_then(|layer| layer.below));
            }
        }
        self.layers.values().filter(|layer| !alive.contains(&layer.id)).collect()
    }

    /// Unnamed layers with exactly one layer or upper on them: the two can be merged.
    pub(crate) fn mergeable(&self) -> Vec<(CheckpointLayer, Dependent)> {
        let (named, dependents) = (self.named(), self.dependents());
        let candidates = self.layers.values().filter(|layer| !named.contains(&layer.id));
        let single = |layer: &CheckpointLayer| match dependents.get(&layer.id).map(Vec::as_slice) {
            Some([one]) => Some((layer.clone(), one.clone())),
            _ => None,
        };
        candidates.filter_map(single).collect()
    }

    /// Faults of the chains, one line each.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = self.damaged.clone();
        let missing = |below: Option<ChainId>| below.filter(|id| !self.layers.contains_key(id));
        for (name, mark) in &self.uppers {
            if let Some(id) = missing(mark.below) {
                faults.push(format!(
                    "container {name}: checkpoint layer {id}, which its changes are based on, is missing"
                ));
            }
        }
        for layer in self.layers.values() {
            if let Some(id) = missing(layer.below) {
                faults.push(format!("checkpoint layer {}: layer {id}, which must be below it, is missing", layer.id));
            }
        }
        let pending: HashSet<ChainId> = self.uppers.iter().map(|(_, mark)| mark.id).collect();
        for (name, named) in &self.names {
            // An interrupted checkpoint leaves a name for the upper that would have become its layer.
            if missing(Some(named.id)).is_some() && !pending.contains(&named.id) {
                faults.push(format!("checkpoint {name}@{}: its layer {} is missing", named.name, named.id));
            }
        }
        faults
    }
}

impl Store {
    /// Faults of the chains of checkpoint layers, one line each.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn chain_faults(&self) -> Result<Vec<String>> {
        if is_gone(&self.checkpoints())? {
            return Ok(Vec::new());
        }
        let _lock = self.lock_chains()?;
        Ok(self.survey()?.faults())
    }

    /// Number of checkpoint layers, and total size of their files.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn checkpoints_size(&self) -> Result<(usize, u64)> {
        if is_gone(&self.checkpoints())? {
            return Ok((0, 0));
        }
        let _lock = self.lock_chains()?;
        let survey = self.survey()?;
        let sizes = survey.layers.values().map(CheckpointLayer::size).collect::<Result<Vec<u64>, ImageError>>()?;
        Ok((sizes.len(), sizes.iter().sum()))
    }
}
