//! Inode numbers of the mount. Layers may be on several file systems, whose numbers can collide; the mount
//! shows one file system.

use parking_lot::RwLock;

use crate::config::Xino;
use crate::union::layer::{Device, FileId, FsId};

/// Largest size, in bits, of an inode number that stays small in the mount, with up to 16 and up to 256 file systems:
/// with the file system's number above it, it fits into the 32 bits that a 32-bit `stat(2)` can return.
const SMALL: [(usize, u32); 2] = [(16, 28), (256, 24)];

/// Largest size, in bits, of an inode number that gets its file system's number above it.
const LARGE: u32 = 48;

/// The file systems of a stack, and how inode numbers on them are shown (kernel: `ovl_map_dev_ino`).
#[derive(Debug)]
pub(super) struct FileSystems {
    /// The file systems of the layers' roots; the index is the [`FsId`].
    roots: Vec<Device>,
    /// File systems found later: subvolumes in a layer. Their numbers follow those of the roots.
    met: RwLock<Vec<Device>>,
    xino: Xino,
}

impl FileSystems {
    pub(super) fn new(xino: Xino) -> Self {
        Self { roots: Vec::new(), met: RwLock::default(), xino }
    }

    /// Number of a layer's file system. Called for all layers before any other method.
    pub(super) fn add_root(&mut self, device: Device) -> FsId {
        let at = self.roots.iter().position(|&known| known == device).unwrap_or_else(|| {
            self.roots.push(device);
            self.roots.len() - 1
        });
        FsId::try_from(at).unwrap_or(FsId::MAX)
    }

    /// The number of any file system.
    fn number(&self, device: Device) -> usize {
        if let Some(at) = self.roots.iter().position(|&known| known == device) {
            return at;
        }
        let position = |met: &[Device]| met.iter().position(|&known| known == device);
        let known = position(&self.met.read());
        let at = known.unwrap_or_else(|| {
            let mut met = self.met.write();
            position(&met).unwrap_or_else(|| {
                met.push(device);
                met.len() - 1
            })
        });
        self.roots.len() + at
    }

    /// The number that the mount shows for the file `id`.
    ///
    /// `xino=off`, and files on the file system of all layers: the file's own number. `xino=on`: the number of the file
    /// system above bit 48. `xino=auto`: the same, unless the number is small enough for a sum that fits into 32 bits.
    pub(super) fn shown(&self, id: FileId) -> u64 {
        let FileId { device, ino } = id;
        if self.xino == Xino::Off || (self.roots.len() <= 1 && self.roots.first() == Some(&device)) {
            return ino;
        }
        let number = self.number(device) as u64;
        // With a single root every number is shown unchanged, so the small ones are taken.
        let packs = self.xino == Xino::Auto && self.roots.len() > 1;
        let small = SMALL.iter().find(|(most, _)| packs && self.roots.len() <= *most);
        if let Some(&(_, bits)) = small
            && ino >> bits == 0
            && number << bits <= u64::from(u32::MAX)
        {
            return (number << bits) | ino;
        }
        // A tag of 0 would look like a small number.
        let tag = if self.xino == Xino::Auto { number + 1 } else { number };
        if ino >> LARGE == 0 {
            return (tag << LARGE) | ino;
        }
        // No bits are free: the numbers are spread, so that equal numbers on two file systems differ.
        ino ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_systems(xino: Xino, roots: u32) -> FileSystems {
        let mut all = FileSystems::new(xino);
        for root in 0..roots {
            assert_eq!(u32::from(all.add_root((0, root))), root);
        }
        all
    }

    fn shown(all: &FileSystems, minor: u32, ino: u64) -> u64 {
        all.shown(FileId { device: (0, minor), ino })
    }

    #[test]
    fn one_file_system_shows_its_own_numbers() {
        for xino in [Xino::Auto, Xino::On, Xino::Off] {
            let all = file_systems(xino, 1);
            for ino in [1, u64::from(u32::MAX), 1 << 40, u64::MAX] {
                assert_eq!(shown(&all, 0, ino), ino);
            }
        }
    }

    #[test]
    fn equal_numbers_on_different_file_systems_differ() {
        for xino in [Xino::Auto, Xino::On] {
            for roots in [1, 2, 16, 17, 256, 257] {
                let all = file_systems(xino, roots);
                let mut seen = std::collections::BTreeMap::new();
                // Two more than the roots: subvolumes.
                for minor in 0..roots + 2 {
                    for ino in [1, 2, (1 << 24) - 1, 1 << 24, (1 << 28) - 1, 1 << 28, (1 << 32) - 1, 1 << 32, 1 << 47] {
                        let before = seen.insert(shown(&all, minor, ino), (minor, ino));
                        assert_eq!(before, None, "{xino:?}, {roots} roots: {ino} of {minor}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_numbers_stay_below_32_bits() {
        for roots in [1, 2, 16, 17, 256] {
            let all = file_systems(Xino::Auto, roots);
            for minor in 0..roots {
                assert!(shown(&all, minor, (1 << 24) - 1) <= u64::from(u32::MAX), "{minor} of {roots}");
            }
        }
    }

    #[test]
    fn a_subvolume_met_later_changes_no_number() {
        let all = file_systems(Xino::Auto, 1);
        let before = shown(&all, 0, 300);
        let nested = shown(&all, 7, 300);
        assert_ne!(nested, before);
        assert_eq!((shown(&all, 0, 300), shown(&all, 7, 300)), (before, nested));
    }
}
