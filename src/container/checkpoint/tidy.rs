//! Removes layers that nothing needs, and merges layers that only one other layer needs.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::syncfs;

use super::super::{ChangeLock, Container};
use super::{exclusive, is_missing, pivot, running};
use crate::control::Request;
use crate::image::files::{make_dir, open_dir, remove_tree, sync_dir};
use crate::image::{ImageError, IoContext, Result};
use crate::inventory;
use crate::marks::chain::Chain;
use crate::store::checkpoints::{CheckpointLayer, Dependent, MergeError, Survey, mark_of, merge};
use crate::store::{Store, StoreLock};
use crate::union::layer::chain::{chain_namespace, write_chain};

/// Removes checkpoint layers that neither a container nor a checkpoint needs. Merges layers that are no checkpoint into the
/// only layer, or unmounted upper, on top of them. Mounts go on with the old layers; these are removed once no mount uses
/// them. With `wait`, waits for processes that read or make layers; otherwise it leaves the rest to the next call.
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
        // Without the removed layers, what they lay on may have a single layer on top.
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

/// Removes names of checkpoints that were never finished.
fn drop_stale_names(store: &Store, survey: &Survey) -> Result<()> {
    for (container, named) in &survey.names {
        let is_pending = survey.uppers.iter().any(|(name, mark)| name == container && mark.id == named.id);
        if is_pending && !survey.layers.contains_key(&named.id) {
            Container::open(store, container)?.remove_name(&named.name)?;
        }
    }
    Ok(())
}

/// Renames layers that are not needed, so that they can be removed without blocking others.
fn set_apart(store: &Store, survey: &Survey) -> Result<Vec<PathBuf>> {
    let dead: Vec<&CheckpointLayer> = survey.dead();
    let mut doomed = survey.rubbish.clone();
    if dead.is_empty() && doomed.is_empty() {
        return Ok(doomed);
    }
    let held = held_by_mounts(store)?;
    // A mount that uses a merged layer also uses the former state of the other one, which is in the stage.
    let is_held = |path: &PathBuf| held.iter().any(|layer| path == layer || Some(path) == stage_of(layer).as_ref());
    doomed.retain(|path| !is_held(path));
    for layer in dead.iter().filter(|layer| !is_held(&store.checkpoint_entry(layer.id))) {
        let place = store.checkpoints().join(format!("gone-{}", layer.id));
        remove_tree(&place)?;
        fs::rename(store.checkpoint_entry(layer.id), &place).at(&place)?;
        doomed.push(place);
    }
    sync_dir(&store.checkpoints())?;
    Ok(doomed)
}

/// `ROOT/checkpoints/ID` of the layers that drivers are using.
fn held_by_mounts(store: &Store) -> Result<HashSet<PathBuf>> {
    let mut held = HashSet::new();
    for container in Container::list(store)?.containers {
        let Ok(Some(mut client)) = container.running() else { continue };
        let state = client.ask(&Request::State).at(container.work())?;
        let ids = state.lowers.iter().filter_map(|lower| lower.id.as_ref()?.parse().ok());
        held.extend(ids.map(|id| store.checkpoint_entry(id)));
    }
    Ok(held)
}

/// Where the layer `entry` is merged into another one.
fn stage_of(entry: &Path) -> Option<PathBuf> {
    Some(entry.with_file_name(format!("merged-{}", entry.file_name()?.to_str()?)))
}

/// The directory that a layer is merged into.
struct Target {
    path: PathBuf,
    /// For an upper: the locks that keep it unmounted.
    _locks: Option<(ChangeLock, exclusive::Held)>,
    chain: Chain,
}

