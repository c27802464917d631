//! The disk space of a directory.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::Dir;
use rustix::io::Errno;

use super::directories::open_dir;
use super::error::At;
use super::{Result, Usage};
use crate::confined::{self, FileType, Stat};

/// Adds up the directory `root` and everything below it. A file with several names counts once. Files that are
/// removed in the meantime are not counted.
pub(super) fn of_tree(root: &Path) -> Result<Usage> {
    let top = open_dir(root)?;
    let own = Stat::of(top.as_fd(), c"").at(root)?;
    let mut total = Usage { size: own.blocks * 512, inodes: 1 };
    let mut linked = HashSet::new();
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let dir = match confined::open_dir(top.as_fd(), &path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            opened => opened.at(root)?,
        };
        for entry in Dir::read_from(&dir).at(root)? {
            let entry = entry.at(root)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match Stat::of(dir.as_fd(), name) {
                Err(Errno::NOENT) => continue,
                stat => stat.at(root)?,
            };
            let is_dir = stat.file_type() == FileType::Directory;
            if stat.nlink > 1 && !is_dir && !linked.insert((stat.device, stat.ino)) {
                continue;
            }
            total.inodes += 1;
            total.size += stat.blocks * 512;
            if is_dir {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.to_bytes());
                waiting.push(below);
            }
        }
    }
    Ok(total)
}
