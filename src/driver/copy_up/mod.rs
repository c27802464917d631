//! Copy-up of nodes: the locks around [`crate::driver::copy_up::stage`].

mod own;
pub(in crate::driver) mod stage;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::driver::Union;
use crate::driver::interrupt;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{ContentRef, CopyUpGuard, Indexed, NamesWrite, Node, NodeRef, Published};
use crate::driver::types::{Errno, Result};
use crate::marks::Mark;
use crate::union::layer::{Dir, FileType, FsId, LayerId, LowerRef, Staged, Stat, TimeTo, Times, UpperDir};
use crate::union::merge::is_mark_name;
use stage::{CopySource, Plan, stage};

/// How much of a file a caller needs in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Its attributes; the content may stay below (`metacopy`).
    Attributes,
    /// The first bytes of its content, or all of it.
    Content(Option<u64>),
}

impl Union {
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
            let copy_up = CopyUpGuard::lock(step);
            let is_target = NodeRef::ptr_eq(step, node);
            if !step.has_upper()
                && let Some(layer) = self.must_move(step)?
            {
                self.move_up(&copy_up, layer)?;
            }
            if !step.has_upper() {
                self.copy_up_one(&copy_up, if is_target { extent } else { Extent::Attributes })?;
            }
            if let (true, Extent::Content(length)) = (is_target, extent) {
                self.copy_up_content(&copy_up, length)?;
            }
        }
        Ok(())
    }

    /// Copies one node up whose parent has an upper part.
    fn copy_up_one(&self, copy_up: &CopyUpGuard<'_>, extent: Extent) -> Result<()> {
        let node = copy_up.node();
        let upper = self.upper()?;
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let part = place.part()?;
        let fs = self.stack.lower(part.layer)?.fs();
        let (source_dir, source_name) = (self.lower_dir(&place.dir, part)?, place.name());
        let found = source_dir.stat(source_name)?;
        let stat = found.map(|stat| self.shown_stat(&source_dir, source_name, stat)).transpose()?;
        let Some(stat) = stat.filter(|stat| stat.file_type() == node.file_type) else {
            let place = source_dir.place(source_name);
            tracing::error!("{place:?}: not the file that it was: a lower layer changed while mounted");
            return Err(Errno::IO);
        };
        self.check_owner_is_known(&source_dir, source_name, &stat)?;
        let indexed = self.indexed(node);
        let breaks_link = stat.nlink > 1 && !stat.is_dir() && indexed.is_none();
        let origin = if breaks_link { None } else { Some(self.origin_of(part, fs, &source_dir, source_name)?) };
        let content = self.lower_content(node)?;
        let plan = Plan {
            origin: origin.as_deref(),
            length: if let Extent::Content(length) = extent { length } else { None },
            acls: upper.has_acls(),
            xattrs: !self.config.no_xattrs,
            metacopy: extent == Extent::Attributes && stat.size > 0,
            kept: self.permissions.as_ref().map(|permissions| permissions.kept(&stat)),
            sync: !upper.is_volatile() && !self.config.ignore_fsync,
            plain: node.name().is_some_and(|(_, name)| is_mark_name(&name)),
        };
        let content_fd = content.as_ref().map(|(_, file)| file.as_fd());
        let source = CopySource { dir: &source_dir, name: source_name, stat: &stat, content: content_fd };
        let staged = stage(upper, &self.copier, &source, &plan)?;
        let keeps_below = plan.metacopy && stat.file_type() == FileType::Regular;
        let content = match content {
            Some((content, _)) => Some(content),
            None if keeps_below => Some(ContentRef { layer: part.layer, path: part.child_path(source_name) }),
            None => None,
        };
        self.publish_copy(copy_up, staged, indexed.as_ref(), breaks_link, content.filter(|_| keeps_below))
    }

    /// The origin mark for the copy of a file in the lower part `part`: of a file that is a copy itself, its own.
    fn origin_of(&self, part: &LowerRef, fs: FsId, dir: &Dir, name: &CStr) -> Result<Vec<u8>> {
        if self.stack.lower(part.layer)?.chain().is_some()
            && let Some(origin) = dir.marks(name)?.origin.filter(|origin| !origin.is_empty())
        {
            return Ok(origin);
        }
        self.origins.encode(fs, dir, name)
    }

    /// Where the content of a lower file is that keeps it elsewhere.
    fn lower_content(&self, node: &Node) -> Result<Option<(ContentRef, OwnedFd)>> {
        let Some(data) = node.state().content().cloned() else {
            return Ok(None);
        };
        let file = self.open_content(&data)?;
        Ok(Some((data, file)))
    }

    /// Opens the file that holds another's content.
    pub(in crate::driver) fn open_content(&self, data: &ContentRef) -> Result<OwnedFd> {
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

    /// The file `name` in the part of `parent` in `layer`, as the place of its own content.
    pub(in crate::driver) fn own_content(&self, parent: &Node, layer: LayerId, name: &CStr) -> Option<ContentRef> {
        let lowers = parent.dir()?.lowers();
        Some(ContentRef { layer, path: lowers.of_layer(layer)?.child_path(name) })
    }

    /// Gives the staged copy its name, if the node still has one, and the node its new place, under one hold of the names:
    /// a verb that removes or moves the name sees the file either below or above.
    fn publish_copy(
        &self,
        copy_up: &CopyUpGuard<'_>,
        staged: Staged<'_>,
        indexed: Option<&Indexed>,
        breaks_link: bool,
        content: Option<ContentRef>,
    ) -> Result<()> {
        let node = copy_up.node();
        // What only a lower layer has is not renamed, so this is its name until it is published.
        let (parent, name) = node.name().ok_or(Errno::STALE)?;
        let above = self.upper_dir(&parent)?;
        let names = NamesWrite::lock(&parent)?;
        if node.is_removed() {
            // Still open, but without a name: the copy gets none either.
            let held = self.upper()?.hold(staged.into_nameless()?);
            self.nodes.publish_nameless(&names, node, held, content);
            return Ok(());
        }
        if let Some(entry) = indexed {
            self.publish_indexed(entry, staged)?;
            self.nodes.publish(&names, node, Published { content, ino: None });
            return self.link_up(&names, node, &above, &name);
        }
        self.mark_impure(&parent, &above)?;
        let before = above.stat_self()?;
        // Its other names stay what they were, so the copy is a file of its own (kernel: `ovl_getattr`).
        let own_ino = |stat: Stat| self.stack.shown_ino(&stat);
        let ino = if breaks_link { Some(own_ino(staged.stat()?)) } else { None };
        staged.publish_new(&above, &name)?;
        // From here on the file is in the upper: nothing may fail any more.
        self.nodes.publish(&names, node, Published { content, ino });
        keep_mtime(&above, &before);
        drop(names);
        if let (Some(kernel), true) = (self.kernel(), breaks_link) {
            // What the kernel remembers of the file and of the directory's listing has the old number.
            kernel.invalidate_attr(node.id());
            kernel.invalidate_pages(parent.id());
        }
        Ok(())
    }

    /// Copies the content of a metacopy file up (kernel: `ovl_copy_up_meta_inode_data`). Until the mark is gone, the
    /// content below counts, so a crash in between costs nothing.
    fn copy_up_content(&self, copy_up: &CopyUpGuard<'_>, length: Option<u64>) -> Result<()> {
        let node = copy_up.node();
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
        self.nodes.content_copied(copy_up);
        Ok(())
    }

    /// Notes on disk that the directory holds files with an origin mark, whose inode numbers are not their own
    /// (kernel: `ovl_set_impure`).
    pub(in crate::driver) fn mark_impure(&self, node: &NodeRef, dir: &UpperDir) -> Result<()> {
        let known = node.dir().ok_or(Errno::NOTDIR)?;
        if known.upper_part(|part| part.impure) {
            return Ok(());
        }
        match dir.set_xattr(c"", &self.upper()?.mark_key(Mark::Impure), b"y", 0) {
            // Without it, inode numbers change at the next mount; nothing else is lost.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        known.note_upper_part(|part| part.impure = true);
        Ok(())
    }
}

/// Puts back a directory's time of change after something came into it that is no news to its users. The change itself
/// stands whether this works or not (kernel: `ovl_copy_up_workdir` ignores it as well).
pub(in crate::driver) fn keep_mtime(dir: &UpperDir, before: &Stat) {
    if let Err(errno) = dir.set_times(c"", &Times { atime: None, mtime: Some(TimeTo::At(before.mtime)) }) {
        tracing::warn!("the time of a directory changes by a copy-up: {errno}");
    }
}
