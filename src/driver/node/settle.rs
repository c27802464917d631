//! Nodes learn at the next look that the upper has become a lower layer.
//!
//! A checkpoint makes the upper the topmost lower layer and an empty directory the upper. That changes nothing of what any
//! name means, only where it is found: what was in the upper is in that layer. Nodes are not told, for there may be millions.
//! A node in the upper knows the id that the upper had ([`Residence::Upper`]), and the layer keeps it. So [`Node::state`] and
//! [`Node::dir`] can tell a node that is outdated, and bring it up to date before anybody sees its state. Nothing is asked of
//! the layers: a directory of the layer is where it was in the upper, and it did not move since, because to move it somebody
//! would have looked at it.

use crate::driver::node::{Dentry, Node, NodeRef};
use crate::union::layer::LayerId;

#[cfg(doc)]
use crate::driver::node::Residence;

impl Node {
    /// The id that the upper has now, if it is a directory.
    pub(super) fn current_upper(&self) -> Option<LayerId> {
        self.dir.as_ref().map(|dir| dir.upper_id().get())
    }

    fn outdated(&self) -> Option<(Dentry, LayerId)> {
        self.state.lock().outdated().map(|(at, layer)| (at.clone(), layer))
    }

    /// Brings the node up to date. The path of a directory in the new layer is made of that of its parent, so the directories
    /// above that are outdated as well come first, from the root down.
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

    /// Brings a node up to date whose parent is. Threads that do it at the same time do the same.
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
