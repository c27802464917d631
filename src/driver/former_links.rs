//! Link counts of hard links in layers that were the upper. Names that were removed since do not count, as if the upper were
//! still the upper. This knowledge ends with the mount: for the next one the layer is like any other lower layer.

use dashmap::DashMap;

use crate::driver::Union;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{FileId, LayerId, Stat};

/// The names that were removed of each file: for each, the upper that had the whiteout, or the file that hides it.
#[derive(Default)]
pub(in crate::driver) struct FormerLinks(DashMap<FileId, Vec<LayerId>>);

impl FormerLinks {
    /// A name of the file is hidden by a whiteout, or by another file, in `upper`.
    pub(in crate::driver) fn note_removed(&self, file: FileId, upper: LayerId) {
        self.0.entry(file).or_default().push(upper);
    }

    /// The stack has lost all layers above `top`, and what they hid.
    pub(in crate::driver) fn forget_above(&self, top: LayerId) {
        self.0.retain(|_, removed| {
            removed.retain(|layer| *layer <= top);
            !removed.is_empty()
        });
    }

    /// The file is in the upper, with exactly the names that the mount has, and `copy` has taken its names in its layer.
    pub(in crate::driver) fn replace(&self, file: FileId, copy: FileId) {
        if let Some((_, removed)) = self.0.remove(&file) {
            self.0.insert(copy, removed);
        }
    }

    fn removed(&self, file: FileId) -> u32 {
        self.0.get(&file).map_or(0, |removed| u32::try_from(removed.len()).unwrap_or(u32::MAX))
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
