//! Codec of every mark that a union file system leaves on disk: whiteouts, opaque directories, redirects,
//! origins and metacopy. Pure: bytes in, bytes out; no system calls.
//!
//! Formats: the kernel's `Documentation/filesystems/overlayfs.rst` (whiteouts, opaque directories, redirects,
//! `userxattr`, nested escapes), `fs/overlayfs/overlayfs.h` (`struct ovl_fb`), the OCI image specification,
//! section "Whiteouts" (`.wh.NAME`, `.wh..wh..opq`), and fuse-overlayfs' own `user.fuseoverlayfs.*`.

pub mod chain;
pub mod index;
pub mod origin;
pub mod override_stat;
pub mod protection;

pub use protection::Protection;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Prefix of a whiteout's name in image layers and in AUFS: `.wh.NAME` deletes `NAME`.
pub const AUFS_PREFIX: &[u8] = b".wh.";
/// Name of the entry that makes its directory opaque in image layers and in AUFS.
pub const AUFS_OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS' own bookkeeping entries (`.wh..wh.plnk`, `.wh..wh.aufs`, …).
pub const AUFS_META_PREFIX: &[u8] = b".wh..wh.";

/// A name space of extended attributes for a layer's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// `trusted.overlay.*`, the kernel's default; needs `CAP_SYS_ADMIN`.
    Trusted,
    /// `user.overlay.*`, the kernel's `userxattr`.
    User,
    /// `user.fuseoverlayfs.*`, written by an unprivileged fuse-overlayfs.
    FuseOverlayfs,
}

impl Namespace {
    /// Every name space, in the order in which a reader tries them.
    pub const ALL: [Self; 3] = [Self::Trusted, Self::User, Self::FuseOverlayfs];

    /// The prefix of every mark in this name space, with its final dot.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
            Self::FuseOverlayfs => "user.fuseoverlayfs.",
        }
    }

    /// Full name of `mark` in this name space.
    pub const fn xattr(self, mark: Mark) -> &'static str {
        match (self, mark) {
            (Self::Trusted, Mark::Opaque) => "trusted.overlay.opaque",
            (Self::Trusted, Mark::Redirect) => "trusted.overlay.redirect",
            (Self::Trusted, Mark::Origin) => "trusted.overlay.origin",
            (Self::Trusted, Mark::Impure) => "trusted.overlay.impure",
            (Self::Trusted, Mark::Nlink) => "trusted.overlay.nlink",
            (Self::Trusted, Mark::Upper) => "trusted.overlay.upper",
            (Self::Trusted, Mark::Uuid) => "trusted.overlay.uuid",
            (Self::Trusted, Mark::Metacopy) => "trusted.overlay.metacopy",
            (Self::Trusted, Mark::Whiteout) => "trusted.overlay.whiteout",
            (Self::Trusted, Mark::Protattr) => "trusted.overlay.protattr",
            (Self::Trusted, Mark::Plain) => "trusted.overlay.stratafs.plain",
            (Self::User, Mark::Opaque) => "user.overlay.opaque",
            (Self::User, Mark::Redirect) => "user.overlay.redirect",
            (Self::User, Mark::Origin) => "user.overlay.origin",
            (Self::User, Mark::Impure) => "user.overlay.impure",
            (Self::User, Mark::Nlink) => "user.overlay.nlink",
            (Self::User, Mark::Upper) => "user.overlay.upper",
            (Self::User, Mark::Uuid) => "user.overlay.uuid",
            (Self::User, Mark::Metacopy) => "user.overlay.metacopy",
            (Self::User, Mark::Whiteout) => "user.overlay.whiteout",
            (Self::User, Mark::Protattr) => "user.overlay.protattr",
            (Self::User, Mark::Plain) => "user.overlay.stratafs.plain",
            (Self::FuseOverlayfs, Mark::Opaque) => "user.fuseoverlayfs.opaque",
            (Self::FuseOverlayfs, Mark::Redirect) => "user.fuseoverlayfs.redirect",
            (Self::FuseOverlayfs, Mark::Origin) => "user.fuseoverlayfs.origin",
            (Self::FuseOverlayfs, Mark::Impure) => "user.fuseoverlayfs.impure",
            (Self::FuseOverlayfs, Mark::Nlink) => "user.fuseoverlayfs.nlink",
            (Self::FuseOverlayfs, Mark::Upper) => "user.fuseoverlayfs.upper",
            (Self::FuseOverlayfs, Mark::Uuid) => "user.fuseoverlayfs.uuid",
            (Self::FuseOverlayfs, Mark::Metacopy) => "user.fuseoverlayfs.metacopy",
            (Self::FuseOverlayfs, Mark::Whiteout) => "user.fuseoverlayfs.whiteout",
            (Self::FuseOverlayfs, Mark::Protattr) => "user.fuseoverlayfs.protattr",
            (Self::FuseOverlayfs, Mark::Plain) => "user.fuseoverlayfs.stratafs.plain",
        }
    }
}

