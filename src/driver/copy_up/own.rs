//! Files whose inode itself must move to the upper when they are copied up. They are in a layer that was this mount's upper.
//!
//! A hard link is one file with several names, and a checkpoint between two changes of it must not be noticeable. If the
//! kernel reads a file directly, readers must see its changes through the same inode. In both cases the inode moves to the
//! upper with all its names, and the layer keeps a copy. Other layers, and layers that another mount also uses, are never
//! written: a hard link there breaks, as in every lower layer.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::confined;
use crate::driver::Union;
use crate::driver::checkpoint::find_names;
use crate::driver::copy_up::keep_mtime;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{CopyUpGuard, Dentry, NamesMany, NodeRef, Published};
use crate::driver::types::{Errno, Result};
use crate::union::layer::moving::{duplicate, duplicate_special, replace_names};
use crate::union::layer::{FileType, Layer, LayerId, Stat, UpperDir};

/// A file's inode that was taken out of its layer; it has this name in the work directory.
struct Taken {
    name: CString,
    layer: OwnedFd,
    dir: CString,
    old_name: CString,
    work: OwnedFd,
}

impl Taken {
    /// Puts the inode back into the layer.
    fn put_back(&self) {
        let back = confined::open_dir(self.layer.as_fd(), self.dir.to_bytes()).and_then(|dir| {
            confined::keeping_times(dir.as_fd(), || rustix::fs::renameat(&self.work, &self.name, &dir, &self.old_name))
        });
        if let Err(errno) = back {
            tracing::error!("{:?}: the layer keeps a copy of it: {errno}", self.old_name);
        }
    }
}

fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Union {
    /// True if `layer` was the upper of this mount and no other mount uses it.
    pub(in crate::driver) fn is_own(&self, layer: LayerId) -> bool {
        self.stack.lower(layer).is_ok_and(Layer::is_own)
    }

    /// Returns the node's layer if the inode itself must go to the upper.
    pub(super) fn must_move(&self, node: &NodeRef) -> Result<Option<LayerId>> {
        if node.file_type == FileType::Directory {
            return Ok(None);
        }
        let (layer, is_read_directly) = {
            let state = node.state();
            if state.is_removed() {
                return Ok(None);
            }
            let Some((_, layer)) = state.lower() else { return Ok(None) };
            let reads =
                |open: &crate::driver::node::OpenState| open.passthrough > 0 && open.backing_layer == Some(layer);
            (layer, state.open().is_some_and(reads))
        };
        if !self.is_own(layer) {
            return Ok(None);
        }
        if is_read_directly {
            return Ok(Some(layer));
        }
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let stat = self.lower_dir(&place.dir, place.part()?)?.stat(place.name())?.ok_or(Errno::STALE)?;
        Ok((stat.nlink > 1).then_some(layer))
    }

    /// Moves the inode of the node from its own layer to the upper, and leaves a copy in the layer.
    pub(super) fn move_up(&self, copy_up: &CopyUpGuard<'_>, layer: LayerId) -> Result<()> {
        let node = copy_up.node();
        let upper = self.upper()?;
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let part = place.part()?;
        let path = self.stack.lower(layer)?.path();
        let (root, work) = (open_dir(path)?, open_dir(upper.work_path().ok_or(Errno::OPNOTSUPP)?)?);
        let source = self.lower_dir(&place.dir, part)?;
        let stat = source.stat(place.name())?.ok_or(Errno::STALE)?;
        let in_layer = names_in_layer(&root, &stat, (&part.path, place.name()))?;
        if stat.nlink > 1 {
            self.learn_names_below(&root, &stat)?;
        }
        let staged = upper.work()?.temporary_name();
        let remove = || rustix::fs::unlinkat(&work, &staged, AtFlags::empty());
        if stat.file_type() == FileType::Regular {
            let copy = duplicate(&self.copier, source.open_file(place.name())?.as_fd(), work.as_fd(), &staged)?;
            if self.flushes()
                && let Err(errno) = upper.settle(copy.as_fd(), crate::driver::interrupt::check)
            {
                remove()?;
                return Err(errno);
            }
        } else {
            duplicate_special(&source, place.name(), upper.work()?.dir(), &staged)?;
        }
        loop {
            let names: Vec<Dentry> = node.state().names().cloned().collect();
            for (parent, _) in &names {
                if let Err(errno) = self.copy_up(parent) {
                    remove()?;
                    return Err(errno);
                }
            }
            // Fetching the directories may need the locks of the names, so it comes first.
            let dirs = names.iter().map(|(parent, _)| self.upper_dir(parent)).collect::<Result<Vec<_>>>();
            let dirs = match dirs {
                Ok(dirs) => dirs,
                Err(errno) => {
                    remove()?;
                    return Err(errno);
                }
            };
            let locked = NamesMany::lock(names.iter().map(|(parent, _)| parent))?;
            // The names may have changed while their locks were not held.
            let is_same = |a: &Dentry, b: &Dentry| NodeRef::ptr_eq(&a.0, &b.0) && a.1 == b.1;
            let current: Vec<Dentry> = node.state().names().cloned().collect();
            if current.len() != names.len() || !current.iter().zip(&names).all(|(a, b)| is_same(a, b)) {
                continue;
            }
            if node.is_removed() {
                // The file has no name by which it could be opened for writing, so a copy without a name serves as well.
                remove()?;
                return Ok(());
            }
            let taken = take(root, work, &in_layer, staged)?;
            if let Err(errno) = self.give_names(&taken, &names, &dirs) {
                taken.put_back();
                return Err(errno);
            }
            let first = locked.first().ok_or(Errno::STALE)?;
            self.nodes.publish(first, node, Published::default());
            node.state().carry(layer, self.stack.upper_id());
            return Ok(());
        }
    }

    /// Gives the inode its names in the upper. `dirs`: the upper parts of the directories.
    fn give_names(&self, taken: &Taken, names: &[Dentry], dirs: &[UpperDir]) -> Result<()> {
        let work = self.upper()?.work()?.dir();
        let mut made: Vec<(&UpperDir, &CStr)> = Vec::new();
        let mut give = || {
            for (at, ((parent, name), dir)) in names.iter().zip(dirs).enumerate() {
                self.mark_impure(parent, dir)?;
                let before = dir.stat_self()?;
                if at + 1 < names.len() {
                    dir.link(work, &taken.name, name)?;
                } else {
                    work.rename(&taken.name, dir, name, RenameFlags::empty())?;
                }
                keep_mtime(dir, &before);
                made.push((dir, name));
            }
            Ok(())
        };
        let given: Result<()> = give();
        if given.is_err() {
            for (dir, name) in made {
                dir.remove_file(name)?;
            }
        }
        given
    }
}

