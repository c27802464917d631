//! Files that are open for writing while a checkpoint is made.
//!
//! A passed-through descriptor and a shared mapping keep writing to their inode, and the driver cannot redirect them. So such a
//! file keeps its inode and moves to the new upper with all its names, and the layer gets a copy.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::confined;
use crate::driver::Union;
use crate::driver::node::{Dentry, Name, NamesWrite, NodeId, NodeRef, Published, Residence, Turn};
use crate::driver::types::{Errno, Result};
use crate::sys::lease;
use crate::union::layer::moving::{duplicate, replace_names};
use crate::union::layer::{LayerId, Stat, Successor};

/// A file on its way to the new upper.
pub(super) struct Moving {
    node: NodeRef,
    replacement: Replacement,
}

/// The copy of a file that moved, with the names that the copy must get in the layer.
pub(super) struct Replacement {
    /// The directory `workdir/work`, and the name of the copy there.
    work: Arc<OwnedFd>,
    staged: CString,
    copy: OwnedFd,
    /// Directories and names in the layer.
    names: Vec<(CString, CString)>,
    is_done: bool,
}

impl Replacement {
    /// Gives the copy the names that the file had in `layer`. With `flushes`, its content reaches the disk first.
    pub(super) fn run(&mut self, layer: &OwnedFd, flushes: bool) -> Result<()> {
        if flushes {
            rustix::fs::fdatasync(&self.copy)?;
        }
        replace_names(layer.as_fd(), &mut self.names, self.work.as_fd(), &self.staged)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        match rustix::fs::unlinkat(&*self.work, &self.staged, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!("work directory: cannot remove {:?}: {errno}", self.staged),
        }
    }
}

/// The remaining steps of a checkpoint after the exchange. Until they are done, the layer shares files with the upper.
pub(super) struct Unfinished {
    pub(super) successor: Successor,
    pub(super) replacements: Vec<Replacement>,
    /// True if files moved. The upper then has a mark that says so.
    pub(super) has_moved: bool,
}

impl Unfinished {
    /// Gives the copies their names in the layer. After an error, it can be called again.
    pub(super) fn replace(&mut self, flushes: bool) -> Result<()> {
        while let Some(next) = self.replacements.last_mut() {
            next.run(self.successor.left(), flushes)?;
            self.replacements.pop();
        }
        Ok(())
    }
}

impl std::fmt::Debug for Unfinished {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Unfinished").field("replacements", &self.replacements.len()).finish_non_exhaustive()
    }
}

impl Union {
    /// The files in the upper that have a name and are open for writing, or may be mapped for it.
    fn writers(&self) -> Vec<NodeRef> {
        let mut found: HashMap<NodeId, NodeRef> = HashMap::new();
        for node in self.handles.writers().into_iter().chain(self.mapped_for_writing()) {
            if matches!(node.state().residence(), Residence::Upper { .. }) {
                found.insert(node.id(), node);
            }
        }
        found.into_values().collect()
    }

    /// Number of files that are open for writing.
    pub(in crate::driver) fn count_writers(&self) -> usize {
        self.writers().len()
    }

    /// Files that were mapped for writing through a handle that is closed. The kernel keeps the backing file for the mapping,
    /// not the handle.
    fn mapped_for_writing(&self) -> Vec<NodeRef> {
        let mut still = Vec::new();
        for id in self.handles.once_mappable() {
            let node = self.nodes.get(NodeId(id)).filter(|node| node.has_upper());
            let is_mapped = node.as_ref().is_some_and(|node| {
                self.on_upper(node, |dir, name| lease::is_open_for_writing(dir.open_file(name)?.as_fd()))
                    .unwrap_or(true)
            });
            match node {
                Some(node) if is_mapped => still.push(node),
                _ => self.handles.forget_mappable(id),
            }
        }
        still
    }

    /// Finds all names of the files that are open for writing. Best effort: this is repeated with the gate closed.
    pub(super) fn learn_names_of_writers(&self) {
        for node in self.writers() {
            if let Err(errno) = self.learn_names(&node) {
                tracing::debug!("not all names of a file are found: {errno}");
            }
        }
    }

    /// Finds all names of the upper's file and puts them into the table.
    fn learn_names(&self, node: &NodeRef) -> Result<()> {
        let stat = self.on_upper(node, |dir, name| dir.stat(name))?.ok_or(Errno::STALE)?;
        if stat.nlink as usize <= node.state().names().count() {
            return Ok(());
        }
        let root = self.upper()?.root().open_self()?;
        self.learn_names_below(&root, &stat)
    }