/// A mark kept in an extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// `y`: nothing below this directory shows through; `x`: the directory may hold xattr whiteouts.
    Opaque,
    /// Where the lower part of a renamed directory (or metacopy file) is.
    Redirect,
    /// File handle of the lower file that this one was copied up from.
    Origin,
    /// `y`: the directory holds entries with an origin, so their inode numbers differ from the upper's own.
    Impure,
    /// Difference between the mount's link count and the real one, on an indexed hard link.
    Nlink,
    /// File handle of the upper directory, on an index entry.
    Upper,
    /// UUID of the overlay instance, on the upper root.
    Uuid,
    /// The file has its attributes here and its content in a lower layer.
    Metacopy,
    /// On an empty regular file: the file is a whiteout.
    Whiteout,
    /// The file is immutable or append-only ([`Protection`]); the upper's inode does not have the flag.
    Protattr,
    /// `y`: the file is an ordinary one, although it has the name of a whiteout (`.wh.NAME`). Only stratafs has this mark. It
    /// has no effect under another name.
    Plain,
}

/// The meaning of a directory's opaque attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    /// No attribute, or a value that the kernel does not know.
    No,
    /// `y`: the directory hides everything below it.
    Yes,
    /// `x`: entries of this directory may be xattr whiteouts.
    XattrWhiteouts,
}

/// Decodes an opaque attribute (kernel: `ovl_check_opaque` and related functions; unknown values mean "no").
pub fn decode_opaque(value: &[u8]) -> Opaque {
    match value {
        b"y" => Opaque::Yes,
        b"x" => Opaque::XattrWhiteouts,
        _ => Opaque::No,
    }
}

/// False for a file's mark with an impossible value: it is damaged. The value of a whiteout mark has no meaning; other
/// marks belong to an index and are checked there.
pub fn is_good(mark: Mark, value: &[u8]) -> bool {
    match mark {
        Mark::Opaque => matches!(value, b"y" | b"x"),
        Mark::Redirect => decode_redirect(value).is_ok(),
        Mark::Origin => origin::decode(value) != origin::Decoded::Damaged,
        Mark::Metacopy => is_metacopy(value),
        Mark::Impure | Mark::Plain => value == b"y",
        Mark::Protattr => Protection::is_good(value),
        Mark::Whiteout | Mark::Nlink | Mark::Upper | Mark::Uuid => true,
    }
}

/// The meaning of an entry's name by the AUFS and OCI rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AufsName<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh..wh..opq`: the directory that holds it is opaque.
    Opaque,
    /// `.wh.NAME`: deletes NAME.
    Whiteout(&'a OsStr),
    /// Other `.wh..wh.*` entries: AUFS bookkeeping, not part of the tree.
    Bookkeeping,
}

/// Classifies `name` by the AUFS and OCI rules. `.wh.` alone is an ordinary name. So are the names that would
/// delete `.` or `..`, because no reader may obey them.
pub fn decode_aufs_name(name: &OsStr) -> AufsName<'_> {
    let bytes = name.as_bytes();
    if bytes == AUFS_OPAQUE {
        return AufsName::Opaque;
    }
    if bytes.starts_with(AUFS_META_PREFIX) {
        return AufsName::Bookkeeping;
    }
    match bytes.strip_prefix(AUFS_PREFIX) {
        None | Some(b"" | b"." | b"..") => AufsName::Plain,
        Some(target) => AufsName::Whiteout(OsStr::from_bytes(target)),
    }
}

/// A directory's redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// From the root of the layers below: components joined by `/`, without a leading slash.
    Absolute(Vec<u8>),
    /// Another name in the same parent directory.
    Relative(Vec<u8>),
}

/// The value is not a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed redirect")]
pub struct MalformedRedirect;

/// Decodes a redirect (kernel: `ovl_get_redirect_xattr`): an absolute path without empty, `.` or `..`
/// components, or a single name.
///
/// # Errors
/// [`MalformedRedirect`] if the value is neither; it must not be followed.
pub fn decode_redirect(value: &[u8]) -> Result<Redirect, MalformedRedirect> {
    let component =
        |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0);
    match value.strip_prefix(b"/") {
        Some(path) if path.split(|&b| b == b'/').all(component) => Ok(Redirect::Absolute(path.to_vec())),
        None if component(value) && !value.contains(&b'/') => Ok(Redirect::Relative(value.to_vec())),
        _ => Err(MalformedRedirect),
    }
}

