//! Copy-up of nodes: the locks around [`crate::driver::copy_up::stage`].

pub(in crate::driver) mod stage;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::driver::Overlay;
use crate::driver::interrupt;
use crate::driver::node::{DataRef, Indexed, Name, Node, NodeRef, Real, UpperPart};
use crate::driver::types::{Errno, Result};
use crate::marks::Mark;
use crate::union::layer::{FileType, FsId, Staged, Stat, TimeTo, Times, UpperDir};
use stage::{Plan, Source, stage};

/// How much of a file a caller needs in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Its attributes; the content may stay below (`metacopy`).
    Attributes,
    /// The first bytes of its content, or all of it.
    Content(Option<u64>),
}

impl Overlay {
    /// Makes sure that the node and its content are in the upper, and so its parents.
    ///
    /// # Errors
    /// `ROFS`; those of reading the layer and writing the upper. The lower file stays visible then.
    pub(in crate::driver) fn copy_up(&self, node: &NodeRef) -> Result<()> {
        self.copy_up_extent(node, Extent::Content(None))
    }

    /// As [`Self::copy_up`], but of the content only the first `length` bytes are copied.
    pub(in crate::driver) fn copy_up_to(&self, node: &NodeRef, length: Option<u64>) -> Result<()> {
        self.copy_up_extent(node, Extent::Content(length))
    }

    /// As [`Self::copy_up`], for a change of attributes: with `metacopy=on` the content stays below.
    pub(in crate::driver) fn copy_up_attributes(&self, node: &NodeRef) -> Result<()> {
        // The content counts as below by a mark.
        let metacopy = self.config.metacopy && self.upper()?.keeps_marks();
        self.copy_up_extent(node, if metacopy { Extent::Attributes } else { Extent::Content(None) })
    }

    fn copy_up_extent(&self, node: &NodeRef, extent: Extent) -> Result<()> {
        if node.has_upper_content() || (extent == Extent::Attributes && node.has_upper()) {
            return Ok(());
        }
        self.upper()?;
        // From the topmost directory without an upper part down: each step needs its parent's.
        let mut chain = vec![node.clone()];
        let mut current = node.clone();
        while let Some((parent, _)) = current.name()
            && !parent.has_upper()
        {
            chain.push(parent.clone());
            current = parent;
        }
        for step in chain.iter().rev() {
            let _copy_up = step.copy_up.lock();
            let is_target = NodeRef::ptr_eq(step, node);
            if !step.has_upper() {
                self.copy_up_one(step, if is_target { extent } else { Extent::Attributes })?;
            }
            if let (true, Extent::Content(length)) = (is_target, extent) {
                self.copy_up_content(step, length)?;
            }
        }
        Ok(())
    }

    /// Copies one node up whose parent has an upper part. The caller holds its `copy_up` lock.
    fn copy_up_one(&self, node: &NodeRef, extent: Extent) -> Result<()> {
        let upper = self.upper()?;
        let (parent, name) = node.name().ok_or(Errno::STALE)?;
        let (source_dir, source_name, fs) = self.copy_up_source(node, &parent, &name)?;
        let found = source_dir.stat(source_name)?;
        let stat = found.map(|stat| self.shown_stat(&source_dir, source_name, stat)).transpose()?;
        let Some(stat) = stat.filter(|stat| stat.file_type() == node.file_type) else {
            let place = source_dir.place(source_name);
            tracing::error!("{place:?}: not the file that it was: a lower layer changed while mounted");
            return Err(Errno::IO);
        };
        let indexed = self.indexed(node);
        let breaks_link = stat.nlink > 1 && !stat.is_dir() && indexed.is_none();
        let origin = if breaks_link { None } else { Some(self.origins.encode(fs, &source_dir, source_name)?) };
        let content = self.lower_content(node)?;
        let plan = Plan {
            origin: origin.as_deref(),
            length: if let Extent::Content(length) = extent { length } else { None },
            acls: upper.has_acls(),
            xattrs: !self.config.no_xattrs,
            metacopy: extent == Extent::Attributes && stat.size > 0,
            kept: self.permissions.as_ref().map(|permissions| permissions.kept(&stat)),
            sync: !upper.is_volatile() && !self.config.ignore_fsync,
        };
        let content_fd = content.as_ref().map(|(_, file)| file.as_fd());
        let source = Source { dir: &source_dir, name: source_name, stat: &stat, content: content_fd };
        let staged = stage(upper, &self.copier, &source, &plan)?;
        let keeps_below = plan.metacopy && stat.file_type() == FileType::Regular;
        let data = match content {
            Some((data, _)) => Some(data),
            None if keeps_below => self.own_data_ref(node.state.lock().real, &parent, &name),
            None => None,
        };
        let data = data.filter(|_| keeps_below);
        self.publish_copy(node, staged, indexed.as_ref(), breaks_link, data.as_ref())?;
        if let Some(dir) = node.dir() {
            dir.state.lock().upper = Some(UpperPart::default());
        } else {
            move_up(node, data);
        }
        Ok(())
    }

