//! The client of the request that a thread works on, and the attributes of directories that are on their way to other clients.
//!
//! The kernel keeps the attributes of a directory without a time limit, and forgets them at a change in it. But if one of its
//! threads has an answer with older attributes at that moment, and has not looked at it yet, it believes them afterwards:
//! `fuse_dir_changed()` of Linux 6.18 does not raise the inode's `attr_version`, by which `fuse_change_attributes()` knows old
//! answers. A notification does raise it. So a directory notes which client was told its attributes, and after a change for
//! another client the kernel is notified. A client that was the only one to be told has its answer already: then nothing is sent.

use std::cell::Cell;

use crate::driver::Union;
use crate::driver::node::NodeRef;

thread_local! {
    static CLIENT: Cell<u32> = const { Cell::new(0) };
}

/// Sets the client of the requests that the calling thread answers from now on: the id in the header of a request; 0 if it is
/// unknown (a client in another PID namespace, or the library).
pub fn set(client: u32) {
    CLIENT.set(client);
}

impl Union {
    /// Called before the client of this thread is told the attributes of `node`.
    pub(in crate::driver) fn note_told(&self, node: &NodeRef) {
        if let Some(dir) = node.dir() {
            dir.told().note(CLIENT.get());
        }
    }

    /// Called after names in `dirs` have changed, before the client is answered, and with no names held.
    pub(in crate::driver) fn changed_dirs(&self, dirs: &[&NodeRef]) {
        for node in dirs {
            if node.dir().is_some_and(|dir| dir.told().take_others(CLIENT.get()))
                && let Some(kernel) = self.kernel()
            {
                kernel.invalidate_attr(node.id());
            }
        }
    }
}
