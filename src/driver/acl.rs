//! Inheritance of POSIX ACLs for files that are made in the work directory, where the file system cannot do it.
//!
//! Format of the attributes: `linux/posix_acl_xattr.h`; rules: POSIX.1e draft 17, 23.1.

/// Value of `a_version`.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Bytes before the entries, and of each entry (tag, permissions, id).
const HEADER: usize = 4;
const ENTRY: usize = 8;

/// What a new file gets from its directory's default ACL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InheritedAcl {
    /// Permission bits.
    pub mode: u32,
    /// Access ACL, if it says more than the mode.
    pub access: Option<Vec<u8>>,
}

/// Applies `default`, a directory's default ACL, to a file created with `mode` (kernel: `posix_acl_create`). The
/// umask plays no part. Returns `None` if the ACL is malformed; the file then inherits nothing.
pub(super) fn inherit(default: &[u8], mode: u32) -> Option<InheritedAcl> {
    let version = u32::from_le_bytes(default.get(..HEADER)?.try_into().ok()?);
    let body = default.get(HEADER..)?;
    if version != VERSION || body.len() % ENTRY != 0 {
        return None;
    }
    let has_mask = body.chunks_exact(ENTRY).any(|entry| tag(entry) == MASK);
    let mut access = VERSION.to_le_bytes().to_vec();
    let mut granted = mode & !0o777;
    let mut extended = false;
    for entry in body.chunks_exact(ENTRY) {
        let mut permissions = u32::from(u16::from_le_bytes([*entry.get(2)?, *entry.get(3)?]));
        // The class of the mode that limits this entry; the mask stands for the group where there is one.
        let shift = match tag(entry) {
            USER_OBJ => Some(6),
            MASK => Some(3),
            GROUP_OBJ if !has_mask => Some(3),
            OTHER => Some(0),
            _ => None,
        };
        if let Some(shift) = shift {
            permissions &= mode >> shift & 7;
            granted |= permissions << shift;
        }
        extended |= !matches!(tag(entry), USER_OBJ | GROUP_OBJ | OTHER);
        access.extend_from_slice(entry.get(..2)?);
        access.extend_from_slice(&u16::try_from(permissions).ok()?.to_le_bytes());
        access.extend_from_slice(entry.get(4..)?);
    }
    Some(InheritedAcl { mode: granted, access: extended.then_some(access) })
}

fn tag(entry: &[u8]) -> u16 {
    match entry {
        [low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn minimal_acl_only_limits_the_mode() {
        let default = acl(&[(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 0, u32::MAX)]);
        assert_eq!(inherit(&default, 0o100_666), Some(InheritedAcl { mode: 0o100_640, access: None }));
    }

    #[test]
    fn mask_takes_the_groups_place() {
        const USER: u16 = 0x02;
        let default = acl(&[
            (USER_OBJ, 7, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 7, u32::MAX),
            (MASK, 7, u32::MAX),
            (OTHER, 5, u32::MAX),
        ]);
        let inherited = inherit(&default, 0o640).expect("an ACL");
        assert_eq!(inherited.mode, 0o640);
        let expected = acl(&[
            (USER_OBJ, 6, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 7, u32::MAX),
            (MASK, 4, u32::MAX),
            (OTHER, 0, u32::MAX),
        ]);
        assert_eq!(inherited.access, Some(expected));
    }

    #[test]
    fn malformed_acls_are_not_inherited() {
        for bad in [&b""[..], b"\x01\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(inherit(bad, 0o644), None);
        }
    }
}
