//! Which open files the kernel reads and writes itself, straight from the backing file (`passthrough=`).
//!
//! Files of the upper, and every file of a mount without upper. With `passthrough=all` lower files of a writable mount as
//! well, so that all mounts of an image share one copy of it in the page cache.
//!
//! The kernel takes one backing file for an inode at a time, and while it has one, no open of any other kind
//! (`fuse_file_io_open`). So once a lower file that readers have open has been copied up, no further open of that inode
//! can be answered: a lower file's backing must never serve a writer, nor a reader who comes after him. OPEN is then
//! answered with ESTALE, upon which the kernel looks the name up again (`do_filp_open`, `LOOKUP_REVAL`). LOOKUP tells it
//! another number for the same node, with the same `st_ino`; it makes a new inode of that, and opens the upper file there.
//!
//! Who has the old inode open keeps it. What he sees, and why it is not the default:
//! - reads and mappings go on showing the lower file (the kernel's overlayfs shows them so in mappings only);
//! - attributes are those of the file now: requests under either number reach the same node, and the kernel is told to
//!   keep none under the old one;
//! - locks and watches belong to the kernel's inode, so those on the old inode are not seen by processes that open the
//!   file later;
//! - opening the inode again without a name to look up (a descriptor through `/proc`, a file that is bind-mounted) gives
//!   ESTALE while somebody reads the lower file through it. After that it is opened straight from the upper file, as the new
//!   inode is.

use crate::config::Passthrough;
use crate::driver::Union;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, NodeId, Result, Validity};

impl Union {
    /// Whether the kernel may read a real file itself, and write it if it is the upper's.
    pub(in crate::driver) fn may_pass_through(&self, upper: bool) -> bool {
        self.kernel.get().is_some_and(|attached| attached.passthrough)
            && (upper || self.is_read_only() || self.config.passthrough == Passthrough::All)
    }

    /// Fails with `STALE` if the inode that the kernel has under the number `asked` can serve no further open.
    pub(in crate::driver) fn check_inode(&self, node: &NodeRef, asked: NodeId) -> Result<()> {
        let Some(state) = node.file_state() else { return Ok(()) };
        let usable = state.can_open_under(asked == node.id());
        drop(state);
        if usable { Ok(()) } else { Err(self.turn_away(node, asked)) }
    }

    /// What to answer to an open that [`crate::driver::node::State::must_part`] or another number forbids: the kernel shall look the name
    /// up again, and finds another inode.
    pub(in crate::driver) fn turn_away(&self, node: &NodeRef, asked: NodeId) -> Errno {
        if let Some(mut state) = node.file_state()
            && state.must_part()
        {
            state.part_from_readers();
            node.set_bypassed(&mut state, false);
            self.nodes.renumber(node);
        }
        if let Some(kernel) = self.kernel() {
            // Changes that are made through the new inode would not reach what it keeps with the old one.
            kernel.invalidate_attr(asked);
        }
        Errno::STALE
    }

    /// How long the attributes hold that the kernel has asked for under the number `asked`.
    pub(in crate::driver) fn validity_for(node: &Node, asked: NodeId) -> Validity {
        if asked == node.id() { Self::validity(node) } else { Validity::None }
    }

    /// To be called after a change of attributes that the kernel made under the number `asked`: it keeps others under the
    /// node's number, if that is another.
    pub(in crate::driver) fn changed_under(&self, node: &Node, asked: NodeId) {
        if asked != node.id()
            && let Some(kernel) = self.kernel()
        {
            kernel.invalidate_attr(node.id());
        }
    }
}
