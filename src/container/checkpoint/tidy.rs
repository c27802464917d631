//! Removing layers that nothing needs, and merging those that only one layer needs.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::syncfs;

use super::super::{ChangeLock, Container};
use super::{exclusive, is_missing, pivot, running};
use crate::control::{Client, Request};
use crate::image::files::{make_dir, open_dir, remove_tree, sync_dir};
use crate::image::{ImageError, IoContext, Result};
use crate::inventory;
use crate::marks::chain::Chain;
use crate::store::checkpoints::{CheckpointLayer, Dependent, MergeError, Survey, mark_of, merge};
use crate::store::{Store, StoreLock};
use crate::union::layer::chain::{chain_namespace, write_chain};

/// Removes checkpoint layers that neither a container nor a checkpoint needs, and merges those that are no checkpoint into the
/// one layer, or the unmounted upper, that stands on them. Mounted containers go on with the merged layers. With `wait` it
/// waits for whoever reads or makes layers; else it leaves the rest to the next time.
///
/// # Errors
/// When a layer cannot be removed or merged.
pub fn tidy(store: &Store, wait: bool) -> Result<()> {
    if fs::symlink_metadata(store.checkpoints()).is_err() {
        return Ok(());
    }
    let Some(_turn) = store.lock_tidying()? else { return Ok(()) };
    let mut failed = HashSet::new();
    while let Some(alone) = alone(store, wait)? {
        let survey = store.survey()?;
        if let Some(damage) = survey.damaged.first() {
            tracing::warn!("{damage}; no checkpoint layers are removed");
            return Ok(());
        }
        drop_stale_names(store, &survey)?;
        let doomed = set_apart(store, &survey)?;
        let next = survey.mergeable().into_iter().find(|(layer, _)| !failed.contains(&layer.id));
        drop(alone);
        doomed.iter().try_for_each(|path| remove_tree(path))?;
        // What stood on them alone may be alone on what is below now.
        if !doomed.is_empty() {
            continue;
        }
        let Some((layer, dependent)) = next else { return Ok(()) };
        if !merge_into(store, &layer, &dependent, wait)? {
            failed.insert(layer.id);
        }
    }
    Ok(())
}

fn alone(store: &Store, wait: bool) -> Result<Option<StoreLock>> {
    if wait { store.lock_chains_alone().map(Some) } else { store.try_lock_chains_alone() }
}

/// Names of checkpoints that were never finished.
fn drop_stale_names(store: &Store, survey: &Survey) -> Result<()> {
    for (container, named) in &survey.names {
        let is_pending = survey.uppers.iter().any(|(name, mark)| name == container && mark.id == named.id);
        if is_pending && !survey.layers.contains_key(&named.id) {
            Container::open(store, container)?.remove_name(&named.name)?;
        }
    }
    Ok(())
}

/// Renames what is not needed, so that it can be removed without anybody waiting.
fn set_apart(store: &Store, survey: &Survey) -> Result<Vec<PathBuf>> {
    let dead: Vec<&CheckpointLayer> = survey.dead();
    let mut doomed = survey.rubbish.clone();
    if dead.is_empty() && doomed.is_empty() {
        return Ok(doomed);
    }
    let held = held_by_mounts(store)?;
    doomed.retain(|path| !held.iter().any(|held| held.starts_with(path)));
    for layer in dead.iter().filter(|layer| !held.contains(&layer.dir())) {
        let place = store.checkpoints().join(format!("gone-{}", layer.id));
        remove_tree(&place)?;
        fs::rename(store.checkpoint_entry(layer.id), &place).at(&place)?;
        doomed.push(place);
    }
    sync_dir(&store.checkpoints())?;
    Ok(doomed)
}

/// The layers that drivers have in use. One that was not told of a merge, for whoever merged was killed, is told now.
fn held_by_mounts(store: &Store) -> Result<HashSet<PathBuf>> {
    let mut held = HashSet::new();
    for container in Container::list(store)?.containers {
        let Ok(Some(mut client)) = container.running() else { continue };
        if let Err(error) = container.ask_to_follow_if_behind(store, &mut client) {
            tracing::debug!("{error}");
        }
        let state = client.ask(&Request::State).at(container.work())?;
        held.extend(state.lowers.iter().map(|lower| crate::control::path(&lower.path)));
    }
    Ok(held)
}

impl Container {
    fn ask_to_follow_if_behind(&self, store: &Store, mount: &mut Client) -> Result<()> {
        let wanted: Vec<PathBuf> = self.lower_dirs(store, &self.chain(store)?)?;
        let state = mount.ask(&Request::State).at(self.work())?;
        let used: Vec<PathBuf> = state.lowers.iter().map(|lower| crate::control::path(&lower.path)).collect();
        if used == wanted { Ok(()) } else { self.ask_to_follow(store, mount) }
    }
}

/// The directory that a layer is merged into.
struct Target {
    path: PathBuf,
    /// Of an upper: what keeps it unmounted.
    _locks: Option<(ChangeLock, exclusive::Held)>,
    chain: Chain,
}

