//! Ranges of ids that are shown with other numbers.

/// What an id without a mapping is shown as (the default of `/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65_534;

/// A range of ids that is shown with other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id as the mount shows it.
    pub shown: u32,
    /// First id on disk.
    pub on_disk: u32,
    /// Number of ids.
    pub count: u32,
}

/// The number that the id `id` on disk is shown as. Without a mapping, ids are not changed.
pub(crate) fn shown(mapping: &[IdRange], id: u32) -> u32 {
    if mapping.is_empty() {
        return id;
    }
    let find = |range: &IdRange| Some(range.shown + id.checked_sub(range.on_disk).filter(|&d| d < range.count)?);
    mapping.iter().find_map(find).unwrap_or(OVERFLOW)
}

/// The id on disk that is shown as `id`.
pub(crate) fn on_disk(mapping: &[IdRange], id: u32) -> u32 {
    if mapping.is_empty() {
        return id;
    }
    let find = |range: &IdRange| Some(range.on_disk + id.checked_sub(range.shown).filter(|&d| d < range.count)?);
    mapping.iter().find_map(find).unwrap_or(OVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_map_both_ways() {
        let map =
            [IdRange { shown: 0, on_disk: 1000, count: 1 }, IdRange { shown: 1, on_disk: 100_000, count: 65_536 }];
        for (seen, real) in [(0, 1000), (1, 100_000), (65_536, 165_535)] {
            assert_eq!((shown(&map, real), on_disk(&map, seen)), (seen, real));
        }
        assert_eq!((shown(&map, 0), on_disk(&map, 70_000)), (OVERFLOW, OVERFLOW));
        assert_eq!((shown(&[], 7), on_disk(&[], 7)), (7, 7));
    }
}
