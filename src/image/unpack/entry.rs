//! What an entry's header means on Linux: owners and devices.

use crate::image::layer::attributes::Attributes;
use crate::image::layer::error::{LayerError, Result};
use crate::tar::read::Entry;

/// The attributes that an entry gives its file.
///
/// # Errors
/// When Linux has no such owner.
pub(crate) fn attributes_of(entry: &Entry) -> Result<Attributes> {
    // 4294967295 is no valid owner: for chown(2) it means "leave it".
    let id = |value: i128, what: &str| {
        let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| LayerError::entry(&entry.name, format!("its {what} {value} is out of range")))
    };
    let (uid, gid) = (id(entry.uid, "uid")?, id(entry.gid, "gid")?);
    Ok(Attributes { mode: entry.mode, uid, gid, mtime: entry.mtime, xattrs: entry.xattrs.clone() })
}

/// The device numbers of an entry that is a device.
///
/// # Errors
/// When they have more bits than Linux' `dev_t`; mknod(2) would truncate them.
pub(crate) fn device_of(name: &[u8], major: i128, minor: i128) -> Result<(u32, u32)> {
    let number = |part: i128, bits: u32| {
        let part = u32::try_from(part).ok().filter(|part| part >> bits == 0);
        part.ok_or_else(|| LayerError::entry(name, "its device number is out of range"))
    };
    Ok((number(major, 12)?, number(minor, 20)?))
}
