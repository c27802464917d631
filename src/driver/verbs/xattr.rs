//! Extended attributes. The marks are hidden; a user's own attribute with a mark's name is stored escaped.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::driver::Union;
use crate::driver::copy_up::stage::is_mark;
use crate::driver::node::NodeRef;
use crate::driver::types::{Caller, Errno, NodeId, Result};
use crate::marks::{Namespace, Visible, escape_xattr, unescape_xattr};
use crate::union::layer::{UpperDir, UpperLayer};

/// Decides whether to list a file's attributes when the first one is asked for.
///
/// The kernel asks for one attribute at a time (`ls -l` asks for a label and an ACL of every file), and caches only the
/// answers about ACLs. Most files have none at all; one listing answers all questions about such a file. If most files
/// have attributes, the listing is only a cost.
#[derive(Debug)]
pub(in crate::driver) struct Bare {
    credit: AtomicU32,
    /// A security module shows attributes that no list contains.
    labels: bool,
}

impl Bare {
    /// Surplus of files with attributes over files without after which listing is given up for good.
    const CREDIT: u32 = 64;

    pub(in crate::driver) fn new() -> Self {
        let labels = ["/sys/fs/selinux/enforce", "/sys/fs/smackfs/load2"].iter().any(|path| Path::new(path).exists());
        Self { credit: AtomicU32::new(if labels { 0 } else { Self::CREDIT }), labels }
    }

    fn pays(&self) -> bool {
        self.credit.load(Ordering::Relaxed) > 0
    }

    /// Threads may overwrite each other's counts; they are estimates.
    fn note(&self, bare: bool) {
        let before = self.credit.load(Ordering::Relaxed);
        let after = if bare { (before + 1).min(Self::CREDIT) } else { before.saturating_sub(1) };
        if after != before {
            self.credit.store(after, Ordering::Relaxed);
        }
    }
}

/// True for attributes that a listing always shows; this is not certain for others (`ceph.*`,
/// `system.nfs4_acl`).
fn is_always_listed(key: &[u8]) -> bool {
    [&b"user."[..], b"security.", b"system.posix_acl_"].iter().any(|prefix| key.starts_with(prefix))
}

impl Union {
    /// The name under which the mount's attribute `key` is stored.
    fn stored_key(&self, key: &OsStr) -> Result<CString> {
        let bytes = key.as_bytes();
        let is_acl = bytes.starts_with(b"system.posix_acl_");
        if (is_acl && !self.has_acls()) || (!is_acl && self.config.no_xattrs) {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(permissions) = &self.permissions {
            let stored = permissions.stored_key(bytes).ok_or(Errno::PERM)?;
            if stored != bytes {
                return CString::new(stored).map_err(|_| Errno::INVAL);
            }
        }
        let escaped = Namespace::ALL.into_iter().find_map(|namespace| escape_xattr(namespace, bytes));
        CString::new(escaped.unwrap_or_else(|| bytes.to_vec())).map_err(|_| Errno::INVAL)
    }

    /// Value of an attribute.
    ///
    /// # Errors
    /// `NODATA`, `OPNOTSUPP`; those of `getxattr(2)`.
    pub(crate) fn getxattr(&self, node: NodeId, key: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        // An attribute that users may not set does not exist for them.
        let stored = self.stored_key(key).map_err(|errno| if errno == Errno::PERM { Errno::NODATA } else { errno })?;
        if is_always_listed(key.as_bytes()) && self.is_bare(&node)? {
            return Err(Errno::NODATA);
        }
        self.stored_value(&node, key, &stored)?.ok_or(Errno::NODATA)
    }

    /// True if users see no extended attributes of the file. False may only mean that looking does not pay.
    fn is_bare(&self, node: &NodeRef) -> Result<bool> {
        if node.is_bare() {
            return Ok(true);
        }
        let may_change = self.config.timeout.is_some() && !node.has_upper();
        if self.permissions.is_some() || may_change || !self.bare.pays() {
            return Ok(false);
        }
        if self.has_no_xattrs(node)? {
            node.note_bare();
            return Ok(true);
        }
        let listed = match self.on_real(node, |dir, name| dir.list_xattrs(name)) {
            // More attributes than can be listed.
            Err(Errno::TOOBIG) => return Ok(false),
            listed => listed?,
        };
        let bare = listed.split(|&byte| byte == 0).all(|key| key.is_empty() || is_mark(key));
        if bare {
            node.note_bare();
        }
        self.bare.note(bare);
        Ok(bare)
    }

    /// Notes that a file was just made and inherited no ACL. At the first write, the kernel asks whether the file
    /// has capabilities.
    pub(in crate::driver) fn note_new(&self, node: &NodeRef) {
        let bare = self.stack.upper().is_some_and(UpperLayer::makes_bare_files);
        if bare && self.permissions.is_none() && !self.bare.labels {
            node.note_bare();
        }
    }

    /// The value of the attribute `key`, which is stored as `stored`.
    fn stored_value(&self, node: &NodeRef, key: &OsStr, stored: &CStr) -> Result<Option<Vec<u8>>> {
        if self.has_no_xattrs(node)? {
            return Ok(None);
        }
        self.on_real(node, |dir, name| match dir.xattr(name, stored)? {
            // In a lower layer made by root, the file has the real attribute.
            None if self.permissions.is_some() && stored.to_bytes() != key.as_bytes() => {
                let real = CString::new(key.as_bytes()).map_err(|_| Errno::INVAL)?;
                if real.to_bytes().starts_with(b"security.") { dir.xattr(name, &real) } else { Ok(None) }
            }
            found => Ok(found),
        })
    }

    /// True if the node's file is in a lower layer whose inventory says that it has no attributes.
    fn has_no_xattrs(&self, node: &NodeRef) -> Result<bool> {
        Ok(self.on_lower_view(node, |dir, name| Ok(dir.has_no_xattrs(name)))?.unwrap_or(false))
    }

    /// Names of all attributes, each ended by a NUL.
    ///
    /// # Errors
    /// Those of `listxattr(2)`.
    pub(crate) fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if self.has_no_xattrs(&node)? {
            return Ok(Vec::new());
        }
        let stored = self.on_real(&node, |dir, name| dir.list_xattrs(name))?;
        let mut shown = Vec::with_capacity(stored.len());
        for key in stored.split(|&b| b == 0).filter(|key| !key.is_empty()) {
            let is_acl = key.starts_with(b"system.posix_acl_");
            if (is_acl && !self.has_acls()) || (!is_acl && self.config.no_xattrs) {
                continue;
            }
            let key = match &self.permissions {
                None => key,
                Some(permissions) => match permissions.shown_key(key) {
                    Some(key) => key,
                    None => continue,
                },
            };
            let namespace = Namespace::ALL.into_iter().find(|n| key.starts_with(n.prefix().as_bytes()));
            let before = shown.len();
            match namespace.map_or(Visible::Plain, |namespace| unescape_xattr(namespace, key)) {
                Visible::Plain => shown.extend_from_slice(key),
                Visible::Unescaped(plain) => shown.extend_from_slice(&plain),
                Visible::Hidden => continue,
            }
            shown.push(0);
            // The kept and the real attribute are shown as one.
            let (earlier, last) = shown.split_at_checked(before).unwrap_or_default();
            if self.permissions.is_some() && earlier.split_inclusive(|&byte| byte == 0).any(|name| name == last) {
                shown.truncate(before);
            }
        }
        Ok(shown)
    }