/// True for a valid metacopy mark: empty, or a header of four bytes and an optional digest (kernel:
/// `ovl_check_metacopy_xattr`). The digest is only used for `verity`.
pub fn is_metacopy(value: &[u8]) -> bool {
    value.is_empty() || value.len() >= 4
}

/// Escapes an attribute name of the mounted file system that is in the marks' own name space: a user's
/// `trusted.overlay.x` is stored as `trusted.overlay.overlay.x` (kernel >= 6.7, nested overlayfs). `None` if
/// the name needs no escape.
pub fn escape_xattr(namespace: Namespace, name: &[u8]) -> Option<Vec<u8>> {
    let rest = name.strip_prefix(namespace.prefix().as_bytes())?;
    let mut escaped = namespace.prefix().as_bytes().to_vec();
    escaped.extend_from_slice(b"overlay.");
    escaped.extend_from_slice(rest);
    Some(escaped)
}

/// How a stored attribute appears in the mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Unchanged.
    Plain,
    /// Under this name, because it was escaped.
    Unescaped(Vec<u8>),
    /// Not at all, because it is a mark.
    Hidden,
}

/// Undoes [`escape_xattr`] and hides the marks themselves.
pub fn unescape_xattr(namespace: Namespace, name: &[u8]) -> Visible {
    match name.strip_prefix(namespace.prefix().as_bytes()) {
        None => Visible::Plain,
        Some(mark) => match mark.strip_prefix(b"overlay.") {
            None => Visible::Hidden,
            Some(rest) => {
                let mut plain = namespace.prefix().as_bytes().to_vec();
                plain.extend_from_slice(rest);
                Visible::Unescaped(plain)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aufs_names() {
        let table: [(&str, AufsName); 9] = [
            ("file", AufsName::Plain),
            (".wh.", AufsName::Plain),
            (".wh..", AufsName::Plain),
            (".wh...", AufsName::Plain),
            (".wh.file", AufsName::Whiteout(OsStr::new("file"))),
            (".wh..hidden", AufsName::Whiteout(OsStr::new(".hidden"))),
            (".wh..wh..opq", AufsName::Opaque),
            (".wh..wh.plnk", AufsName::Bookkeeping),
            (".wh..wh..opq.x", AufsName::Bookkeeping),
        ];
        for (name, expected) in table {
            assert_eq!(decode_aufs_name(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn redirects() {
        assert_eq!(decode_redirect(b"/a/b"), Ok(Redirect::Absolute(b"a/b".to_vec())));
        assert_eq!(decode_redirect(b"name"), Ok(Redirect::Relative(b"name".to_vec())));
        for bad in [&b""[..], b"/", b"a/b", b"/a//b", b"/a/../b", b"..", b".", b"/a/", b"a\0b"] {
            assert_eq!(decode_redirect(bad), Err(MalformedRedirect), "{bad:?}");
        }
    }

    #[test]
    fn damaged_marks() {
        for (mark, good, bad) in [
            (Mark::Opaque, &[&b"y"[..], b"x"][..], &[&b""[..], b"z", b"yy", b"Y"][..]),
            (Mark::Redirect, &[b"/a", b"a"], &[b"", b"/", b"../a"]),
            (Mark::Origin, &[b""], &[b"x", b"\0\xfb\x1d\0\x01"]),
            (Mark::Metacopy, &[b"", b"\0\x04\0\0"], &[b"x"]),
            (Mark::Impure, &[b"y"], &[b"", b"n"]),
            (Mark::Whiteout, &[b"", b"y", b"anything"], &[]),
        ] {
            assert!(good.iter().all(|value| is_good(mark, value)), "{mark:?}");
            assert!(!bad.iter().any(|value| is_good(mark, value)), "{mark:?}");
        }
    }

    #[test]
    fn escapes_round_trip() {
        let stored = escape_xattr(Namespace::Trusted, b"trusted.overlay.opaque").expect("needs an escape");
        assert_eq!(stored, b"trusted.overlay.overlay.opaque");
        assert_eq!(unescape_xattr(Namespace::Trusted, &stored), Visible::Unescaped(b"trusted.overlay.opaque".to_vec()));
        assert_eq!(unescape_xattr(Namespace::Trusted, b"trusted.overlay.opaque"), Visible::Hidden);
        assert_eq!(unescape_xattr(Namespace::Trusted, b"user.overlay.opaque"), Visible::Plain);
        assert_eq!(escape_xattr(Namespace::Trusted, b"user.x"), None);
    }
}
