//! Brings nodes up to date after the upper has become a lower layer.
//!
//! A checkpoint makes the upper the topmost lower layer, and an empty directory the new upper. Names lead to the same files as
//! before; only the files of the upper are in a layer now. Nodes are updated lazily, because there may be millions. A node in the
//! upper stores the upper's id ([`Residence::Upper`]), and the layer keeps that id. So [`Node::state`] and [`Node::dir`] detect an
//! outdated node, and bring it up to date before they return. No layer is read for that: a directory is at the same path in the
//! layer as it was in the upper, because a move would have brought it up to date first.

use crate::driver::node::{Dentry, Node, NodeRef};
use crate::union::layer::LayerId;

#[cfg(doc)]
use crate::driver::node::Residence;

impl Node {
    /// Id of the present upper, for a directory.
    pub(super) fn current_upper(&self) -> Option<LayerId> {
        self.dir.as_ref().map(|dir| dir.upper_id().get())
    }

    fn outdated(&self) -> Option<(Dentry, LayerId)> {
        self.state.lock().outdated().map(|(at, layer)| (at.clone(), layer))
    }

    /// Brings the node up to date. The path of a directory in the new layer is built from its parent's path, so outdated
    /// directories above it come first, from the root down.
    pub(super) fn settle(&self) {
        let mut above: Vec<NodeRef> = Vec::new();
        let mut next = self.outdated().map(|((parent, _), _)| parent);
        while let Some(node) = next {
            next = node.outdated().map(|((parent, _), _)| parent);
            if next.is_some() {
                above.push(node);
            }
        }
        for node in above.iter().rev() {
            node.settle_alone();
        }
        self.settle_alone();
    }

    /// Brings one node up to date, after its parent. Several threads may do so at the same time, with the same result.
    fn settle_alone(&self) {
        let outdated = self.outdated();
        if let (Some(dir), Some(((parent, name), layer))) = (self.dir.as_deref(), &outdated) {
            let part = parent.dir.as_ref().and_then(|above| above.lowers().of_layer(*layer).cloned());
            match part {
                Some(part) => dir.become_lower(*layer, part.child_path(name)),
                None => tracing::error!("{name:?}: its directory is not in the layer that was the upper"),
            }
        }
        if let Some((_, layer)) = outdated {
            self.state.lock().become_lower(layer);
        }
        if let Some(dir) = &self.dir {
            dir.note_up_to_date();
        }
    }
}
