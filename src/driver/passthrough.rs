//! Decides for which open files the kernel reads and writes the backing file itself (`passthrough=`).
//!
//! This is the case for files of the upper, and for every file of a mount without an upper. On a writable mount it is
//! also the case for lower files that are programs or shared libraries (`passthrough=programs`, the default) or for
//! all lower files (`passthrough=all`), so that all mounts of an image share one copy in the page cache.
//!
//! A file is a program if it is executed, if it begins with the magic number of ELF (Debian's shared libraries have no `x` bit),
//! or if its name is that of an interpreter's module. The driver looks once for each node, at the first open. Programs are usually
//! replaced by a rename and not written in place, and interpreters close a module once they have read it, so the limits below
//! hardly matter for them.
//!
//! The kernel accepts one backing file for an inode at a time. As long as it has one, it accepts no other kind of open
//! (`fuse_file_io_open`). So if a lower file is copied up while readers have it open, that inode cannot serve a further open: a
//! lower file's backing must never serve a writer, nor a reader that opens the file after the copy-up. OPEN is then answered with
//! ESTALE, and the kernel looks the name up again (`do_filp_open`, `LOOKUP_REVAL`). LOOKUP answers with a new number for the same
//! node, with the same `st_ino`. The kernel makes a new inode for it and opens the upper file there.
//!
//! Processes that have the old inode open keep it. These limits are why `all` is not the default:
//! - reads and mappings of the old inode keep showing the lower file (with the kernel's overlayfs, only mappings do);
//! - attributes are always current: requests under either number reach the same node, and the kernel is told to cache
//!   none under the old one;
//! - locks and watches belong to the kernel's inode, so those on the old inode are not seen by processes that open the
//!   file later;
//! - opening the old inode without looking up a name (a descriptor through `/proc`, a bind-mounted file) fails with ESTALE
//!   as long as a process reads the lower file through it. After that, the old inode opens the upper file directly, as the
//!   new one does.

use std::os::fd::BorrowedFd;

use crate::config::Passthrough;
use crate::driver::Union;
use crate::driver::node::{Node, NodeRef};
use crate::driver::types::{Errno, NodeId, Result, Validity};

/// The first bytes of a program or a shared library (`elf(5)`, `ELFMAG`).
const ELF_MAGIC: &[u8; 4] = b"\x7fELF";

/// Ends of the names of modules that interpreters load.
const MODULES: [&[u8]; 12] =
    [b".cjs", b".class", b".jar", b".js", b".lua", b".mjs", b".php", b".pl", b".pm", b".py", b".pyc", b".rb"];

/// True if `name` is that of a module that an interpreter loads.
fn is_module(name: &[u8]) -> bool {
    MODULES.iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

impl Union {
    /// True if the kernel may read the real file of `node` itself, and write it if it is in the upper. What is written to an
    /// upper with a limit must be counted, and that it is appended must be checked, so the kernel has no file of these.
    pub(in crate::driver) fn may_pass_through(&self, node: &Node, upper: bool) -> bool {
        let lower = || match self.config.passthrough {
            Passthrough::Off | Passthrough::Upper => false,
            Passthrough::Programs => node.is_program(),
            Passthrough::All => true,
        };
        self.kernel.get().is_some_and(|attached| attached.passthrough)
            && match upper {
                true => self.usage.is_none() && !node.protection().append_only,
                false => self.is_read_only() || lower(),
            }
    }

    /// Finds out at the first open of a lower file whether it is a program. `executed` is true if it is opened to be executed.
    pub(in crate::driver) fn classify(&self, node: &Node, file: BorrowedFd<'_>, executed: bool) {
        if self.config.passthrough != Passthrough::Programs || node.is_program() {
            return;
        }
        if executed {
            node.classify(true);
        } else if !node.is_classified() {
            let mut magic = [0; ELF_MAGIC.len()];
            // If the file cannot be read, the read that follows reports it.
            let read = rustix::io::pread(file, &mut magic, 0);
            let is_elf = read == Ok(magic.len()) && magic == *ELF_MAGIC;
            node.classify(is_elf || node.name().is_some_and(|(_, name)| is_module(name.to_bytes())));
        }
    }

    /// Fails with `STALE` if the kernel's inode with the number `asked` can serve no further open.
    pub(in crate::driver) fn check_inode(&self, node: &NodeRef, asked: NodeId) -> Result<()> {
        let Some(state) = node.file_state() else { return Ok(()) };
        let usable = state.can_open_under(asked == node.id());
        drop(state);
        if usable { Ok(()) } else { Err(self.turn_away(node, asked)) }
    }

    /// The answer to an open that [`crate::driver::node::State::must_part`] or another number forbids: the kernel then looks the
    /// name up again and gets another inode.
    pub(in crate::driver) fn turn_away(&self, node: &NodeRef, asked: NodeId) -> Errno {
        if let Some(mut state) = node.file_state()
            && state.must_part()
        {
            state.part_from_readers();
            node.set_bypassed(&mut state, false);
            self.nodes.renumber(node);
        }
        if let Some(kernel) = self.kernel() {
            // Changes made through the new inode would not update the attributes cached for the old one.
            kernel.invalidate_attr(asked);
        }
        Errno::STALE
    }

    /// How long attributes hold that the kernel asked for under the number `asked`.
    pub(in crate::driver) fn validity_for(node: &Node, asked: NodeId) -> Validity {
        if asked == node.id() { Self::validity(node) } else { Validity::None }
    }

    /// Must be called after a change of attributes that the kernel made under the number `asked`: if the node now has
    /// another number, the kernel caches other attributes under that one.
    pub(in crate::driver) fn changed_under(&self, node: &Node, asked: NodeId) {
        if asked != node.id()
            && let Some(kernel) = self.kernel()
        {
            kernel.invalidate_attr(node.id());
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_the_ends_of_their_names() {
        for (name, expected) in [
            ("os.py", true),
            ("os.cpython-311.pyc", true),
            ("Carp.pm", true),
            ("index.js", true),
            (".py", false),
            ("py", false),
            ("data.json", false),
            ("notes.py~", false),
        ] {
            assert_eq!(is_module(name.as_bytes()), expected, "{name}");
        }
    }
}
