//! Link counts of hard links in layers that were this mount's upper. Names that were removed since a checkpoint do not
//! count, just as without the checkpoint. The next mount treats such a layer like any other lower layer.

use dashmap::DashMap;

use crate::driver::Union;
use crate::driver::locate::LowerPlace;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{FileId, LayerId, Stat};

/// For each file, one entry for each removed name: the upper that has the whiteout or the file that hides it.
#[derive(Default)]
pub(in crate::driver) struct FormerLinks(DashMap<FileId, Vec<LayerId>>);

impl FormerLinks {
    /// Notes that a whiteout or another file in `upper` hides a name of the file.
    pub(in crate::driver) fn note_removed(&self, file: FileId, upper: LayerId) {
        self.0.entry(file).or_default().push(upper);
    }

    /// Notes that the stack has lost all layers above `top`, so that what they hid is visible again.
    pub(in crate::driver) fn forget_above(&self, top: LayerId) {
        self.0.retain(|_, removed| {
            removed.retain(|layer| *layer <= top);
            !removed.is_empty()
        });
    }

    /// Notes that `file` moved to the upper with exactly the names that the mount shows, and that `copy` took its names
    /// in the layer.
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
        // Another verb may have copied it up.
        let Some(place) = LowerPlace::of(node)? else { return Ok(None) };
        let stat = self.lower_dir(&place.dir, place.part()?)?.stat(place.name())?.ok_or(Errno::STALE)?;
        Ok((stat.nlink > 1).then(|| stat.id()))
    }

    /// The link count that the mount shows for the file with the attributes `stat`.
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