    /// Looks up every name that the file with the attributes `stat` has in the directory tree `root` of the upper or of a
    /// layer.
    pub(in crate::driver) fn learn_names_below(&self, root: &OwnedFd, stat: &Stat) -> Result<()> {
        let mut paths = Vec::new();
        find_names(root, stat, &mut Vec::new(), &mut paths)?;
        for path in paths {
            let mut at = self.nodes.get(NodeId::ROOT).and_then(|root| self.nodes.count(&root)).ok_or(Errno::STALE)?;
            for name in path.split(|&byte| byte == b'/') {
                // Another file may have the name of the directory by now.
                if at.dir().is_none() {
                    break;
                }
                let name = CString::new(name).map_err(|_| Errno::INVAL)?;
                match self.find(&at, &name)? {
                    Some((node, _)) => at = node,
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// The path of a directory of the upper below its root.
    pub(in crate::driver) fn upper_path(&self, dir: &NodeRef) -> Result<CString> {
        let mut names: Vec<Name> = Vec::new();
        let mut at = dir.clone();
        while at.id() != NodeId::ROOT {
            let (parent, name) = at.name().ok_or(Errno::STALE)?;
            names.push(name);
            at = parent;
        }
        let parts: Vec<&[u8]> = names.iter().rev().map(|name| name.to_bytes()).collect();
        CString::new(parts.join(&b'/')).map_err(|_| Errno::INVAL)
    }

    /// Gives every file that is open for writing a name in the successor, and copies it.
    pub(super) fn begin_moving(&self, successor: &Successor) -> Result<Vec<Moving>> {
        let writers = self.writers();
        if writers.is_empty() {
            return Ok(Vec::new());
        }
        let upper = self.upper()?;
        let work_path: &Path = upper.work_path().ok_or(Errno::OPNOTSUPP)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let work = Arc::new(rustix::fs::open(work_path, flags, Mode::empty())?);
        successor.begin_moving()?;
        let mut moving = Vec::with_capacity(writers.len());
        for node in writers {
            self.learn_names(&node)?;
            let mut names = Vec::new();
            for (parent, name) in node.state().names().cloned().collect::<Vec<Dentry>>() {
                let dir = self.upper_path(&parent)?;
                successor.carry(&dir, &name)?;
                names.push((dir, CStr::to_owned(&name)));
            }
            let file = self.on_upper(&node, |dir, name| dir.open_file(name))?;
            let staged = upper.work()?.temporary_name();
            let copy = duplicate(&self.copier, file.as_fd(), work.as_fd(), &staged)?;
            let replacement = Replacement { work: Arc::clone(&work), staged, copy, names, is_done: false };
            moving.push(Moving { node, replacement });
        }
        Ok(moving)
    }

    /// Notes that the files are in the new upper and no longer in `layer`, the former upper.
    pub(super) fn end_moving(&self, moving: Vec<Moving>, layer: LayerId) -> Vec<Replacement> {
        let mut replacements = Vec::with_capacity(moving.len());
        for Moving { node, replacement } in moving {
            if let Err(errno) = self.move_node(&node, layer) {
                // The file itself is in the upper, where a lookup finds it.
                tracing::error!("a file that is open for writing is lost to its users: {errno}");
            }
            replacements.push(replacement);
        }
        replacements
    }

    /// Notes that the file of `node`, which was in `layer`, and its directories are in the upper now. The gate is closed, so no
    /// other thread sees one noted without the other.
    pub(in crate::driver) fn move_node(&self, node: &NodeRef, layer: LayerId) -> Result<()> {
        let parents: Vec<NodeRef> = node.state().names().map(|(parent, _)| parent.clone()).collect();
        for parent in &parents {
            self.note_carried(parent)?;
        }
        let first = parents.first().ok_or(Errno::STALE)?;
        let mut turn = Turn::begin();
        let names = NamesWrite::lock(&mut turn, first)?;
        self.nodes.publish(&names, node, Published { carried_from: Some(layer), ..Published::default() });
        node.state().note_all_names();
        Ok(())
    }

    /// Notes that the directory and those above it have an upper part now. The gate is closed.
    fn note_carried(&self, dir: &NodeRef) -> Result<()> {
        if !dir.has_upper() {
            let (parent, _) = dir.name().ok_or(Errno::STALE)?;
            self.note_carried(&parent)?;
            let mut turn = Turn::begin();
            let names = NamesWrite::lock(&mut turn, &parent)?;
            self.nodes.publish(&names, dir, Published::default());
        }
        let marks = self.upper_dir(dir)?.marks(c"")?;
        if let Some(dir) = dir.dir() {
            dir.note_upper_part(|part| part.impure = marks.impure);
        }
        Ok(())
    }
}

/// Adds to `found` the paths of all names that the file with the attributes `stat` has in the directory `at` of the tree
/// `root`, and below.
pub(in crate::driver) fn find_names(
    root: &OwnedFd,
    stat: &Stat,
    at: &mut Vec<u8>,
    found: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let dir = match confined::open_dir(root.as_fd(), at) {
        // Another file system is mounted there.
        Err(Errno::XDEV) => return Ok(()),
        dir => dir?,
    };
    let mut below = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let joined = || if at.is_empty() { name.to_bytes().to_vec() } else { [&**at, b"/", name.to_bytes()].concat() };
        let is_dir = match entry.file_type() {
            rustix::fs::FileType::Unknown => Stat::of(dir.as_fd(), name)?.is_dir(),
            kind => kind == rustix::fs::FileType::Directory,
        };
        if is_dir {
            below.push(joined());
        } else if entry.ino() == stat.ino {
            found.push(joined());
        }
    }
    drop(dir);
    for path in below {
        *at = path;
        find_names(root, stat, at, found)?;
    }
    Ok(())
}
