//! Names, as kept in the tables.

use std::borrow::Borrow;
use std::ffi::CStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use triomphe::ThinArc;

/// A name. Cheap to clone and one word in size: the length is stored with the bytes, which end with a NUL.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(ThinArc<(), u8>);

impl Deref for Name {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        // The slice was made from a `CStr`, so the conversion succeeds.
        CStr::from_bytes_with_nul(&self.0.slice).unwrap_or_default()
    }
}

impl From<&CStr> for Name {
    fn from(name: &CStr) -> Self {
        Self(ThinArc::from_header_and_slice((), name.to_bytes_with_nul()))
    }
}

/// Ordered by their bytes.
impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Lets tables of names be searched with a `CStr`.
impl Borrow<CStr> for Name {
    fn borrow(&self) -> &CStr {
        self
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn is_found_by_what_it_was_made_of() {
        let names = [c"", c"a", c"file-17", c"\xff\xfe not unicode"];
        let table: HashMap<Name, usize> = names.iter().enumerate().map(|(n, name)| (Name::from(*name), n)).collect();
        for (n, name) in names.into_iter().enumerate() {
            assert_eq!(table.get(name), Some(&n), "{name:?}");
            assert_eq!(&*Name::from(name), name);
        }
        assert_eq!(table.get(c"b"), None);
        assert_eq!(size_of::<Option<Name>>(), size_of::<usize>());
    }
}
