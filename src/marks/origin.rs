//! The origin mark: a file handle of the lower file that an upper one was copied up from, in the format of the
//! kernel's `struct ovl_fb` (`fs/overlayfs/overlayfs.h`): version, magic, length, flags, handle type, UUID of
//! the file system, handle.

/// Magic number of an encoded handle.
const MAGIC: u8 = 0xfb;
/// The only version.
const VERSION: u8 = 0;
/// Bytes before the handle proper.
const HEADER: usize = 21;
/// The handle's words are big-endian.
const FLAG_BIG_ENDIAN: u8 = 1 << 0;
/// The handle's bytes do not depend on endianness.
const FLAG_ANY_ENDIAN: u8 = 1 << 1;
/// The handle is of an upper file, not a lower one.
const FLAG_PATH_UPPER: u8 = 1 << 2;
/// Flags that this reader understands.
const FLAGS_KNOWN: u8 = FLAG_BIG_ENDIAN | FLAG_ANY_ENDIAN | FLAG_PATH_UPPER;
/// Flag of handles made on this machine.
const FLAG_CPU_ENDIAN: u8 = if cfg!(target_endian = "big") { FLAG_BIG_ENDIAN } else { 0 };

/// A decoded origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// UUID of the file's file system; all zero if it has none.
    pub uuid: [u8; 16],
    /// Handle type, as `name_to_handle_at(2)` gives it; always below 255.
    pub handle_type: u8,
    /// Handle bytes, as `name_to_handle_at(2)` gives them.
    pub handle: Vec<u8>,
    /// The handle names an upper file (index entries of directories).
    pub upper: bool,
}

/// The content of the attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A handle.
    Handle(Origin),
    /// Empty: the kernel's form for "copied up, but the lower file had no handle".
    Unknown,
    /// Made by another architecture or a newer version; ignored.
    Foreign,
    /// Not an origin; ignored.
    Damaged,
}

impl Origin {
    /// The attribute's value, or `None` if the handle is too long for the format.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let len = u8::try_from(HEADER + self.handle.len()).ok()?;
        let flags = FLAG_CPU_ENDIAN | if self.upper { FLAG_PATH_UPPER } else { 0 };
        let mut bytes = vec![VERSION, MAGIC, len, flags, self.handle_type];
        bytes.extend_from_slice(&self.uuid);
        bytes.extend_from_slice(&self.handle);
        Some(bytes)
    }

    /// The inode number in the handle, for handle types with a public layout (`include/linux/exportfs.h`):
    /// 32-bit inode and generation (ext4, f2fs, xfs with inode32, squashfs) and 64-bit inode and generation
    /// (xfs). `None` for other types.
    pub fn inode(&self) -> Option<u64> {
        const FILEID_INO32_GEN: u8 = 0x01;
        const FILEID_INO64_GEN: u8 = 0x81;
        match self.handle_type {
            FILEID_INO32_GEN => Some(u64::from(u32::from_ne_bytes(self.handle.get(..4)?.try_into().ok()?))),
            FILEID_INO64_GEN => Some(u64::from_ne_bytes(self.handle.get(..8)?.try_into().ok()?)),
            _ => None,
        }
    }
}

/// Reads an origin attribute (kernel: `ovl_check_fb_len`, `ovl_get_fh`).
pub fn decode(value: &[u8]) -> Decoded {
    let [version, magic, len, flags, handle_type, rest @ ..] = value else {
        return if value.is_empty() { Decoded::Unknown } else { Decoded::Damaged };
    };
    if *magic != MAGIC || usize::from(*len) != value.len() || value.len() < HEADER {
        return Decoded::Damaged;
    }
    if *version != VERSION {
        return Decoded::Foreign;
    }
    if flags & !FLAGS_KNOWN != 0 || (flags & FLAG_ANY_ENDIAN == 0 && flags & FLAG_BIG_ENDIAN != FLAG_CPU_ENDIAN) {
        return Decoded::Foreign;
    }
    let (uuid, handle) = rest.split_at(HEADER - 5);
    let Ok(uuid) = uuid.try_into() else { return Decoded::Damaged };
    Decoded::Handle(Origin {
        uuid,
        handle_type: *handle_type,
        handle: handle.to_vec(),
        upper: flags & FLAG_PATH_UPPER != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by kernel 6.18 for inode 64 on ext4.
    const FROM_KERNEL: [u8; 29] = [
        0x00, 0xfb, 0x1d, 0x00, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x40, 0, 0, 0, 0xaa, 0xbb,
        0xcc, 0xdd,
    ];

    #[test]
    fn kernel_handle_round_trips() {
        let Decoded::Handle(origin) = decode(&FROM_KERNEL) else { panic!("a handle") };
        assert_eq!(origin.inode(), Some(64));
        assert_eq!(origin.uuid[0], 1);
        assert_eq!(origin.encode().as_deref(), Some(&FROM_KERNEL[..]));
    }

    #[test]
    fn damaged_values_are_ignored() {
        assert_eq!(decode(b""), Decoded::Unknown);
        for len in 1..FROM_KERNEL.len() {
            assert_eq!(decode(&FROM_KERNEL[..len]), Decoded::Damaged, "cut at {len}");
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = FROM_KERNEL;
            bytes[at] = value;
            decode(&bytes)
        };
        for (at, value) in [(1, 0), (2, 30)] {
            assert_eq!(changed(at, value), Decoded::Damaged, "byte {at} = {value}");
        }
        for (at, value) in [(0, 1), (3, 0x80), (3, 1)] {
            assert_eq!(changed(at, value), Decoded::Foreign, "byte {at} = {value}");
        }
    }
}
