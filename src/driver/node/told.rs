//! Which clients were told the attributes of a directory (see [`crate::driver::client`]).

use std::sync::atomic::{AtomicU32, Ordering};

/// No client was told. As a client's number: an unknown client.
const NONE: u32 = 0;
/// Several clients were told, or an unknown one.
const SEVERAL: u32 = u32::MAX;

/// The clients that were told the attributes of a directory since its last change.
#[derive(Debug, Default)]
pub struct Told(AtomicU32);

impl Told {
    /// Notes that `client` is told (0: an unknown client). Call this before the attributes are read.
    pub fn note(&self, client: u32) {
        let with = |told: u32| match told {
            NONE if client == NONE => Some(SEVERAL),
            NONE => Some(client),
            told if told == client || told == SEVERAL => None,
            _ => Some(SEVERAL),
        };
        // `fetch_update` fails if there is nothing to change.
        let _unchanged = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, with);
    }

    /// Forgets all clients. True if one of them is not `client`.
    pub fn take_others(&self, client: u32) -> bool {
        let told = self.0.swap(NONE, Ordering::AcqRel);
        told != NONE && told != client
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn only_other_clients_count() {
        let told = Told::default();
        assert!(!told.take_others(7), "nobody");
        told.note(7);
        told.note(7);
        assert!(!told.take_others(7), "the client itself");
        told.note(7);
        assert!(told.take_others(8), "another one");
        assert!(!told.take_others(8), "only once");
        told.note(8);
        told.note(7);
        assert!(told.take_others(7), "both");
        told.note(0);
        assert!(told.take_others(0), "an unknown client may be another one");
    }
}
