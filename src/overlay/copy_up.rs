//! Copy-up of nodes: the locks around [`crate::copy_up`].

use std::sync::Arc;

use super::Overlay;
use super::types::{Errno, Result};
use crate::copy_up::{Plan, Source, stage};
use crate::layer::{LayerStack, TimeTo, Times, UpperDir};
use crate::node::{Body, Node, Real, UpperPart};
use crate::whiteout::Mark;

impl Overlay {
    /// Makes sure that the node has an upper part, and so its parents.
    ///
    /// # Errors
    /// `ROFS`; those of reading the layer and writing the upper. The lower file stays visible then.
    pub(super) fn copy_up(&self, node: &Arc<Node>) -> Result<()> {
        self.copy_up_to(node, None)
    }

    /// As [`Self::copy_up`], but of the content only the first `length` bytes are copied.
    pub(super) fn copy_up_to(&self, node: &Arc<Node>, length: Option<u64>) -> Result<()> {
        if node.has_upper() {
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
        for (steps_left, step) in chain.iter().enumerate().rev() {
            let _copy_up = step.copy_up.lock();
            if !step.has_upper() {
                self.copy_up_one(step, if steps_left == 0 { length } else { None })?;
            }
        }
        Ok(())
    }

    /// Copies one node up whose parent has an upper part. The caller holds its `copy_up` lock.
    fn copy_up_one(&self, node: &Arc<Node>, length: Option<u64>) -> Result<()> {
        let upper = self.upper()?;
        let (parent, name) = node.name().ok_or(Errno::STALE)?;
        let (source_dir, source_name, fs) = match &node.body {
            Body::Dir(dir) => {
                let part = dir.lowers.first().ok_or(Errno::IO)?;
                (self.lower_dir(node, 0)?, c"", self.stack.lower(part.layer)?.fs())
            }
            Body::File(file) => {
                let Real::Lower(index) = file.state.lock().real else { return Ok(()) };
                let parts = parent.dir().ok_or(Errno::IO)?.lowers.get(usize::from(index)).ok_or(Errno::IO)?;
                (self.lower_dir(&parent, usize::from(index))?, &*name, self.stack.lower(parts.layer)?.fs())
            }
        };
        let stat = source_dir.stat(source_name)?.ok_or(Errno::IO)?;
        let breaks_link = stat.nlink > 1 && !stat.is_dir();
        let origin = if breaks_link { None } else { Some(self.origins.encode(fs, &source_dir, source_name)?) };
        let plan = Plan {
            origin: origin.as_deref(),
            length,
            acls: upper.has_acls(),
            xattrs: !self.config.no_xattrs,
            sync: !upper.is_volatile() && !self.config.ignore_fsync,
        };
        let source = Source { dir: &source_dir, name: source_name, stat: &stat, fs };
        let staged = stage(upper, &self.copier, &source, &plan)?;
        let above = self.upper_dir(&parent)?;
        let parent_dir = parent.dir().ok_or(Errno::IO)?;
        let _names = parent_dir.names.write();
        if node.place.lock().removed {
            // Still open, but without a name: the copy gets none either.
            if let Body::File(file) = &node.body
                && let Ok(fd) = staged.into_nameless()
            {
                node.place.lock().orphan = Some(upper.hold(fd));
                file.state.lock().real = Real::Upper;
                return Ok(());
            }
            return Err(Errno::STALE);
        }
        self.mark_impure(&parent, &above)?;
        let before = above.stat_self()?;
        staged.publish_new(&above, &name)?;
        // The parent did not change for its users.
        above.set_times(c"", &Times { atime: None, mtime: Some(TimeTo::At(before.mtime)) })?;
        match &node.body {
            Body::Dir(dir) => dir.state.lock().upper = Some(UpperPart::default()),
            Body::File(file) => {
                file.state.lock().real = Real::Upper;
                if breaks_link {
                    // Its other names stay what they were, so the copy is a file of its own (kernel: `ovl_getattr`).
                    let copied = above.stat(&name)?.ok_or(Errno::IO)?;
                    node.set_ino(self.stack.show_ino(LayerStack::UPPER_FS, copied.ino));
                }
            }
        }
        parent_dir.state.lock().listing = None;
        Ok(())
    }

    /// Notes on disk that the directory holds files with an origin mark, whose inode numbers are not their own
    /// (kernel: `ovl_set_impure`).
    pub(super) fn mark_impure(&self, node: &Arc<Node>, dir: &UpperDir) -> Result<()> {
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