    /// Directory, name and file system of what is copied up.
    fn copy_up_source<'n>(
        &self,
        node: &NodeRef,
        parent: &NodeRef,
        name: &'n Name,
    ) -> Result<(crate::union::layer::Dir, &'n CStr, FsId)> {
        if let Some(dir) = node.dir() {
            let part = dir.lowers.first().ok_or(Errno::IO)?;
            return Ok((self.lower_dir(node, 0)?, c"", self.stack.lower(part.layer)?.fs()));
        }
        let Real::Lower(index) = node.state.lock().real else { return Err(Errno::IO) };
        let part = parent.dir().and_then(|d| d.lowers.get(usize::from(index))).ok_or(Errno::IO)?;
        Ok((self.lower_dir(parent, usize::from(index))?, name, self.stack.lower(part.layer)?.fs()))
    }

    /// Where the content of a lower file is that keeps it elsewhere.
    fn lower_content(&self, node: &Node) -> Result<Option<(DataRef, OwnedFd)>> {
        let Some(data) = node.file_state().and_then(|state| state.data().cloned()) else {
            return Ok(None);
        };
        let file = self.open_content(&data)?;
        Ok(Some((data, file)))
    }

    /// Opens the file that holds another's content.
    pub(in crate::driver) fn open_content(&self, data: &DataRef) -> Result<OwnedFd> {
        let layer = self.stack.lower(data.layer)?;
        let missing = || {
            tracing::error!("content missing: {:?} in {}", data.path, layer.path().display());
            Err(Errno::IO)
        };
        match layer.open_file(&data.path) {
            Ok(file) if Stat::of(file.as_fd(), c"")?.file_type() == FileType::Regular => Ok(file),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => missing(),
            Err(errno) => Err(errno),
        }
    }

    /// A lower file as the place of its own content.
    pub(in crate::driver) fn own_data_ref(&self, real: Real, parent: &Node, name: &CStr) -> Option<DataRef> {
        let Real::Lower(index) = real else { return None };
        let part = parent.dir()?.lowers.get(usize::from(index))?;
        Some(DataRef { layer: part.layer, path: part.child_path(name) })
    }

    /// Gives the staged copy its name, if the node still has one.
    fn publish_copy(
        &self,
        node: &NodeRef,
        staged: Staged<'_>,
        indexed: Option<&Indexed>,
        breaks_link: bool,
        data: Option<&DataRef>,
    ) -> Result<()> {
        let (parent, name) = node.name().ok_or(Errno::STALE)?;
        let above = self.upper_dir(&parent)?;
        let parent_dir = parent.dir().ok_or(Errno::IO)?;
        let _names = parent_dir.names.write();
        if node.is_removed() {
            // Still open, but without a name: the copy gets none either.
            let held = self.upper()?.hold(staged.into_nameless()?);
            node.state.lock().set_orphan(Some(held));
            return Ok(());
        }
        if let Some(entry) = indexed {
            self.publish_indexed(entry, staged)?;
            move_up(node, data.cloned());
            return self.link_up(node, &parent, &above, &name);
        }
        self.mark_impure(&parent, &above)?;
        let before = above.stat_self()?;
        let copied = if breaks_link { Some(staged.stat()?) } else { None };
        // From here on the file is in the upper: nothing may fail any more.
        staged.publish_new(&above, &name)?;
        keep_mtime(&above, &before);
        if let Some(copied) = copied {
            // Its other names stay what they were, so the copy is a file of its own (kernel: `ovl_getattr`).
            node.set_ino(self.stack.shown_ino(&copied));
            parent_dir.state.lock().listing = None;
            if let Some(kernel) = self.kernel() {
                // What the kernel remembers of the file and of the directory's listing has the old number.
                kernel.invalidate_attr(node.id());
                kernel.invalidate_pages(parent.id());
            }
        }
        Ok(())
    }

    /// Copies the content of a metacopy file up (kernel: `ovl_copy_up_meta_inode_data`). Until the mark is gone, the
    /// content below counts, so a crash in between costs nothing.
    fn copy_up_content(&self, node: &NodeRef, length: Option<u64>) -> Result<()> {
        let Some((_, content)) = self.lower_content(node)? else { return Ok(()) };
        let upper = self.upper()?;
        let below = Stat::of(content.as_fd(), c"")?;
        self.on_upper(node, |dir, name| {
            let file = dir.open_writable(name, OFlags::RDWR)?;
            let stat = Stat::of(file.as_fd(), c"")?;
            let capability = dir.xattr(name, c"security.capability")?;
            let length = length.map_or(stat.size, |length| length.min(stat.size));
            let copied = self.copier.copy(content.as_fd(), file.as_fd(), &below, length);
            let copied = copied.and_then(|()| rustix::fs::ftruncate(&file, length));
            // Writing has dropped the one and moved the others, also if it did not come to an end.
            if let Some(capability) = capability {
                dir.set_xattr(name, c"security.capability", &capability, 0)?;
            }
            dir.set_times(name, &Times::of(&stat))?;
            copied?;
            if self.flushes() {
                upper.settle(file.as_fd(), interrupt::check)?;
            }
            dir.remove_xattr(name, &upper.mark_key(Mark::Metacopy))
        })?;
        node.state.lock().set_data(None);
        Ok(())
    }

    /// Notes on disk that the directory holds files with an origin mark, whose inode numbers are not their own
    /// (kernel: `ovl_set_impure`).
    pub(in crate::driver) fn mark_impure(&self, node: &NodeRef, dir: &UpperDir) -> Result<()> {
        let state = &node.dir().ok_or(Errno::NOTDIR)?.state;
        if state.lock().upper.as_ref().is_some_and(|part| part.impure) {
            return Ok(());
        }
        match dir.set_xattr(c"", &self.upper()?.mark_key(Mark::Impure), b"y", 0) {
            // Without it, inode numbers change at the next mount; nothing else is lost.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(part) = &mut state.lock().upper {
            part.impure = true;
        }
        Ok(())
    }
}

/// Takes note that a file is in the upper; `data`: but for its content, which is there. Who reads it meanwhile must not see
/// the one without the other.
fn move_up(node: &NodeRef, data: Option<DataRef>) {
    let mut state = node.state.lock();
    state.set_data(data);
    state.real = Real::Upper;
}

/// Puts back a directory's time of change after something came into it that is no news to its users. The change itself
/// stands whether this works or not (kernel: `ovl_copy_up_workdir` ignores it as well).
pub(in crate::driver) fn keep_mtime(dir: &UpperDir, before: &Stat) {
    if let Err(errno) = dir.set_times(c"", &Times { atime: None, mtime: Some(TimeTo::At(before.mtime)) }) {
        tracing::warn!("the time of a directory changes by a copy-up: {errno}");
    }
}
