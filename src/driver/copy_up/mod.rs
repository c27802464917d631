//! Copy-up of nodes: the locks around [`crate::driver::copy_up::stage`].

mod own;
pub(in crate::driver) mod stage;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::driver::Union;
use crate::driver::interrupt;
use crate::driver::locate::{LowerPlace, left_in_layer};
use crate::driver::node::{ContentRef, CopyUpGuard, Indexed, NamesWrite, Node, NodeRef, Published, Turn};
use crate::driver::types::{Errno, Result};
use crate::marks::Mark;
use crate::union::layer::{Dir, FileType, FsId, LayerId, LowerRef, Staged, Stat, TimeTo, Times, UpperDir};
use crate::union::merge::is_mark_name;
use stage::{CopySource, Plan, stage};

/// How much of a file must be in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Its attributes; the content may stay below (`metacopy`).
    Attributes,
    /// The first bytes of its content, or all of it.
    Content(Option<u64>),
}

impl Union {
    /// Makes sure that the node, its content and its parents are in the upper.
    ///
    /// # Errors
    /// `ROFS`; errors of reading the layer and of writing the upper. On an error the lower file stays visible.
    pub(in crate::driver) fn copy_up(&self, node: &NodeRef) -> Result<()> {
        self.copy_up_extent(node, Extent::Content(None))
    }

    /// Like [`Self::copy_up`], but copies only the first `length` bytes of the content.
    pub(in crate::driver) fn copy_up_to(&self, node: &NodeRef, length: Option<u64>) -> Result<()> {
        self.copy_up_extent(node, Extent::Content(length))
    }

    /// Like [`Self::copy_up`], for a change of attributes: with `metacopy=on` the content stays in its layer.
    pub(in crate::driver) fn copy_up_attributes(&self, node: &NodeRef) -> Result<()> {
        // A mark says that the content is still in a lower layer.
        let metacopy = self.config.metacopy && self.upper()?.keeps_marks();
        self.copy_up_extent(node, if metacopy { Extent::Attributes } else { Extent::Content(None) })
    }

    fn copy_up_extent(&self, node: &NodeRef, extent: Extent) -> Result<()> {
        if node.has_upper_content() || (extent == Extent::Attributes && node.has_upper()) {
            return Ok(());
        }
        self.upper()?;
        if let Some((held, _)) = left_in_layer(node) {
            return self.copy_left(node, &held);
        }
        // Works from the topmost directory without an upper part down: each step needs the parent's upper part.
        let mut chain = vec![node.clone()];
        let mut current = node.clone();
        while let Some((parent, _)) = current.name()
            && !parent.has_upper()
        {
            chain.push(parent.clone());
            current = parent;
        }
        for step in chain.iter().rev() {
            let mut turn = Turn::begin();
            let mut copy_up = CopyUpGuard::lock(&mut turn, step);
            let is_target = NodeRef::ptr_eq(step, node);
            if !step.has_upper()
                && let Some((layer, way)) = self.must_move(step)?
            {
                self.move_up(&mut copy_up, layer, way)?;
            }
            if !step.has_upper() {
                self.copy_up_one(&mut copy_up, if is_target { extent } else { Extent::Attributes })?;
            }
            if let (true, Extent::Content(length)) = (is_target, extent) {
                self.copy_up_content(&copy_up, length)?;
            }
        }
        Ok(())
    }

