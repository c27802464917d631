//! A file is known by its device and inode number: subvolumes of one file system repeat numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::MountFlags;

use super::layers::{loop_mount, upper_on};
use crate::common::stack::Layers;
use crate::common::{Stack, skip, sys};
use crate::{on_both, on_stratafs};

/// Makes a subvolume; false without the tool.
fn subvolume(path: &Path) -> bool {
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path).output();
    made.is_ok_and(|output| output.status.success())
}

/// Fills `directory` with files until one has the inode number `ino`, which stays under the name `name`.
fn file_with_ino(directory: &Path, name: &str, ino: u64, content: &[u8]) {
    for number in 0..5000 {
        let path = directory.join(format!("fill{number}"));
        sys::create(&path, content).unwrap();
        if sys::ino(&path) == ino {
            return sys::rename(&path, &directory.join(name)).unwrap();
        }
    }
    panic!("{}: no file of number {ino}", directory.display());
}

/// A stack whose upper, on btrfs, has a nested subvolume `sub`: `a` with the link `a2` and `sub/b` with the link `sub/b2`
/// have one inode number. None without btrfs.
fn nested(test: &str) -> Option<Layers> {
    let mut layers = Stack::new().lower("file low \"l\"\ndir sub\nfile sub/below \"b\"").build();
    let place = layers.directory.path().join("disk");
    if !loop_mount(&place, "btrfs", None) {
        skip(test, "no btrfs here");
        return None;
    }
    upper_on(&mut layers, &place);
    let upper = layers.upper.clone().unwrap();
    for number in 0..20 {
        sys::create(&upper.join(format!("n{number}")), b"n").unwrap();
    }
    sys::create(&upper.join("a"), b"of a").unwrap();
    sys::link(&upper.join("a"), &upper.join("a2")).unwrap();
    let sub = upper.join("sub");
    if !subvolume(&sub) {
        skip(test, "no btrfs program here");
        return None;
    }
    file_with_ino(&sub, "b", sys::ino(&upper.join("a")), b"of b");
    sys::link(&sub.join("b"), &sub.join("b2")).unwrap();
    sys::mkdir(&sub.join("dir"), 0o755).unwrap();
    assert!(subvolume(&sub.join("deeper")));
    sys::create(&sub.join("deeper/file"), b"f").unwrap();
    Some(layers)
}

/// Every path below `root`, with its number.
fn numbers(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in sys::readdir(&directory).unwrap() {
            let path = directory.join(&entry.name);
            let stat = sys::lstat(&path).unwrap();
            assert_eq!(entry.ino, stat.st_ino, "d_ino of {}", path.display());
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                waiting.push(path.clone());
            }
            found.insert(path, stat.st_ino);
        }
    }
    found
}

on_both! {
    /// A write through one name lands in that file, not in the other of the same number.
    fn hard_links_in_two_subvolumes(driver) {
        let Some(layers) = nested("identity::hard_links_in_two_subvolumes") else { return };
        let mount = layers.mount(driver);
        let read = |names: [&str; 4]| names.map(|name| sys::text(&mount.at(name)));
        assert_eq!(read(["a", "a2", "sub/b", "sub/b2"]), ["of a", "of a", "of b", "of b"]);
        sys::append(&mount.at("sub/b2"), b"!").unwrap();
        sys::append(&mount.at("a2"), b"?").unwrap();
        assert_eq!(read(["a", "a2", "sub/b", "sub/b2"]), ["of a?", "of a?", "of b!", "of b!"]);
        sys::unlink(&mount.at("a")).unwrap();
        assert_eq!((sys::text(&mount.at("a2")), sys::text(&mount.at("sub/b"))), ("of a?".into(), "of b!".into()));
    }
}

on_stratafs! {
    /// Kernel overlayfs numbers by superblock: there, both files have one number.
    fn numbers_in_nested_subvolumes(driver) {
        let Some(layers) = nested("identity::numbers_in_nested_subvolumes") else { return };
        let mount = layers.mount(driver);
        let listed = sys::readdir(mount.root()).unwrap();
        assert!(listed.iter().all(|entry| entry.ino == sys::ino(&mount.root().join(&entry.name))));
        let found = numbers(mount.root());
        let distinct: BTreeSet<u64> = found.values().copied().collect();
        assert_eq!(distinct.len() + 2, found.len(), "two files have a second name: {found:#?}");
        assert_eq!(numbers(mount.root()), found, "read again");
    }

    /// Files of a mount inside the upper have their own content, if they are visible.
    fn hard_links_in_a_mount_inside_the_upper(driver) {
        let layers = Stack::new().lower("").upper("file pad\nfile a \"of a\"\nhard a2 a\ndir mnt").build();
        let inside = layers.upper.clone().unwrap().join("mnt");
        rustix::mount::mount("none", &inside, "tmpfs", MountFlags::empty(), Some(c"mode=755,inode64")).unwrap();
        sys::create(&inside.join("b"), b"of b").unwrap();
        sys::link(&inside.join("b"), &inside.join("b2")).unwrap();
        let mount = layers.mount(driver);
        for name in sys::names(&mount.at("mnt")) {
            assert_eq!(sys::text(&mount.at("mnt").join(name)), "of b");
        }
        assert_eq!(sys::text(&mount.at("a2")), "of a");
        drop(mount);
    }
}