/// `None` if it cannot be replaced now.
fn target(store: &Store, dependent: &Dependent) -> Result<Option<Target>> {
    match dependent {
        Dependent::Layer(id) => {
            let Some(layer) = store.checkpoint_layer(*id)? else { return Ok(None) };
            Ok(Some(Target { path: layer.dir(), _locks: None, chain: Chain { id: layer.id, below: layer.below } }))
        }
        Dependent::Upper(name) => {
            let container = Container::open(store, name)?;
            let change = container.lock_change()?;
            // The driver alone replaces the upper of a mount: the next checkpoint makes a layer of it.
            let Ok(None) = container.running() else { return Ok(None) };
            let held = match exclusive::hold(&container.upper(), &container.work()) {
                Err(ImageError::Refused { .. }) => return Ok(None),
                held => held?,
            };
            let path = container.upper();
            let mark = mark_of(open_dir(&path)?.as_fd(), &path)?;
            Ok(mark.map(|chain| Target { path, _locks: Some((change, held)), chain }))
        }
    }
}

/// A directory that goes away with all that is in it.
struct Stage(PathBuf);

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::debug!("left to gc: {error}");
        }
    }
}

/// Merges `layer` into what stands on it; `false` if that cannot be done now.
fn merge_into(store: &Store, layer: &CheckpointLayer, dependent: &Dependent, wait: bool) -> Result<bool> {
    // In the end it holds the old directory, or a merged one that is not wanted.
    let stage = Stage(store.checkpoints().join(format!("merged-{}", layer.id)));
    let Some(target) = prepare(store, layer, dependent, &stage)? else { return Ok(false) };
    let Some(alone) = alone(store, wait)? else { return Ok(false) };
    let is_candidate = |(one, on_it): &(CheckpointLayer, Dependent)| one.id == layer.id && on_it == dependent;
    let done = store.survey()?.mergeable().iter().any(is_candidate) && replace(store, &target, &stage)?;
    drop(alone);
    if done
        && matches!(dependent, Dependent::Layer(_))
        && let Err(error) = inventory::write(&target.path)
    {
        tracing::debug!("{}: no inventory: {error}", target.path.display());
    }
    Ok(done)
}

/// Makes the merged directory. Nobody is kept from making and reading layers meanwhile.
fn prepare(store: &Store, layer: &CheckpointLayer, dependent: &Dependent, stage: &Stage) -> Result<Option<Target>> {
    let _chains = store.lock_chains()?;
    let found = match target(store, dependent) {
        // It was removed meanwhile.
        Err(ImageError::NoSuchContainer { .. }) => None,
        Err(error) if is_missing(&error) => None,
        found => found?,
    };
    let Some(target) = found.filter(|target| target.chain.below == Some(layer.id)) else { return Ok(None) };
    remove_tree(&stage.0)?;
    make_dir(&stage.0, 0o700)?;
    let made = make_merged(layer, &target, &stage.0.join("layer"))?;
    Ok(made.then_some(target))
}

/// `false` if the two cannot be merged.
fn make_merged(layer: &CheckpointLayer, target: &Target, place: &Path) -> Result<bool> {
    make_dir(place, 0o700)?;
    let (upper, lower, into) = (open_dir(&target.path)?, layer.open()?, open_dir(place)?);
    match merge(upper.as_fd(), lower.as_fd(), into.as_fd()) {
        Ok(()) => {}
        Err(MergeError::Unmergeable(reason)) => {
            tracing::debug!("checkpoint layer {} stays: {reason}", layer.id);
            return Ok(false);
        }
        Err(error) => return Err(ImageError::refused(format!("merging checkpoint layer {}", layer.id), error)),
    }
    let chain = Chain { id: target.chain.id, below: layer.below };
    chain_namespace(into.as_fd()).and_then(|namespace| write_chain(into.as_fd(), namespace, &chain)).at(place)?;
    syncfs(&into).at(place)?;
    Ok(true)
}

/// Puts the merged directory into its place and tells the mounts; `false`, and nothing has changed, if one cannot follow.
fn replace(store: &Store, target: &Target, stage: &Stage) -> Result<bool> {
    let mut mounts: Vec<(Container, Client)> = Vec::new();
    for (container, client) in running::users_of(store, &HashSet::from([target.chain.id]))? {
        let Some(client) = client else { return Ok(false) };
        mounts.push((container, client));
    }
    // The merged one's is another.
    let size = target.path.with_file_name("size");
    if target.path.ends_with("layer") && size.exists() {
        fs::remove_file(&size).at(&size)?;
    }
    let merged = stage.0.join("layer");
    pivot::swap(&merged, &target.path)?;
    pivot::sync_both(&merged, &target.path)?;
    let told = mounts.iter_mut().try_for_each(|(container, client)| container.ask_to_follow(store, client));
    let Err(error) = told else { return Ok(true) };
    tracing::warn!("checkpoint layers are not merged: {error}");
    pivot::swap(&merged, &target.path)?;
    for (container, client) in &mut mounts {
        if let Err(error) = container.ask_to_follow(store, client) {
            tracing::debug!("{error}");
        }
    }
    Ok(false)
}
