//! Verbs about checkpoints, and checkpoints in other verbs.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FileType;
use serde_json::{Value, json};
use stratafs::container::checkpoint::{self, OpenStack, split_name};
use stratafs::container::{Container, escaped_option, rootless};
use stratafs::image::ImageError;
use stratafs::image::snapshot::{self, Omitted, XattrPermissions};
use stratafs::image::time::Timestamp;
use stratafs::store::{Store, StoredLayer};
use stratafs::union::view::{Entry, View};

use super::archives::enter_namespace_of;
use super::args::{Checkpoint, CheckpointCreate, CheckpointLs, CheckpointRm, CheckpointVerb, Fork, Rollback};
use super::output::{each, print_json, print_line, print_path, print_table, size};

pub fn run(store: &Store, args: &Checkpoint) -> Result<()> {
    match &args.verb {
        CheckpointVerb::Create(args) => create(store, args),
        CheckpointVerb::Ls(args) => list(store, args),
        CheckpointVerb::Rm(args) => remove(store, args),
    }
}

fn create(store: &Store, args: &CheckpointCreate) -> Result<()> {
    let container = Container::open(store, &args.subject)?;
    let name = args.name.as_deref().context("the checkpoint needs a name")?;
    let made = container.create_checkpoint(store, name)?;
    checkpoint::list_apart(&made.layer);
    Ok(print_line(name)?)
}

/// Checkpoints as JSON, for `ls` and `inspect`.
pub fn described(checkpoints: &[checkpoint::Checkpoint]) -> Value {
    let value = |checkpoint: &checkpoint::Checkpoint| {
        json!({"Name": checkpoint.name, "Created": checkpoint.created.to_string(), "Id": checkpoint.layer.id.to_string(),
            "Size": checkpoint.layer.size().ok(), "Parent": parent(checkpoints, checkpoint),
            "Dir": checkpoint.layer.dir()})
    };
    checkpoints.iter().map(value).collect()
}

/// The name of the checkpoint directly below.
fn parent<'c>(all: &'c [checkpoint::Checkpoint], checkpoint: &checkpoint::Checkpoint) -> Option<&'c str> {
    let below = all.iter().find(|other| Some(other.layer.id) == checkpoint.layer.below);
    below.map(|below| below.name.as_str())
}

fn list(store: &Store, args: &CheckpointLs) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    let all = container.checkpoints(store)?;
    if args.json {
        return Ok(print_json(&described(&all))?);
    }
    if args.quiet {
        return Ok(all.iter().try_for_each(|checkpoint| print_line(&checkpoint.name))?);
    }
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for checkpoint in &all {
        let parent = parent(&all, checkpoint).unwrap_or("-").to_owned();
        rows.push(vec![checkpoint.name.clone(), checkpoint.created.ago(now), size(checkpoint.layer.size()?), parent]);
    }
    Ok(print_table(&["NAME", "CREATED", "SIZE", "PARENT"], &rows)?)
}

fn remove(store: &Store, args: &CheckpointRm) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    let mut count = 0;
    let removed = each(&args.names, |name| {
        container.remove_checkpoint(store, name)?;
        count += 1;
        Ok(print_line(name)?)
    });
    let tidied = if count > 0 { tidy(store) } else { Ok(()) };
    removed.and(tidied)
}

/// Removes and merges layers that are no longer checkpoints. For this, a user without privilege enters a namespace from
/// which a process cannot return, so this is the last action of the process.
pub fn tidy(store: &Store) -> Result<()> {
    if !store.has_checkpoints() {
        return Ok(());
    }
    if let Err(error) = rootless::enter() {
        // Without a namespace, only files of this user can be merged.
        tracing::debug!("{error}");
    }
    Ok(checkpoint::tidy(store, true)?)
}

pub fn rollback(store: &Store, args: &Rollback) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    if let Some(abandoned) = container.rollback(store, &args.checkpoint, args.keep.as_deref())? {
        abandoned.remove_apart()?;
    }
    if let Some(keep) = &args.keep {
        checkpoint::list_apart(&container.find_checkpoint(store, keep)?.layer);
    }
    Ok(print_line(&args.container)?)
}

pub fn fork(store: &Store, args: &Fork) -> Result<()> {
    let (name, checkpoint) = split_name(&args.from);
    let forked = Container::open(store, name)?.fork(store, checkpoint, &args.name)?;
    if let (None, Some(made)) = (checkpoint, forked.chain(store)?.first()) {
        checkpoint::list_apart(made);
    }
    if !args.mount {
        return Ok(print_line(&args.name)?);
    }
    match forked.mount(store) {
        Ok(mountpoint) => Ok(print_path(mountpoint)?),
        Err(error) => {
            forked.clone().remove(store)?;
            Err(error.into())
        }
    }
}

pub fn of_mount(mountpoint: &Path, dir: &Path) -> Result<()> {
    let work = super::mounts::work_dir_of(mountpoint)?;
    if work.parent().is_some_and(|dir| dir.join("container.json").exists()) {
        bail!("{}: is the mount of a container; give that one's name", mountpoint.display());
    }
    let dir = std::path::absolute(dir)?;
    let mut option = OsString::from("lowerdir=");
    for (number, lower) in checkpoint::of_mount(&work, &dir)?.iter().enumerate() {
        option.push(if number > 0 { ":" } else { "" });
        option.push(escaped_option(lower));
    }
    Ok(print_path(Path::new(&option))?)
}

