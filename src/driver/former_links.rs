//! Link counts of hard links in layers that were the upper. Names that were removed since do not count, as if the upper were
//! still the upper. This knowledge ends with the mount: for the next one the layer is like any other lower layer.

use dashmap::DashMap;

use crate::driver::Union;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{FileId, Stat};

/// How many names of each file were removed.
#[derive(Default)]
pub(in crate::driver) struct FormerLinks(DashMap<FileId, u32>);

impl FormerLinks {
    /// A name of the file is hidden by a whiteout, or by another file.
    pub(in crate::driver) fn note_removed(&self, file: FileId) {
        *self.0.entry(file).or_default() += 1;
    }

    /// Another stack of layers has all names of its files.
    pub(in crate::driver) fn forget_all(&self) {
        self.0.clear();
    }

    /// The file is in the upper, with exactly the names that the mount has.
    pub(in crate::driver) fn forget(&self, file: FileId) {
        self.0.remove(&file);
    }

    fn removed(&self, file: FileId) -> u32 {
        self.0.get(&file).map_or(0, |count| *count)
    }
}

impl Union {
    /// The node's file, if it has several names in a layer that was the upper, and none in the upper.
    pub(in crate::driver) fn former_link(&self, node: &NodeRef) -> Result<Option<FileId>> {
        let layer = node.state().lower().map(|(_, layer)| layer);
        if node.dir().is_some() || !layer.is_some_and(|layer| self.was_upper(layer)) {
            return Ok(None);
        }
        // It may have been copied up meanwhile.
        let Some(place) = LowerPlace::of(node)? else { return Ok(None) };
        let stat = self.lower_dir(&place.dir, place.part()?)?.stat(place.name())?.ok_or(Errno::STALE)?;
        Ok((stat.nlink > 1).then(|| stat.id()))
    }

    /// The link count of the file that `stat` is of.
    pub(in crate::driver) fn shown_nlink(&self, node: &Node, stat: &Stat) -> u32 {
        if node.dir().is_some() {
            return stat.nlink;
        }
        let removed_from = {
            let state = node.state();
            if state.is_removed() { state.lower().map(|(_, layer)| layer) } else { None }
        };
        if removed_from.is_some_and(|layer| self.was_upper(layer)) {
            return 0;
        }
        if stat.nlink < 2 {
            return stat.nlink;
        }
        stat.nlink.saturating_sub(self.former_links.removed(stat.id()))
    }
}
