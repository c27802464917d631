//! Converts POSIX ACLs from the text of tar programs (`SCHILY.acl.access`, `SCHILY.acl.default`) to the value of the
//! kernel's attributes.
//!
//! Text: acl(5), "ACL TEXT FORMS", with entries separated by commas or newlines; star and libarchive add the number of
//! the user or group as a fourth field. Value: `include/uapi/linux/posix_acl_xattr.h`. Names without a number have no
//! meaning here, because the users of this machine are not those of the image.

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of an entry without one.
const NO_ID: u32 = u32::MAX;
/// More entries than fit into an attribute of 64 KiB.
const MOST_ENTRIES: usize = (64 << 10) / 8;

/// The attribute's value; `None` if the text is not an ACL, or names users without their numbers.
pub(crate) fn encode(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        // `getfacl` appends the effective permissions as a comment.
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    entries.sort_unstable();
    is_valid(&entries).then(|| {
        let head = VERSION.to_le_bytes().to_vec();
        entries.iter().fold(head, |mut value, &(tag, id, permissions)| {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
            value
        })
    })
}

/// The entries of an attribute's value for named users and groups, sorted by number; `None` if it is no ACL. The
/// other entries follow the file's mode.
pub(crate) fn named(value: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = decode(value)?;
    entries.retain(|entry| matches!(entry.0, USER | GROUP));
    entries.sort_unstable();
    Some(entries)
}

fn decode(value: &[u8]) -> Option<Vec<Entry>> {
    let (version, entries) = value.split_first_chunk()?;
    let (entries, rest) = entries.as_chunks::<8>();
    let is_acl = u32::from_le_bytes(*version) == VERSION && rest.is_empty();
    let decoded = entries.iter().map(|&[a, b, c, d, e, f, g, h]| {
        (u16::from_le_bytes([a, b]), u32::from_le_bytes([e, f, g, h]), u16::from_le_bytes([c, d]))
    });
    is_acl.then(|| decoded.collect())
}

/// Tag, id and permissions.
type Entry = (u16, u32, u16);

fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let (kind, name, permissions, number) = match fields.as_slice() {
        [kind, name, permissions] => (*kind, *name, *permissions, None),
        [kind, name, permissions, number] => (*kind, *name, *permissions, Some(*number)),
        // Solaris and old libarchive omit the empty name of these.
        [kind @ ("mask" | "m" | "other" | "o"), permissions] => (*kind, "", *permissions, None),
        _ => return None,
    };
    let tag = match (kind, name.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return None,
    };
    let id = match tag {
        USER | GROUP => id(name, number)?,
        _ => NO_ID,
    };
    Some((tag, id, mode(permissions)?))
}

fn id(name: &str, number: Option<&str>) -> Option<u32> {
    let known = match number {
        Some(number) => number.parse().ok(),
        None if name == "root" => Some(0),
        None => name.parse().ok(),
    };
    known.filter(|&id| id != NO_ID)
}

fn mode(text: &str) -> Option<u16> {
    text.chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })
}

/// As in the kernel's `posix_acl_valid`: one entry each for owner, group and others; a mask if there are named entries.
fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag: u16| entries.iter().filter(|entry| entry.0 == tag).count();
    let distinct = entries.windows(2).all(|pair| matches!(pair, [a, b] if (a.0, a.1) != (b.0, b.1)));
    let named = count(USER) + count(GROUP) > 0;
    let bases = [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1);
    bases && distinct && (!named || count(MASK) == 1) && entries.len() <= MOST_ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[Entry]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, id, mode) in entries {
            value.extend_from_slice(&[&tag.to_le_bytes()[..], &mode.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        value
    }

    #[test]
    fn texts_of_every_writer() {
        let base = [(USER_OBJ, NO_ID, 6), (GROUP_OBJ, NO_ID, 4), (OTHER, NO_ID, 0)];
        let full = [
            (USER_OBJ, NO_ID, 7),
            (USER, 0, 6),
            (USER, 1000, 5),
            (GROUP_OBJ, NO_ID, 4),
            (GROUP, 50, 1),
            (MASK, NO_ID, 7),
            (OTHER, NO_ID, 0),
        ];
        for (text, expected) in [
            ("user::rw-,group::r--,other::---", &base[..]),
            ("u::rw,g::r,o::", &base),
            ("user::rw-\ngroup::r--\nother:---\n", &base),
            ("user::rwx,user:me:r-x:1000,user:root:rw-,group::r--,group:x:--x:50,mask::rwx,other::---", &full),
            ("other::---,mask:rwx,group:50:--x,group::r--\t#effective:r--,user:1000:r-x,user:0:rw-,user::rwx", &full),
        ] {
            assert_eq!(encode(text.as_bytes()), Some(value(expected)), "{text}");
        }
    }

    #[test]
    fn who_is_named_in_a_value() {
        let of = |entries: &[Entry]| named(&value(entries));
        let (me, all) = ((USER, 1000, 5), (GROUP, 50, 1));
        assert_eq!(of(&[(USER_OBJ, NO_ID, 6), all, me, (MASK, NO_ID, 7), (OTHER, NO_ID, 0)]), Some(vec![me, all]));
        assert_eq!(of(&[(USER_OBJ, NO_ID, 6)]), Some(vec![]));
        assert_eq!(named(b"junk"), None);
        assert_eq!(named(&value(&[me])[..11]), None);
        assert_eq!(named(b"\x01\0\0\0"), None);
    }

    #[test]
    fn what_is_none_or_means_nobody() {
        for text in [
            "",
            "junk",
            "user::rw-",
            "user::rw-,group::r--",
            "user::rw-,group::r--,other::---,user:me:rwx,mask::rwx",
            "user::rw-,group::r--,other::---,user:7:rwx",
            "user::rw-,user::rw-,group::r--,other::---",
            "user::rw-,group::r--,other::---,user:7:rwx,user:7:r--,mask::rwx",
            "user::rw-,group::r--,other::---,user:4294967295:rwx,mask::rwx",
            "user::rq-,group::r--,other::---",
            "user::rw-,group::r--,other:x:---",
            "user::rw-:1:2:3,group::r--,other::---",
        ] {
            assert_eq!(encode(text.as_bytes()), None, "{text}");
        }
        assert_eq!(encode(b"\xff"), None);
    }
}