    /// Sets an attribute. `flags`: `XATTR_CREATE`, `XATTR_REPLACE`. `kill_sgid` is true if the caller may not
    /// keep the set-group-id bit (when the access ACL changes).
    ///
    /// # Errors
    /// Those of copy-up and `setxattr(2)`.
    pub(crate) fn setxattr(
        &self,
        _caller: &Caller,
        node: NodeId,
        key: &OsStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        self.upper()?;
        let asked = node;
        let node = self.node(asked)?;
        let key = self.stored_key(key)?;
        node.check_unprotected()?;
        node.note_attributed();
        self.check_growth()?;
        self.copy_up_attributes(&node)?;
        let set = |dir: &UpperDir, name: &CStr| {
            dir.set_xattr(name, &key, value, flags)?;
            if kill_sgid {
                let mode = dir.stat(name)?.ok_or(Errno::STALE)?.mode & 0o7777;
                if mode & libc::S_ISGID != 0 {
                    dir.set_mode(name, mode & !libc::S_ISGID)?;
                }
            }
            Ok(())
        };
        self.counting(&node, || self.on_upper(&node, set))?;
        self.changed_under(&node, asked);
        self.forget_inheritance(&node);
        Ok(())
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NODATA`; those of copy-up and `removexattr(2)`.
    pub(crate) fn removexattr(&self, node: NodeId, key: &OsStr) -> Result<()> {
        self.upper()?;
        let asked = node;
        let node = self.node(asked)?;
        let stored = self.stored_key(key)?;
        node.check_unprotected()?;
        // A missing attribute must not cause a copy-up.
        if !node.has_upper() && self.stored_value(&node, key, &stored)?.is_none() {
            return Err(Errno::NODATA);
        }
        self.copy_up_attributes(&node)?;
        self.counting(&node, || self.on_upper(&node, |dir, name| dir.remove_xattr(name, &stored)))?;
        self.changed_under(&node, asked);
        self.forget_inheritance(&node);
        Ok(())
    }

    /// What new entries of a directory inherit may have changed.
    pub(in crate::driver) fn forget_inheritance(&self, node: &crate::driver::node::Node) {
        if let Some(dir) = node.dir() {
            dir.note_upper_part(|part| part.inheritance = None);
        }
    }
}
