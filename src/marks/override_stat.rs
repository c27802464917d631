//! The attribute that overrides a file's real owner, mode and type: `UID:GID:MODE[:TYPE]`. The mode is in octal; the
//! type is `dir`, `file`, `symlink`, `pipe`, `socket`, `block-MAJOR-MINOR` or `char-MAJOR-MINOR`
//! (containers/storage `pkg/idtools`, "container override xattr"; fuse-overlayfs reads and writes the same).

use std::ffi::CStr;
use std::fmt;

/// Prefix of an attribute that replaces one that ordinary users cannot set (`security.*`).
pub const PREFIX: &str = "user.containers.override_";

/// The attributes that exist. A union uses one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideKey {
    /// In `security.*`, for privileged mounts (`xattr_permissions=1`). Files of every type can have it.
    Privileged,
    /// In `user.*`, for mounts by ordinary users (`xattr_permissions=2`).
    Containers,
    /// Used by old versions of fuse-overlayfs in place of [`Self::Containers`].
    FuseOverlayfs,
}

impl OverrideKey {
    /// All, in the order in which a reader tries them.
    pub const ALL: [Self; 3] = [Self::Privileged, Self::Containers, Self::FuseOverlayfs];

    /// The attribute's name.
    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Privileged => c"security.fuseoverlayfs.override_stat",
            Self::Containers => c"user.containers.override_stat",
            Self::FuseOverlayfs => c"user.fuseoverlayfs.override_stat",
        }
    }
}

/// True for a name that overrides another attribute, owner or mode; no image has such attributes.
pub fn is_override(name: &[u8]) -> bool {
    OverrideKey::ALL.iter().any(|key| name == key.name().to_bytes()) || name.starts_with(PREFIX.as_bytes())
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Block device: major, minor.
    BlockDevice(u32, u32),
    /// Character device: major, minor.
    CharDevice(u32, u32),
}

impl FileKind {
    /// The value for an inode with this `st_mode` and, if it is a device, this number.
    pub fn of(mode: u32, (major, minor): (u32, u32)) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFBLK => Self::BlockDevice(major, minor),
            libc::S_IFCHR => Self::CharDevice(major, minor),
            _ => Self::Regular,
        }
    }

    /// The type in `st_mode`, and the device number.
    pub fn mode_and_number(self) -> (u32, (u32, u32)) {
        match self {
            Self::Regular => (libc::S_IFREG, (0, 0)),
            Self::Directory => (libc::S_IFDIR, (0, 0)),
            Self::Symlink => (libc::S_IFLNK, (0, 0)),
            Self::Fifo => (libc::S_IFIFO, (0, 0)),
            Self::Socket => (libc::S_IFSOCK, (0, 0)),
            Self::BlockDevice(major, minor) => (libc::S_IFBLK, (major, minor)),
            Self::CharDevice(major, minor) => (libc::S_IFCHR, (major, minor)),
        }
    }
}

impl fmt::Display for FileKind {
    /// The type as it is written in the attribute.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regular => f.write_str("file"),
            Self::Directory => f.write_str("dir"),
            Self::Symlink => f.write_str("symlink"),
            Self::Fifo => f.write_str("pipe"),
            Self::Socket => f.write_str("socket"),
            Self::BlockDevice(major, minor) => write!(f, "block-{major}-{minor}"),
            Self::CharDevice(major, minor) => write!(f, "char-{major}-{minor}"),
        }
    }
}

/// The content of the attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (07777).
    pub mode: u32,
    /// Type; `None` means the real file's type.
    pub kind: Option<FileKind>,
}

impl OverrideStat {
    /// The attribute's value.
    pub fn encode(&self) -> String {
        let Self { uid, gid, mode, kind } = self;
        let kind = kind.map(|kind| format!(":{kind}")).unwrap_or_default();
        format!("{uid}:{gid}:{mode:04o}{kind}")
    }

    /// The type that is shown for a file of type `real`: a regular file may stand for a special one; any other type is shown
    /// as it is.
    pub fn shown_kind(&self, real: FileKind) -> FileKind {
        use FileKind::{BlockDevice, CharDevice, Fifo, Regular, Socket};
        match (real, self.kind) {
            (Regular, Some(kept @ (Fifo | Socket | BlockDevice(..) | CharDevice(..)))) => kept,
            (real, _) => real,
        }
    }

