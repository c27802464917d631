//! The table of mounts (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::Device;

/// This process's own table.
pub const OWN: &str = "/proc/self/mountinfo";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Number of the mount, as `statx(2)` gives it.
    pub id: u64,
    /// The file system.
    pub device: Device,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// The mountpoint.
    pub point: PathBuf,
    /// Options of the mount itself, separated by commas.
    pub flags: Vec<u8>,
    /// Type of the file system.
    pub kind: Vec<u8>,
    /// Options of the file system, separated by commas.
    pub options: Vec<u8>,
}

/// The mounts of a table, in its order. Names are bytes; malformed lines are left out.
pub fn parse(table: &[u8]) -> impl Iterator<Item = MountEntry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let root = PathBuf::from(unescape(fields.next()?));
    let point = PathBuf::from(unescape(fields.next()?));
    let flags = fields.next()?.to_vec();
    let kind = fields.by_ref().skip_while(|&field| field != b"-").nth(1)?.to_vec();
    let options = fields.nth(1).unwrap_or_default().to_vec();
    let device = (device.0.parse().ok()?, device.1.parse().ok()?);
    Some(MountEntry { id, device, root, point, flags, kind, options })
}

/// Space, tab, newline and backslash are written as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => Some([a, b, c]),
            _ => None,
        };
        bytes.push(octal.map_or(first, |digits| digits.iter().fold(0, |byte, &digit| byte * 8 + (digit - b'0'))));
        rest = after.get(octal.map_or(0, |digits| digits.len())..).unwrap_or_default();
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (field, path) in [
            (&b"/a"[..], &b"/a"[..]),
            (br"/a\040b\134c", br"/a b\c"),
            (br"/x\", br"/x\"),
            (br"\04", br"\04"),
            (br"\777", br"\777"),
            (b"/\xff\\011", b"/\xff\t"),
        ] {
            assert_eq!(unescape(field).into_vec(), path);
        }
    }

    #[test]
    fn lines() {
        let table = b"40 28 0:38 / /mnt/a\\040b rw,nosuid master:3 propagate_from:2 - fuse.stratafs stratafs rw,x=1\n\
            28 1 8:1 / / rw - ext4 /dev/root rw\n\nrubbish\n41 28 0:39 / /\xff rw shared:1 - tmpfs  rw\n";
        let found: Vec<MountEntry> = parse(table).collect();
        let line = |id, device, point: &[u8], flags: &[u8], kind: &[u8], options: &[u8]| MountEntry {
            id,
            device,
            root: "/".into(),
            point: OsString::from_vec(point.to_vec()).into(),
            flags: flags.to_vec(),
            kind: kind.to_vec(),
            options: options.to_vec(),
        };
        let expected = [
            line(40, (0, 38), b"/mnt/a b", b"rw,nosuid", b"fuse.stratafs", b"rw,x=1"),
            line(28, (8, 1), b"/", b"rw", b"ext4", b"rw"),
            line(41, (0, 39), b"/\xff", b"rw", b"tmpfs", b"rw"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_that_are_cut_off_are_left_out() {
        let table = b"36 22 0:39 / /m rw,nodev - fuse.stratafs a rw\n37 22 0:40 / /with\\040space\\134 rw - ext4 b rw";
        for length in 0..table.len() {
            let found: Vec<u64> = parse(&table[..length]).map(|mount| mount.id).collect();
            assert!([36, 37].starts_with(&found), "{length}: {found:?}");
        }
    }

    #[test]
    fn own_table() {
        let table = std::fs::read(OWN).expect("the table");
        let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(parse(&table).count(), lines);
    }
}
