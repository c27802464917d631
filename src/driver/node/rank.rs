//! Debug builds check at run time that each thread takes the locks in their order; other builds do nothing here.

/// The locks, in the order in which a thread may take them (list: [`crate::driver::node`]). The lock of a file's account
/// (`size=`) has no rank: its holder calls only `statx(2)` and takes none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    CopyUpOfFile,
    CopyUpOfDirectory,
    Rename,
    Names,
    Links,
    Multiple,
}

pub(super) use checked::Ranked;

#[cfg(all(debug_assertions, not(feature = "shuttle")))]
mod checked {
    use std::cell::RefCell;

    use super::Rank;

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// Records that this thread holds a lock.
    #[derive(Debug)]
    pub(crate) struct Ranked(Rank);

    impl Ranked {
        /// A lock of this rank, before it is taken. Panics if the thread holds one of the same or a later rank.
        pub(crate) fn first(rank: Rank) -> Self {
            Self::checked(rank, |held| held < rank)
        }

        /// The same, where the caller orders several of one rank.
        pub(crate) fn further(rank: Rank) -> Self {
            Self::checked(rank, |held| held <= rank)
        }

        fn checked(rank: Rank, may_hold: impl Fn(Rank) -> bool) -> Self {
            let wrong = HELD.with_borrow(|held| held.iter().copied().find(|&held| !may_hold(held)));
            assert!(wrong.is_none(), "lock order: {rank:?} is taken while {wrong:?} is held");
            HELD.with_borrow_mut(|held| held.push(rank));
            Self(rank)
        }
    }

    impl Drop for Ranked {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|&held| held == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(all(debug_assertions, not(feature = "shuttle"))))]
mod checked {
    use super::Rank;

    #[derive(Debug)]
    pub struct Ranked;

    impl Ranked {
        pub fn first(_rank: Rank) -> Self {
            Self
        }

        pub fn further(_rank: Rank) -> Self {
            Self
        }
    }
}

#[cfg(all(test, debug_assertions, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn is_refused(held: Rank, taken: Rank) -> bool {
        let take = move || {
            let _held = Ranked::first(held);
            drop(Ranked::first(taken));
        };
        std::thread::spawn(take).join().is_err()
    }

    #[test]
    fn a_lock_is_taken_after_earlier_ones_only() {
        use Rank::{CopyUpOfDirectory, CopyUpOfFile, Links, Multiple, Names, Rename};
        let ranks = [CopyUpOfFile, CopyUpOfDirectory, Rename, Names, Links, Multiple];
        for (at, held) in ranks.into_iter().enumerate() {
            for (next, taken) in ranks.into_iter().enumerate() {
                assert_eq!(is_refused(held, taken), next <= at, "{taken:?} after {held:?}");
            }
        }
        let _first = Ranked::first(Names);
        drop(Ranked::further(Names));
        drop(Ranked::first(Links));
    }
}