    /// Reads the attribute; `None` if it is malformed. Some writers put the whole `st_mode` into the mode; its type
    /// bits are dropped.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok()?;
        let mut fields = text.splitn(4, ':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let kind = fields.next().map(decode_kind);
        if kind == Some(None) {
            return None;
        }
        Some(Self { uid, gid, mode, kind: kind.flatten() })
    }
}

fn decode_kind(text: &str) -> Option<FileKind> {
    let device = |text: &str| {
        let (major, minor) = text.split_once('-')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match text.split_once('-') {
        None => match text {
            "file" => Some(FileKind::Regular),
            "dir" => Some(FileKind::Directory),
            "symlink" => Some(FileKind::Symlink),
            "pipe" => Some(FileKind::Fifo),
            "socket" => Some(FileKind::Socket),
            _ => None,
        },
        Some(("block", numbers)) => device(numbers).map(|(major, minor)| FileKind::BlockDevice(major, minor)),
        Some(("char", numbers)) => device(numbers).map(|(major, minor)| FileKind::CharDevice(major, minor)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_other_writers() {
        let stat = |uid, gid, mode, kind| Some(OverrideStat { uid, gid, mode, kind });
        for (value, expected) in [
            ("0:0:755", stat(0, 0, 0o755, None)),
            ("1000:100:04755", stat(1000, 100, 0o4755, None)),
            ("0:0:040755", stat(0, 0, 0o755, None)),
            ("0:0:0644:file", stat(0, 0, 0o644, Some(FileKind::Regular))),
            ("5:6:0555:dir", stat(5, 6, 0o555, Some(FileKind::Directory))),
            ("0:0:0666:char-1-3", stat(0, 0, 0o666, Some(FileKind::CharDevice(1, 3)))),
            ("0:6:0660:block-7-300", stat(0, 6, 0o660, Some(FileKind::BlockDevice(7, 300)))),
            ("0:0:0600:pipe", stat(0, 0, 0o600, Some(FileKind::Fifo))),
            ("0:0:0600:socket", stat(0, 0, 0o600, Some(FileKind::Socket))),
            ("0:0:0777:symlink", stat(0, 0, 0o777, Some(FileKind::Symlink))),
            ("", None),
            ("0:0", None),
            ("0:0:", None),
            ("0:0:9", None),
            ("-1:0:755", None),
            ("4294967296:0:755", None),
            ("0:0:755:", None),
            ("0:0:755:door", None),
            ("0:0:755:char", None),
            ("0:0:755:char-1", None),
            ("0:0:755:char-1-x", None),
        ] {
            assert_eq!(OverrideStat::decode(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn only_a_regular_file_stands_for_another() {
        let of = |text: &[u8], real| OverrideStat::decode(text).expect("a value").shown_kind(real);
        for (text, real, shown) in [
            (&b"0:0:666:char-1-3"[..], FileKind::Regular, FileKind::CharDevice(1, 3)),
            (b"0:0:666:block-8-1", FileKind::Regular, FileKind::BlockDevice(8, 1)),
            (b"0:0:666:pipe", FileKind::Regular, FileKind::Fifo),
            (b"0:0:666:socket", FileKind::Regular, FileKind::Socket),
            (b"0:0:666:symlink", FileKind::Regular, FileKind::Regular),
            (b"0:0:666:dir", FileKind::Regular, FileKind::Regular),
            (b"0:0:666", FileKind::Regular, FileKind::Regular),
            (b"0:0:666:char-1-3", FileKind::Directory, FileKind::Directory),
            (b"0:0:666:file", FileKind::Fifo, FileKind::Fifo),
        ] {
            assert_eq!(of(text, real), shown, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn types_of_inodes() {
        for (mode, kind) in [
            (libc::S_IFREG, FileKind::Regular),
            (libc::S_IFDIR, FileKind::Directory),
            (libc::S_IFLNK, FileKind::Symlink),
            (libc::S_IFIFO, FileKind::Fifo),
            (libc::S_IFSOCK, FileKind::Socket),
            (libc::S_IFBLK, FileKind::BlockDevice(8, 1)),
            (libc::S_IFCHR, FileKind::CharDevice(8, 1)),
        ] {
            assert_eq!(FileKind::of(mode | 0o4755, (8, 1)), kind);
            assert_eq!(kind.mode_and_number().0, mode);
        }
    }

    #[test]
    fn values_round_trip() {
        for value in ["0:0:0755", "1:2:4711:file", "0:0:1777:dir", "0:0:0020:char-136-0", "0:0:0600:block-8-1"] {
            let stat = OverrideStat::decode(value.as_bytes()).expect("a value");
            assert_eq!(stat.encode(), value);
        }
    }
}