/// The container and the checkpoint in `CONTAINER@CHECKPOINT`. `NAME@DIGEST` refers to an image.
pub fn container_at(store: &Store, text: &str) -> Option<(Container, String)> {
    let (name, checkpoint) = split_name(text);
    let checkpoint = checkpoint.filter(|checkpoint| !checkpoint.starts_with("sha256:"))?;
    Some((Container::open(store, name).ok()?, checkpoint.to_owned()))
}

/// A file tree: of a container, a checkpoint or an image.
pub enum Side {
    Container(Box<OpenStack>),
    Image(Vec<OwnedFd>),
}

impl Side {
    /// A container takes precedence over an image of the same name.
    pub fn open(store: &Store, text: &str) -> Result<Self> {
        if let Some((container, checkpoint)) = container_at(store, text) {
            enter_namespace_of(&container)?;
            return Ok(Self::Container(Box::new(container.open_stack(store, Some(&checkpoint))?)));
        }
        match Container::open(store, text) {
            Ok(container) => {
                enter_namespace_of(&container)?;
                Ok(Self::Container(Box::new(container.open_stack(store, None)?)))
            }
            Err(error) => {
                let layers = store.find(text).and_then(|image| store.layers_of(&image)).map_err(|unknown| {
                    // If it is neither, the container's error suggests a similar name.
                    match text.contains([':', '/'])
                        || !matches!(error, ImageError::NoSuchContainer { near: Some(_), .. })
                    {
                        true => unknown,
                        false => error,
                    }
                })?;
                rootless::enter()?;
                Ok(Self::Image(layers.iter().rev().map(StoredLayer::open_diff).collect::<Result<_, _>>()?))
            }
        }
    }

    /// Where its files store owner, mode and type.
    pub fn permissions(&self) -> XattrPermissions {
        match self {
            Self::Container(stack) => stack.permissions,
            // Either all layers of a store have such attributes or none.
            Self::Image(_) => XattrPermissions::Auto,
        }
    }

    /// Its directories, the topmost first.
    pub fn all(&self) -> Box<dyn Iterator<Item = &OwnedFd> + '_> {
        match self {
            Self::Container(stack) => Box::new(stack.all()),
            Self::Image(layers) => Box::new(layers.iter()),
        }
    }
}

/// The changes of a container, or of its checkpoint, relative to its image.
pub fn changes(store: &Store, text: &str) -> Result<Vec<snapshot::Change>> {
    let (name, checkpoint) = split_name(text);
    let container = Container::open(store, name)?;
    if container.record.read_only {
        container.open_upper()?;
    }
    container.join()?;
    let stack = container.open_stack(store, checkpoint)?;
    let image: Vec<BorrowedFd<'_>> = stack.image.iter().map(AsFd::as_fd).collect();
    match stack.changed.as_slice() {
        [upper] => {
            let stubs = Omitted::new(container.record.stubs.iter().map(PathBuf::as_path));
            Ok(snapshot::changes_without(upper.as_fd(), &image, &stubs, stack.permissions)?)
        }
        _ => Ok(snapshot::compare(&image, &stack.all().map(AsFd::as_fd).collect::<Vec<_>>(), stack.permissions)?),
    }
}

/// The changes that turn one into the other.
pub fn differences(store: &Store, old: &str, new: &str) -> Result<Vec<snapshot::Change>> {
    let _lock = store.lock_shared()?;
    let (old, new) = (Side::open(store, old)?, Side::open(store, new)?);
    let told = [old.permissions(), new.permissions()];
    let permissions = told.into_iter().find(|told| *told != XattrPermissions::Auto).unwrap_or_default();
    let old: Vec<BorrowedFd<'_>> = old.all().map(AsFd::as_fd).collect();
    let new: Vec<BorrowedFd<'_>> = new.all().map(AsFd::as_fd).collect();
    Ok(snapshot::compare(&old, &new, permissions)?)
}

/// Sizes of the files of a container, a checkpoint or an image.
pub struct Sizes(View);

impl Sizes {
    pub fn open(store: &Store, text: &str) -> Result<Self> {
        let side = Side::open(store, text)?;
        let layers: Vec<BorrowedFd<'_>> = side.all().map(AsFd::as_fd).collect();
        // The topmost one may change, so inventories are not used.
        Ok(Self(View::new(&layers, false)?))
    }

    /// Bytes of the regular file at a path (without a leading `/`); 0 if there is none.
    pub fn of(&self, path: &[u8]) -> u64 {
        self.find(path).unwrap_or(None).unwrap_or(0)
    }

    fn find(&self, path: &[u8]) -> Result<Option<u64>> {
        let mut parts = self.0.root()?;
        for name in path.split(|&byte| byte == b'/') {
            match self.0.lookup(&parts, &CString::new(name)?)? {
                Some(Entry::Directory(found)) => parts = found,
                Some(Entry::Other(file)) if FileType::from_raw_mode(file.stat.mode) == FileType::RegularFile => {
                    return Ok(Some(file.stat.size));
                }
                _ => break,
            }
        }
        Ok(None)
    }
}
