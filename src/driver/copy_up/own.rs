//! Files that go to the upper with all their names when they are copied up. They are in a layer that was this mount's upper.
//!
//! A hard link is one file with several names, and a checkpoint between two changes of it must not be noticeable. If the
//! kernel reads a file directly, readers must see its changes through the same inode. In both cases the inode moves to the
//! upper with all its names, and the layer keeps a copy. Layers that another mount also uses are never written: of a hard link
//! there, the upper gets a copy that has all its names. In layers that were never the upper, a hard link breaks.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::driver::Union;
use crate::driver::checkpoint::find_names;
use crate::driver::copy_up::keep_mtime;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{CopyUpGuard, Dentry, LookupRef, Names, NamesMany, NodeId, NodeRef, Published};
use crate::driver::types::{Errno, Result};
use crate::union::layer::moving::{duplicate, duplicate_special};
use crate::union::layer::taken::Taken;
use crate::union::layer::{Dir, FileType, Layer, LayerId, Stat, UpperDir};

/// A copy in the work directory that is removed when it is dropped.
struct Leftover {
    work: OwnedFd,
    /// `None` once it has another name.
    name: Option<CString>,
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(errno) = rustix::fs::unlinkat(&self.work, name, AtFlags::empty())
        {
            tracing::warn!("work directory: {name:?} is left behind: {errno}");
        }
    }
}

/// How a file gets into the upper with all its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The inode itself moves, and the layer keeps a copy.
    Inode,
    /// A copy goes up, and the layer stays as it is.
    Copy,
}

fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Union {
    /// True if `layer` was the upper of this mount and no other mount uses it.
    pub(in crate::driver) fn is_own(&self, layer: LayerId) -> bool {
        self.stack.lower(layer).is_ok_and(Layer::is_own)
    }

    /// True if `layer` was the upper of this mount.
    pub(in crate::driver) fn was_upper(&self, layer: LayerId) -> bool {
        self.stack.lower(layer).is_ok_and(Layer::was_upper)
    }

    /// Returns the node's layer if the file must go to the upper with all its names.
    pub(super) fn must_move(&self, node: &NodeRef) -> Result<Option<(LayerId, Way)>> {
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
        if !self.was_upper(layer) {
            return Ok(None);
        }
        let way = if self.is_own(layer) { Way::Inode } else { Way::Copy };
        if is_read_directly && way == Way::Inode {
            return Ok(Some((layer, way)));
        }
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let stat = self.lower_dir(&place.dir, place.part()?)?.stat(place.name())?.ok_or(Errno::STALE)?;
        Ok((stat.nlink > 1).then_some((layer, way)))
    }

    /// Brings the node's file from a layer that was the upper to the upper, with all its names.
    pub(super) fn move_up(&self, copy_up: &mut CopyUpGuard<'_>, layer: LayerId, way: Way) -> Result<()> {
        let node = copy_up.node();
        let upper = self.upper()?;
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let part = place.part()?;
        let path = self.stack.lower(layer)?.path();
        let (root, work) = (open_dir(path)?, open_dir(upper.work_path().ok_or(Errno::OPNOTSUPP)?)?);
        let source = self.lower_dir(&place.dir, part)?;
        let stat = source.stat(place.name())?.ok_or(Errno::STALE)?;
        let _grant = self.grant_whole(&stat)?;
        let in_layer = names_in_layer(&root, &stat, (&part.path, place.name()))?;
        if stat.nlink > 1 {
            self.learn_names_in(copy_up, layer, &in_layer)?;
        }
        let mut leftover = Leftover { work: rustix::io::fcntl_dupfd_cloexec(&work, 0)?, name: None };
        let staged = self.stage_duplicate(&source, place.name(), &stat, &work)?;
        leftover.name = Some(staged.clone());
        loop {
            let names: Vec<Dentry> = node.state().names().cloned().collect();
            // Fetching the directories may need the locks of the names, so it comes first.
            let fetch = |(parent, _): &Dentry| self.copy_up(parent).and_then(|()| self.upper_dir(parent));
            let dirs = match names.iter().map(fetch).collect::<Result<Vec<_>>>() {
                Ok(dirs) => dirs,
                // A directory was removed after its last name, which was one of the file's.
                Err(_) if !has_names(node, &names) => continue,
                Err(errno) => return Err(errno),
            };
            let locked = NamesMany::lock(copy_up.after(), names.iter().map(|(parent, _)| parent))?;
            // The names may have changed while their locks were not held.
            if !has_names(node, &names) {
                continue;
            }
            if node.is_removed() {
                // The file has no name by which it could be opened for writing, so a copy without a name serves as well.
                return Ok(());
            }
            let dirs: Vec<&UpperDir> = dirs.iter().collect();
            match way {
                Way::Inode => {
                    let copy = Stat::of(work.as_fd(), &staged)?;
                    let taken = Taken::take(root, work, stat.id(), &in_layer, &staged)?;
                    // The name in the work directory is the file's own now.
                    leftover.name = None;
                    let give = || self.give_names(taken.name(), &names, &dirs);
                    if let Err(errno) = self.counting_dirs(&dirs, give) {
                        taken.put_back();
                        return Err(errno);
                    }
                    taken.keep();
                    self.count_new(&stat);
                    let first = locked.first().ok_or(Errno::STALE)?;
                    self.nodes.publish(first, node, Published { carried_from: Some(layer), ..Published::default() });
                    self.former_links.replace(stat.id(), copy.id());
                    drop(locked);
                    if let (Some(kernel), true) = (self.kernel(), stat.nlink > 1) {
                        // The link count was another one on the way.
                        kernel.invalidate_attr(node.id());
                    }
                }
                Way::Copy => {
                    let copy = Stat::of(work.as_fd(), &staged)?;
                    self.counting_dirs(&dirs, || self.give_names(&staged, &names, &dirs))?;
                    leftover.name = None;
                    self.count_new(&copy);
                    self.publish_duplicate(locked, node, &stat, &copy);
                }
            }
            return Ok(());
        }
    }

    /// Looks up the names that the file with the names `names` in `layer` has in the mount. Directories may have been moved since
    /// `layer` was the upper; a moved one has a part in the upper or in a layer above `layer`, so these are searched for it.
    /// None moves during the search.
    fn learn_names_in(
        &self,
        copy_up: &mut CopyUpGuard<'_>,
        layer: LayerId,
        names: &[(CString, CString)],
    ) -> Result<()> {
        let _rename = self.rename.lock(copy_up.after());
        let root = self.nodes.get(NodeId::ROOT).and_then(|root| self.nodes.count(&root)).ok_or(Errno::STALE)?;
        // They keep their names as long as they are known.
        let mut found = Vec::new();
        let mut search = vec![root];
        while let Some(dir) = search.pop() {
            match self.find_names_in(&dir, layer, names) {
                Ok((files, dirs)) => {
                    found.extend(files);
                    search.extend(dirs);
                }
                // It was empty.
                Err(_) if dir.is_removed() => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// As [`Self::learn_names_in`], in one directory; also the directories below it that must be searched.
    fn find_names_in(
        &self,
        dir: &NodeRef,
        layer: LayerId,
        names: &[(CString, CString)],
    ) -> Result<(Vec<LookupRef<'_>>, Vec<LookupRef<'_>>)> {
        let lowers = dir.dir().ok_or(Errno::IO)?.lowers();
        let path = lowers.of_layer(layer).map(|part| part.path.clone());
        let (mut files, mut below) = (Vec::new(), BTreeSet::new());
        for (parent, name) in names {
            match path.as_deref().and_then(|path| path_within(parent, path)) {
                Some(b"") => files.extend(self.find(dir, name)?.map(|(node, _)| node)),
                Some(rest) => {
                    let next = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
                    below.insert(CString::new(next).map_err(|_| Errno::INVAL)?);
                }
                None => {}
            }
        }
        let mut note_dirs = |part: &Dir| {
            part.list(|entry| {
                if matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN) {
                    below.insert(entry.name.to_owned());
                }
                Ok(())
            })
        };
        if let Some(upper) = self.upper_dir_if_any(dir)? {
            note_dirs(upper.as_dir())?;
        }
        for part in lowers.iter().filter(|part| part.layer > layer) {
            note_dirs(&self.lower_dir(dir, part)?)?;
        }
        let mut dirs = Vec::new();
        for name in below {
            dirs.extend(self.find(dir, &name)?.map(|(node, _)| node).filter(|node| node.dir().is_some()));
        }
        Ok((files, dirs))
    }

    /// Makes a copy of the file `name` of `source` in the work directory `work`, with all attributes; its name there.
    fn stage_duplicate(&self, source: &Dir, name: &CStr, stat: &Stat, work: &OwnedFd) -> Result<CString> {
        let upper = self.upper()?;
        let staged = upper.work()?.temporary_name();
        if stat.file_type() != FileType::Regular {
            duplicate_special(source, name, upper.work()?.dir(), &staged)?;
            return Ok(staged);
        }
        let copy = duplicate(&self.copier, source.open_file(name)?.as_fd(), work.as_fd(), &staged)?;
        if self.flushes()
            && let Err(errno) = upper.settle(copy.as_fd(), crate::driver::interrupt::check)
        {
            rustix::fs::unlinkat(work, &staged, AtFlags::empty())?;
            return Err(errno);
        }
        Ok(staged)
    }

    /// The copy `copy` of the node's file `source` has all its names in the upper; `locked` are those.
    fn publish_duplicate(&self, locked: NamesMany<'_>, node: &NodeRef, source: &Stat, copy: &Stat) {
        // A file that was copied up before shows its origin's number, and so does the copy.
        let ino = (node.ino() == self.stack.shown_ino(source)).then(|| self.stack.shown_ino(copy));
        for names in locked.iter() {
            self.nodes.publish(names, node, Published { ino, ..Published::default() });
        }
        self.nodes.share(copy.id(), node);
        let parents: Vec<_> = locked.iter().map(|names| names.parent().id()).collect();
        drop(locked);
        if let (Some(kernel), Some(_)) = (self.kernel(), ino) {
            // What the kernel remembers of the file and of the directories' listings has the old number.
            kernel.invalidate_attr(node.id());
            parents.into_iter().for_each(|parent| kernel.invalidate_pages(parent));
        }
    }

    /// Gives `staged` in the work directory its names in the upper. `dirs`: the upper parts of the directories.
    fn give_names(&self, staged: &CStr, names: &[Dentry], dirs: &[&UpperDir]) -> Result<()> {
        let work = self.upper()?.work()?.dir();
        let mut made: Vec<(&UpperDir, &CStr)> = Vec::new();
        let mut give = || {
            for (at, ((parent, name), &dir)) in names.iter().zip(dirs).enumerate() {
                self.mark_impure(parent, dir)?;
                let before = dir.stat_self()?;
                if at + 1 < names.len() {
                    dir.link(work, staged, name)?;
                } else {
                    work.rename(staged, dir, name, RenameFlags::empty())?;
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

/// True if `names` are the node's names, in the same order.
fn has_names(node: &NodeRef, names: &[Dentry]) -> bool {
    let state = node.state();
    let is_same = |a: &Dentry, b: &Dentry| NodeRef::ptr_eq(&a.0, &b.0) && a.1 == b.1;
    state.names().count() == names.len() && state.names().zip(names).all(|(a, b)| is_same(a, b))
}

/// What follows `dir` in `path`, without a slash; `None` if `path` is not in `dir`.
fn path_within<'p>(path: &'p CStr, dir: &CStr) -> Option<&'p [u8]> {
    let (path, dir) = (path.to_bytes(), dir.to_bytes());
    let rest = path.strip_prefix(dir)?;
    if dir.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
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
