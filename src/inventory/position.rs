//! Positions of names in listings. `readdir` returns them so that a listing can be continued, and names are found by them.
//!
//! A position is a hash of the name, so it does not change when other names are added or removed, nor when a listing is
//! rebuilt. Positions have 31 bits, because `telldir(3)` and `readdir(3)` of 32-bit programs have no more. So two names
//! in a directory can have the same hash. Then one of them is *moved* to its next candidate, until a free one is found.
//! Each candidate is a different hash, so names that were chosen to collide in one differ in the next.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use siphasher::sip::SipHasher13;

/// First position given to a name; those below are for `.` and `..`.
pub const FIRST_POSITION: u64 = 16;

/// Last position given to a name: `off_t` of 32-bit programs is signed.
pub const LAST_POSITION: u64 = i32::MAX as u64;

/// Key of the hash, "position" in ASCII. Inventories contain positions, so it must never change.
const KEY: u64 = u64::from_be_bytes(*b"position");

/// The position that `name` gets if all candidates before number `attempt` are taken.
pub fn candidate(name: &[u8], attempt: u64) -> u64 {
    let hash = SipHasher13::new_with_keys(KEY, attempt).hash(name);
    FIRST_POSITION + hash % (LAST_POSITION - FIRST_POSITION + 1)
}

/// The names of a directory that are not at their first candidate. Usually there are none, and it takes no memory.
///
/// While a directory is in use, it passes them from one listing to the next. So a name keeps its position even after
/// the removal of the name that displaced it.
///
/// Known limit: a name that is created while the directory has no listing is not compared with names at their first
/// candidate. Suppose it shares the candidate of another name (one in 2^31 for each pair) and sorts before it. Then
/// [`allot`] gives it that position when the listing is rebuilt, and moves the other one. A reader that holds the old
/// position then arrives at the new name by `seekdir`. Every name can still be looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved(Option<Arc<BTreeMap<Box<[u8]>, u64>>>);

impl Moved {
    /// Position of `name`: its first candidate, unless the name was moved.
    pub fn position(&self, name: &[u8]) -> u64 {
        let moved = self.0.as_ref().and_then(|moved| moved.get(name));
        moved.copied().unwrap_or_else(|| candidate(name, 0))
    }

    /// True if no name was moved.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// True if `name` was moved.
    fn has(&self, name: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|moved| moved.contains_key(name))
    }

    /// Notes that `name` is at `position`, which is not its first candidate.
    pub fn insert(&mut self, name: &[u8], position: u64) {
        Arc::make_mut(self.0.get_or_insert_default()).insert(name.into(), position);
    }

    /// Notes that `name` was removed.
    pub fn remove(&mut self, name: &[u8]) {
        if !self.has(name) {
            return;
        }
        if let Some(moved) = &mut self.0 {
            let names = Arc::make_mut(moved);
            names.remove(name);
            if names.is_empty() {
                self.0 = None;
            }
        }
    }
}

/// Finds a free position for `name`, and records it in `moved` if it is not the first candidate.
pub fn choose_position(name: &[u8], moved: &mut Moved, is_taken: impl Fn(u64) -> bool) -> u64 {
    let mut attempt = 0;
    loop {
        let position = candidate(name, attempt);
        if !is_taken(position) {
            if attempt > 0 {
                moved.insert(name, position);
            }
            return position;
        }
        attempt += 1;
    }
}

/// Gives each of `names`, which are all different, its own position. Names in `kept` keep their positions. Of the others
/// that share a candidate, the first in sort order gets it. Returns the positions in the order of `names`, and the names
/// that were moved.
///
/// Without `kept`, the result depends only on the set of names, and a moved name gets the first candidate that is not the
/// first candidate of another name. So a search may stop at a free candidate.
pub fn allot(names: &[&[u8]], kept: &Moved) -> (Vec<u64>, Moved) {
    let mut positions: Vec<u64> = names.iter().map(|name| kept.position(name)).collect();
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_unstable_by_key(|&at| (positions[at], kept.is_empty() || !kept.has(names[at]), names[at]));
    let mut moved = Moved::default();
    let mut losers = Vec::new();
    let mut last = None;
    for &at in &order {
        if last == Some(positions[at]) {
            losers.push(at);
            continue;
        }
        last = Some(positions[at]);
        if kept.has(names[at]) {
            moved.insert(names[at], positions[at]);
        }
    }
    if losers.is_empty() {
        return (positions, moved);
    }
    let mut taken: HashSet<u64> = positions.iter().copied().collect();
    for at in losers {
        positions[at] = choose_position(names[at], &mut moved, |position| taken.contains(&position));
        taken.insert(positions[at]);
    }
    (positions, moved)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two names with the same first candidate, in sort order.
    pub(crate) fn colliding() -> (String, String) {
        let mut seen = std::collections::HashMap::new();
        for number in 0.. {
            let name = format!("name-{number}");
            if let Some(other) = seen.insert(candidate(name.as_bytes(), 0), name.clone()) {
                return if other < name { (other, name) } else { (name, other) };
            }
        }
        unreachable!()
    }

    #[test]
    fn positions_fit_into_31_bits_and_differ() {
        let names: Vec<String> = (0..200_000).map(|number| format!("file-{number}")).collect();
        let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        let (positions, moved) = allot(&names, &Moved::default());
        assert!(positions.iter().all(|position| (FIRST_POSITION..=LAST_POSITION).contains(position)));
        assert_eq!(positions.iter().collect::<HashSet<_>>().len(), names.len());
        for (name, position) in names.iter().zip(&positions) {
            assert_eq!(moved.position(name), *position);
        }
    }

    #[test]
    fn a_moved_name_stays_where_it_is() {
        let (less, more) = colliding();
        let (less, more) = (less.as_bytes(), more.as_bytes());
        let (positions, moved) = allot(&[more, less], &Moved::default());
        assert_eq!(positions, [candidate(more, 1), candidate(less, 0)]);
        // The other name is removed and added again.
        let (alone, moved) = allot(&[more], &moved);
        assert_eq!(alone, [candidate(more, 1)]);
        assert_eq!(allot(&[less, more], &moved).0, [candidate(less, 0), candidate(more, 1)]);
        // A reader that lost its position starts again.
        assert_eq!(allot(&[more], &Moved::default()).0, [candidate(more, 0)]);
    }

    #[test]
    fn a_kept_position_goes_before_a_first_candidate() {
        let mut kept = Moved::default();
        kept.insert(b"old", candidate(b"new", 0));
        let (positions, moved) = allot(&[b"new", b"old"], &kept);
        assert_eq!(positions, [candidate(b"new", 1), candidate(b"new", 0)]);
        assert_eq!((moved.position(b"new"), moved.position(b"old")), (positions[0], positions[1]));
    }

    #[test]
    fn what_is_removed_is_not_kept() {
        let mut moved = Moved::default();
        moved.insert(b"a", 77);
        assert_eq!(moved.position(b"a"), 77);
        moved.remove(b"b");
        moved.remove(b"a");
        assert!(moved.is_empty());
        assert_eq!(moved.position(b"a"), candidate(b"a", 0));
    }
}
