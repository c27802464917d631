//! Compares an inventory with its layer.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;

use super::read::record_of;
use super::{DirNumber, Inventory, Unusable};
use crate::confined::Dir;

/// Compares every name in the inventory of the layer directory `dir` with the layer.
///
/// # Errors
/// Why the inventory cannot be used, or only for a part.
pub fn check(dir: &Path) -> Result<(), Unusable> {
    let root = Dir::open_root(dir).map_err(Unusable::Unreadable)?;
    let root = root.as_fd();
    let inventory = Inventory::open(root, dir)?;
    let mut waiting = VecDeque::from([(DirNumber::ROOT, CString::default())]);
    while let Some((number, path)) = waiting.pop_front() {
        inventory.judge(number, root, &path)?;
        let directory = inventory.believed(number).ok_or(Unusable::Damaged("a directory"))?;
        for entry in directory.iter().filter(|entry| !entry.record.must_ask()) {
            let path = super::write::below(&path, entry.name);
            match entry.record.directory() {
                Some(number) => waiting.push_back((number, path)),
                None => {
                    let (found, _) = record_of(root, &path).map_err(|_| Unusable::Stale)?;
                    if !entry.record.is_unchanged(&found) {
                        return Err(Unusable::Stale);
                    }
                }
            }
        }
    }
    if inventory.is_broken() { Err(Unusable::Damaged("it cannot be read any more")) } else { Ok(()) }
}