    /// Copies one node up. Its parent has an upper part.
    fn copy_up_one(&self, copy_up: &mut CopyUpGuard<'_>, extent: Extent) -> Result<()> {
        let node = copy_up.node();
        let upper = self.upper()?;
        let place = LowerPlace::of(node)?.ok_or(Errno::STALE)?;
        let part = place.part()?;
        let fs = self.stack.lower(part.layer)?.fs();
        let (source_dir, source_name) = (self.lower_dir(&place.dir, part)?, place.name());
        let found = source_dir.stat(source_name)?;
        let stat = found.map(|stat| self.shown_stat(&source_dir, source_name, stat)).transpose()?;
        let Some(stat) = stat.filter(|stat| stat.file_type() == node.file_type) else {
            let place = source_dir.shown_path(source_name);
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
        let copied = if plan.metacopy || stat.file_type() != FileType::Regular { Some(0) } else { plan.length };
        let mut grant = self.grant_copy(&source, copied)?;
        let staged = stage(upper, &self.copier, &source, &plan)?;
        if stat.file_type() == FileType::Regular {
            grant.raise(staged.stat()?.blocks.saturating_mul(512))?;
        }
        let keeps_below = plan.metacopy && stat.file_type() == FileType::Regular;
        let content = match content {
            Some((content, _)) => Some(content),
            None if keeps_below => Some(ContentRef { layer: part.layer, path: part.child_path(source_name) }),
            None => None,
        };
        self.publish_copy(copy_up, staged, indexed.as_ref(), breaks_link, content.filter(|_| keeps_below))
    }

    /// Copies what was left in a layer that does not show it any more. The copy gets no name.
    fn copy_left(&self, node: &NodeRef, held: &Dir) -> Result<()> {
        let mut turn = Turn::begin();
        let copy_up = CopyUpGuard::lock(&mut turn, node);
        if left_in_layer(node).is_none() {
            return Ok(());
        }
        let upper = self.upper()?;
        let stat = self.shown_stat(held, c"", held.stat_self()?)?;
        let plan = Plan {
            origin: None,
            length: None,
            acls: upper.has_acls(),
            xattrs: !self.config.no_xattrs,
            metacopy: false,
            kept: self.permissions.as_ref().map(|permissions| permissions.kept(&stat)),
            sync: false,
            plain: false,
        };
        let source = CopySource { dir: held, name: c"", stat: &stat, content: None };
        let _grant = self.grant_copy(&source, None)?;
        let staged = stage(upper, &self.copier, &source, &plan)?;
        self.count_new(&staged.stat()?);
        let held = upper.hold(staged.into_nameless()?);
        self.nodes.publish_left(&copy_up, held.clone(), self.stack.upper_id());
        self.count_removed(node, &held);
        Ok(())
    }

    /// Returns the origin mark for the copy of a file in the lower part `part`. If that file is a copy itself,
    /// this is its own mark.
    fn origin_of(&self, part: &LowerRef, fs: FsId, dir: &Dir, name: &CStr) -> Result<Vec<u8>> {
        if self.stack.lower(part.layer)?.chain().is_some()
            && let Some(origin) = dir.marks(name)?.origin.filter(|origin| !origin.is_empty())
        {
            return Ok(origin);
        }
        self.origins.encode(fs, dir, name)
    }

    /// If a lower file keeps its content in another file, returns where that is.
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

    /// Describes the file `name` in the part of `parent` in `layer` as the place of its own content.
    pub(in crate::driver) fn own_content(&self, parent: &Node, layer: LayerId, name: &CStr) -> Option<ContentRef> {
        let lowers = parent.dir()?.lowers();
        Some(ContentRef { layer, path: lowers.of_layer(layer)?.child_path(name) })
    }

    /// Gives the staged copy its name, if the node still has one, and the node its new place, under one lock of the names:
    /// verbs that remove or move the name see the file either in the lower layer or in the upper.
    fn publish_copy(
        &self,
        copy_up: &mut CopyUpGuard<'_>,
        staged: Staged<'_>,
        indexed: Option<&Indexed>,
        breaks_link: bool,
        content: Option<ContentRef>,
    ) -> Result<()> {
        let node = copy_up.node();
        // A node that is only in a lower layer is never renamed, so this stays its name until it is published.
        let (parent, name) = node.name().ok_or(Errno::STALE)?;
        let above = self.upper_dir(&parent)?;
        let names = NamesWrite::lock(copy_up.after(), &parent)?;
        let copy = staged.stat()?;
        if node.is_removed() {
            // The file is open but has no name: the copy gets none either.
            let held = self.upper()?.hold(staged.into_nameless()?);
            self.count_new(&copy);
            self.nodes.publish_nameless(&names, node, held.clone(), content);
            self.count_removed(node, &held);
            return Ok(());
        }
        if let Some(entry) = indexed {
            self.publish_indexed(entry, staged)?;
            self.count_new(&copy);
            self.nodes.publish(&names, node, Published { content, ..Published::default() });
            return self.link_up(&names, node, &above, &name);
        }
        self.mark_impure(&parent, &above)?;
        let before = above.stat_self()?;
        // The other names keep showing the lower file, so the copy is a file of its own (kernel: `ovl_getattr`).
        let own_ino = |stat: Stat| self.stack.shown_ino(&stat);
        let ino = if breaks_link { Some(own_ino(copy)) } else { None };
        self.counting_dirs(&[&above], || staged.publish_new(&above, &name))?;
        self.count_new(&copy);
        // From here on the file is in the upper, so nothing may fail.
        self.nodes.publish(&names, node, Published { content, ino, carried_from: None });
        keep_mtime(&above, &before);
        drop(names);
        if let (Some(kernel), true) = (self.kernel(), breaks_link) {
            // The kernel's cached attributes of the file, and its cached listing of the directory, show the old number.
            kernel.invalidate_attr(node.id());
            kernel.invalidate_pages(parent.id());
        }
        Ok(())
    }

    /// Copies the content of a metacopy file up (kernel: `ovl_copy_up_meta_inode_data`). Until the mark is removed,
    /// the content in the layer counts, so a crash in between loses nothing.
    fn copy_up_content(&self, copy_up: &CopyUpGuard<'_>, length: Option<u64>) -> Result<()> {
        let node = copy_up.node();
        let Some((_, content)) = self.lower_content(node)? else { return Ok(()) };
        let upper = self.upper()?;
        let below = Stat::of(content.as_fd(), c"")?;
        let grant = self.grant_content(content.as_fd(), length)?;
        let copy = |dir: &UpperDir, name: &CStr| {
            let file = dir.open_writable(name, OFlags::RDWR)?;
            let stat = Stat::of(file.as_fd(), c"")?;
            let capability = dir.xattr(name, c"security.capability")?;
            let length = length.map_or(stat.size, |length| length.min(stat.size));
            let copied = self.copier.copy(content.as_fd(), file.as_fd(), &below, length);
            let copied = copied.and_then(|()| rustix::fs::ftruncate(&file, length));
            // Writing dropped the capability and changed the times, even if it failed half way.
            if let Some(capability) = capability {
                dir.set_xattr(name, c"security.capability", &capability, 0)?;
            }
            dir.set_times(name, &Times::of(&stat))?;
            copied?;
            if self.flushes() {
                upper.settle(file.as_fd(), interrupt::check)?;
            }
            dir.remove_xattr(name, &upper.mark_key(Mark::Metacopy))
        };
        self.counting(node, || self.on_upper(node, copy))?;
        drop(grant);
        self.nodes.content_copied(copy_up);
        if let Some(kernel) = self.kernel() {
            // The times were others on the way.
            kernel.invalidate_attr(node.id());
        }
        Ok(())
    }

    /// Notes on disk that the directory holds files with an origin mark, whose inode numbers are not their own
    /// (kernel: `ovl_set_impure`).
    pub(in crate::driver) fn mark_impure(&self, node: &NodeRef, dir: &UpperDir) -> Result<()> {
        let known = node.dir().ok_or(Errno::NOTDIR)?;
        if known.upper_part(|part| part.impure) {
            return Ok(());
        }
        let key = self.upper()?.mark_key(Mark::Impure);
        match self.counting_dirs(&[dir], || dir.set_xattr(c"", &key, b"y", 0)) {
            // Without it, inode numbers change at the next mount; nothing else is lost.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        known.note_upper_part(|part| part.impure = true);
        Ok(())
    }
}

/// Restores a directory's modification time after an internal change that its users must not notice. Best effort: the
/// change itself stands (kernel: `ovl_copy_up_workdir` ignores a failure too).
pub(in crate::driver) fn keep_mtime(dir: &UpperDir, before: &Stat) {
    if let Err(errno) = dir.set_times(c"", &Times { atime: None, mtime: Some(TimeTo::At(before.mtime)) }) {
        tracing::warn!("the time of a directory changes by a copy-up: {errno}");
    }
}
