//! Owner, mode and type kept in an attribute of a file that really has others: `UID:GID:MODE[:TYPE]`, mode in
//! octal, type `dir`, `file`, `symlink`, `pipe`, `socket`, `block-MAJOR-MINOR` or `char-MAJOR-MINOR`
//! (containers/storage `pkg/idtools`, "container override xattr"; fuse-overlayfs reads and writes the same).

/// Name in `user.*`, for mounts by ordinary users (`xattr_permissions=2`).
pub const CONTAINERS: &str = "user.containers.override_stat";
/// Name in `security.*`, for privileged mounts (`xattr_permissions=1`).
pub const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";
/// Name that old versions of fuse-overlayfs used for [`CONTAINERS`].
pub const FUSE_OVERLAYFS: &str = "user.fuseoverlayfs.override_stat";
/// Prefix of an attribute that stands for one that ordinary users cannot set (`security.*`).
pub const PREFIX: &str = "user.containers.override_";
/// Every name of the attribute, in the order in which a reader tries them.
pub const NAMES: [&str; 3] = [PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS];

/// True for a name that overrides another attribute, owner or mode; no image has such attributes.
pub fn is_override(name: &[u8]) -> bool {
    NAMES.iter().any(|known| name == known.as_bytes()) || name.starts_with(PREFIX.as_bytes())
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Pipe,
    /// Socket.
    Socket,
    /// Block device: major, minor.
    Block(u32, u32),
    /// Character device: major, minor.
    Char(u32, u32),
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
    /// Type; `None` for that of the real file.
    pub kind: Option<Kind>,
}

impl OverrideStat {
    /// The attribute's value.
    pub fn encode(&self) -> String {
        let Self { uid, gid, mode, kind } = self;
        let kind = match kind {
            None => String::new(),
            Some(Kind::File) => ":file".to_owned(),
            Some(Kind::Directory) => ":dir".to_owned(),
            Some(Kind::Symlink) => ":symlink".to_owned(),
            Some(Kind::Pipe) => ":pipe".to_owned(),
            Some(Kind::Socket) => ":socket".to_owned(),
            Some(Kind::Block(major, minor)) => format!(":block-{major}-{minor}"),
            Some(Kind::Char(major, minor)) => format!(":char-{major}-{minor}"),
        };
        format!("{uid}:{gid}:{mode:04o}{kind}")
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

fn decode_kind(text: &str) -> Option<Kind> {
    let device = |text: &str| {
        let (major, minor) = text.split_once('-')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match text.split_once('-') {
        None => match text {
            "file" => Some(Kind::File),
            "dir" => Some(Kind::Directory),
            "symlink" => Some(Kind::Symlink),
            "pipe" => Some(Kind::Pipe),
            "socket" => Some(Kind::Socket),
            _ => None,
        },
        Some(("block", numbers)) => device(numbers).map(|(major, minor)| Kind::Block(major, minor)),
        Some(("char", numbers)) => device(numbers).map(|(major, minor)| Kind::Char(major, minor)),
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
            ("0:0:0644:file", stat(0, 0, 0o644, Some(Kind::File))),
            ("5:6:0555:dir", stat(5, 6, 0o555, Some(Kind::Directory))),
            ("0:0:0666:char-1-3", stat(0, 0, 0o666, Some(Kind::Char(1, 3)))),
            ("0:6:0660:block-7-300", stat(0, 6, 0o660, Some(Kind::Block(7, 300)))),
            ("0:0:0600:pipe", stat(0, 0, 0o600, Some(Kind::Pipe))),
            ("0:0:0600:socket", stat(0, 0, 0o600, Some(Kind::Socket))),
            ("0:0:0777:symlink", stat(0, 0, 0o777, Some(Kind::Symlink))),
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
    fn values_round_trip() {
        for value in ["0:0:0755", "1:2:4711:file", "0:0:1777:dir", "0:0:0020:char-136-0", "0:0:0600:block-8-1"] {
            let stat = OverrideStat::decode(value.as_bytes()).expect("a value");
            assert_eq!(stat.encode(), value);
        }
    }
}