/// Returns `None` if it cannot be replaced now.
fn target(store: &Store, dependent: &Dependent) -> Result<Option<Target>> {
    match dependent {
        Dependent::Layer(id) => {
            let Some(layer) = store.checkpoint_layer(*id)? else { return Ok(None) };
            Ok(Some(Target { path: layer.dir(), _locks: None, chain: Chain { id: layer.id, below: layer.below } }))
        }
        Dependent::Upper(name) => {
            let container = Container::open(store, name)?;
            let change = container.lock_change()?;
            // Only the driver can replace the upper of a mount; the next checkpoint turns it into a layer.
            let Ok(None) = container.running() else { return Ok(None) };
            let held = match exclusive::hold(&container) {
                Err(error @ ImageError::Refused { .. }) => {
                    tracing::debug!("{error}");
                    return Ok(None);
                }
                held => held?,
            };
            let path = container.upper();
            let mark = mark_of(open_dir(&path)?.as_fd(), &path)?;
            Ok(mark.map(|chain| Target { path, _locks: Some((change, held)), chain }))
        }
    }
}

/// The place where a merged directory is made.
struct Stage(PathBuf);

impl Stage {
    fn layer(&self) -> PathBuf {
        self.0.join("layer")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::debug!("left to gc: {error}");
        }
    }
}

/// Merges `layer` into the layer or upper on top of it; returns false if that is not possible now.
fn merge_into(store: &Store, layer: &CheckpointLayer, dependent: &Dependent, wait: bool) -> Result<bool> {
    let Some(stage) = stage_of(&store.checkpoint_entry(layer.id)).map(Stage) else { return Ok(false) };
    let Some(target) = prepare(store, layer, dependent, &stage)? else { return Ok(false) };
    let Some(alone) = alone(store, wait)? else { return Ok(false) };
    let is_candidate = |(one, on_it): &(CheckpointLayer, Dependent)| one.id == layer.id && on_it == dependent;
    if !store.survey()?.mergeable().iter().any(is_candidate) {
        return Ok(false);
    }
    // The merged layer has another size.
    let size = target.path.with_file_name("size");
    if matches!(dependent, Dependent::Layer(_)) && size.exists() {
        fs::remove_file(&size).at(&size)?;
    }
    pivot::swap(&stage.layer(), &target.path)?;
    pivot::sync_both(&stage.layer(), &target.path)?;
    drop(alone);
    // The stage now holds the old directory. It is removed together with the layer that was merged, because a
    // mount may use both.
    std::mem::forget(stage);
    if matches!(dependent, Dependent::Layer(_))
        && let Err(error) = inventory::write(&target.path)
    {
        tracing::debug!("{}: no inventory: {error}", target.path.display());
    }
    if let Dependent::Layer(id) = dependent {
        running::use_merged(store, *id)?;
    }
    Ok(true)
}

/// Makes the merged directory. Meanwhile, others can make and read layers.
fn prepare(store: &Store, layer: &CheckpointLayer, dependent: &Dependent, stage: &Stage) -> Result<Option<Target>> {
    let _chains = store.lock_chains()?;
    let found = match target(store, dependent) {
        // It was removed in the meantime.
        Err(ImageError::NoSuchContainer { .. }) => None,
        Err(error) if is_missing(&error) => None,
        found => found?,
    };
    let Some(target) = found.filter(|target| target.chain.below == Some(layer.id)) else { return Ok(None) };
    let users = running::users_of(store, &HashSet::from([layer.id]))?;
    if users.iter().any(|(_, client)| client.is_none()) {
        return Ok(None);
    }
    // Files that are linked now must not become files of an upper.
    let mut both = vec![layer.clone()];
    if let Dependent::Layer(id) = dependent {
        both.extend(store.checkpoint_layer(*id)?);
    }
    match running::share(store, &both) {
        // This is tried again next time, or when it is unmounted.
        Err(error @ ImageError::Refused { .. }) => {
            tracing::debug!("checkpoint layer {} stays: {error}", layer.id);
            return Ok(None);
        }
        shared => shared?,
    }
    remove_tree(&stage.0)?;
    make_dir(&stage.0, 0o700)?;
    let made = make_merged(layer, &target, &stage.layer())?;
    Ok(made.then_some(target))
}

/// Returns false if the two cannot be merged.
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
