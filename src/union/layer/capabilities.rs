//! Capabilities of the upper's file system. Each is probed once, at mount, by using it in the work directory.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use crate::marks::{Mark, Namespace};
use crate::union::layer::{UpperDir, UpperWhiteouts};

/// Capabilities of the upper's file system. `Display` writes them as one line.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// How deletions are marked.
    pub whiteouts: UpperWhiteouts,
    /// Where marks are stored; `None` if the file system has no extended attributes.
    pub marks: Option<Namespace>,
    /// `RENAME_WHITEOUT`.
    pub rename_whiteout: bool,
    /// `RENAME_EXCHANGE`.
    pub exchange: bool,
    /// `RENAME_NOREPLACE`.
    pub noreplace: bool,
    /// Nameless files (`O_TMPFILE`) that can be named later.
    pub nameless_files: bool,
    /// Hard links.
    pub hard_links: bool,
    /// File handles.
    pub handles: bool,
    /// Files that share blocks (`FICLONE`).
    pub shared_blocks: bool,
    /// A new file has no extended attributes: no security module labels or signs it.
    pub bare_files: bool,
}

/// Names that the probes use in the work directory.
const A: &CStr = c"#probe-a";
const B: &CStr = c"#probe-b";

impl fmt::Display for Capabilities {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whiteouts = match self.whiteouts {
            UpperWhiteouts::Device => "devices",
            UpperWhiteouts::Xattr(_) => "attributes",
        };
        let marks = match self.marks {
            Some(Namespace::Trusted) => "trusted.*",
            Some(_) => "user.*",
            None => "none",
        };
        write!(out, "whiteouts: {whiteouts}; marks: {marks}")?;
        for (name, can) in [
            ("RENAME_WHITEOUT", self.rename_whiteout),
            ("RENAME_EXCHANGE", self.exchange),
            ("RENAME_NOREPLACE", self.noreplace),
            ("O_TMPFILE", self.nameless_files),
            ("hard links", self.hard_links),
            ("handles", self.handles),
            ("shared blocks", self.shared_blocks),
        ] {
            write!(out, "; {name}: {}", if can { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

impl Capabilities {
    /// Probes each capability in the empty directory `work`. With `userxattr`, marks are always `user.*` attributes.
    ///
    /// # Errors
    /// `OPNOTSUPP` if deletions cannot be marked in any form; those of making files in `work`.
    pub(super) fn probe(work: &UpperDir, userxattr: bool) -> Result<Self, Errno> {
        let marks = probe_marks(work, userxattr)?;
        let whiteouts = probe_whiteouts(work, marks)?;
        drop(work.create_file(A, 0o600, OFlags::WRONLY)?);
        let bare_files = work.list_xattrs(A).is_ok_and(|listed| listed.is_empty());
        let handles = work.handle(A).is_ok();
        let noreplace = work.rename(A, work, B, RenameFlags::NOREPLACE).is_ok();
        if !noreplace {
            work.rename(A, work, B, RenameFlags::empty())?;
        }
        let hard_links = work.link(work, B, A).is_ok();
        if !hard_links {
            drop(work.create_file(A, 0o600, OFlags::WRONLY)?);
        }
        let exchange = work.rename(A, work, B, RenameFlags::EXCHANGE).is_ok();
        work.remove_file(B)?;
        let rename_whiteout = whiteouts == UpperWhiteouts::Device && probe_rename_whiteout(work)?;
        let shared_blocks = probe_shared_blocks(work)?;
        work.remove_file(A)?;
        let nameless_files = probe_nameless_files(work)?;
        Ok(Self {
            whiteouts,
            marks,
            rename_whiteout,
            exchange,
            noreplace,
            nameless_files,
            hard_links,
            handles,
            shared_blocks,
            bare_files,
        })
    }

    /// The operations that fail on such an upper, in words; `None` if there are none.
    pub fn limits(&self) -> Option<String> {
        let mut refused = Vec::new();
        if !self.exchange {
            refused.push("renameat2 with RENAME_EXCHANGE");
        }
        if !self.nameless_files {
            refused.push("O_TMPFILE");
        }
        if !self.hard_links {
            refused.push("hard links");
        }
        if self.marks.is_none() {
            refused.push("extended attributes, renames of lower directories (EXDEV)");
        }
        (!refused.is_empty()).then(|| refused.join(", "))
    }
}

/// The name space in which marks can be set.
fn probe_marks(work: &UpperDir, userxattr: bool) -> Result<Option<Namespace>, Errno> {
    work.make_dir(A, 0o700)?;
    let mut found = None;
    for namespace in [Namespace::Trusted, Namespace::User] {
        if found.is_some() || (userxattr && namespace == Namespace::Trusted) {
            continue;
        }
        match work.set_xattr(A, &key(namespace, Mark::Opaque), b"y", 0) {
            Ok(()) => found = Some(namespace),
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno),
        }
    }
    work.remove_dir(A)?;
    Ok(found)
}

fn key(namespace: Namespace, mark: Mark) -> CString {
    CString::new(namespace.xattr(mark)).unwrap_or_default()
}

fn probe_whiteouts(work: &UpperDir, marks: Option<Namespace>) -> Result<UpperWhiteouts, Errno> {
    match work.make_node(A, libc::S_IFCHR, (0, 0)) {
        Ok(()) => {
            work.remove_file(A)?;
            return Ok(UpperWhiteouts::Device);
        }
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::IO) => {}
        Err(errno) => return Err(errno),
    }
    let namespace = marks.ok_or(Errno::OPNOTSUPP)?;
    drop(work.create_file(A, 0o600, OFlags::WRONLY)?);
    let set = work.set_xattr(A, &key(namespace, Mark::Whiteout), b"y", 0);
    work.remove_file(A)?;
    set.map(|()| UpperWhiteouts::Xattr(namespace))
}

/// Expects a file [`A`] and no [`B`]; leaves the same.
fn probe_rename_whiteout(work: &UpperDir) -> Result<bool, Errno> {
    if work.rename(A, work, B, RenameFlags::WHITEOUT).is_err() {
        return Ok(false);
    }
    let left = work.stat(A)?.is_some_and(|stat| stat.is_whiteout_device());
    work.rename(B, work, A, RenameFlags::empty())?;
    Ok(left)
}

/// Expects a file [`A`] and no [`B`]; leaves the same.
fn probe_shared_blocks(work: &UpperDir) -> Result<bool, Errno> {
    let to = work.create_file(B, 0o600, OFlags::WRONLY)?;
    let cloned = rustix::fs::ioctl_ficlone(&to, work.open_file(A)?).is_ok();
    work.remove_file(B)?;
    Ok(cloned)
}

fn probe_nameless_files(work: &UpperDir) -> Result<bool, Errno> {
    let Ok(file) = work.create_tmpfile(0o600) else { return Ok(false) };
    if work.link_open_file(file.as_fd(), A).is_err() {
        return Ok(false);
    }
    work.remove_file(A)?;
    Ok(true)
}
