//! Which open files the kernel reads and writes itself, straight from the backing file (`passthrough=`).
//!
//! Files of the upper, and every file of a mount without upper. On a writable mount, also lower files that are programs or
//! shared libraries (`passthrough=programs`, the default) or all lower files (`passthrough=all`), so that all mounts of an
//! image share one copy of them in the page cache.
//!
//! A file is a program if it is executed, or if it begins with the magic number of ELF: Debian's shared libraries have no
//! `x` bit. The driver looks once for each node, at the first open. Programs are replaced by a rename rather than written in
//! place, so the limits below hardly ever matter for them.
//!
//! The kernel takes one backing file for an inode at a time, and while it has one, no open of any other kind
//! (`fuse_file_io_open`). So once a lower file that readers have open has been copied up, no further open of that inode
//! can be answered: a lower file's backing must never serve a writer, nor a reader who comes after him. OPEN is then
//! answered with ESTALE, upon which the kernel looks the name up again (`do_filp_open`, `LOOKUP_REVAL`). LOOKUP tells it
//! another number for the same node, with the same `st_ino`; it makes a new inode of that, and opens the upper file there.
//!
//! A process that has the old inode open keeps it. These limits are why `all` is not the default:
//! - reads and mappings go on showing the lower file (the kernel's overlayfs shows them so in mappings only);
//! - attributes are those of the file now: requests under either number reach the same node, and the kernel is told to
//!   keep none under the old one;
//! - locks and watches belong to the kernel's inode, so those on the old inode are not seen by processes that open the
//!   file later;
//! - opening the inode again without a name to look up (a descriptor through `/proc`, a file that is bind-mounted) gives
//!   ESTALE while somebody reads the lower file through it. After that it is opened straight from the upper file, as the new
//!   inode is.

use std::os::fd::BorrowedFd;

use crate::config::Passthrough;
use crate::driver::Union;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, NodeId, Result, Validity};

/// The first bytes of a program or a shared library (`elf(5)`, `ELFMAG`).
const ELF_MAGIC: &[u8; 4] = b"\x7fELF";

impl Union {
    /// True if the kernel may read the real file of `node` itself, and write it if it is in the upper.
    pub(in crate::driver) fn may_pass_through(&self, node: &Node, upper: bool) -> bool {
        let lower = || match self.config.passthrough {
            Passthrough::Off | Passthrough::Upper => false,
            Passthrough::Programs => node.is_program(),
            Passthrough::All => true,
        };
        self.kernel.get().is_some_and(|attached| attached.passthrough) && (upper || self.is_read_only() || lower())
    }

    /// Finds out at the first open whether a lower file is a program. `executed`: it is opened to be executed.
    pub(in crate::driver) fn classify(&self, node: &Node, file: BorrowedFd<'_>, executed: bool) {
        if self.config.passthrough != Passthrough::Programs || node.is_program() {
            return;
        }
        if executed {
            node.classify(true);
        } else if !node.is_classified() {
            let mut magic = [0; ELF_MAGIC.len()];
            // A file that cannot be read fails at the read that follows.
            let read = rustix::io::pread(file, &mut magic, 0);
            node.classify(read == Ok(magic.len()) && magic == *ELF_MAGIC);
        }
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