/// All names of the file in its layer.
fn names_in_layer(root: &OwnedFd, stat: &Stat, known: (&CStr, &CStr)) -> Result<Vec<(CString, CString)>> {
    if stat.nlink < 2 {
        return Ok(vec![(known.0.to_owned(), known.1.to_owned())]);
    }
    let mut paths = Vec::new();
    find_names(root, stat, &mut Vec::new(), &mut paths)?;
    let split = |path: &Vec<u8>| {
        let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default()),
            None => (&[][..], path.as_slice()),
        };
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::INVAL);
        Ok((text(dir)?, text(name)?))
    };
    paths.iter().map(split).collect()
}

/// Replaces the file's names in the layer with the copy `staged`, and moves the file itself into the work directory.
fn take(layer: OwnedFd, work: OwnedFd, names: &[(CString, CString)], staged: CString) -> Result<Taken> {
    let Some(((dir, name), further)) = names.split_last() else { return Err(Errno::STALE) };
    if !further.is_empty() {
        let second = CString::new([staged.to_bytes(), b".copy"].concat()).map_err(|_| Errno::INVAL)?;
        rustix::fs::linkat(&work, &staged, &work, &second, AtFlags::empty())?;
        replace_names(layer.as_fd(), further, work.as_fd(), &second)?;
    }
    let held = confined::open_dir(layer.as_fd(), dir.to_bytes())?;
    confined::keeping_times(held.as_fd(), || {
        rustix::fs::renameat_with(&work, &staged, &held, name, RenameFlags::EXCHANGE)
    })?;
    Ok(Taken { name: staged, layer, dir: dir.clone(), old_name: name.clone(), work })
}
