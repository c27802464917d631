use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use stratafs::snapshotter::{Kind, SnapshotError, Usage};

use super::*;

/// A small file system, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let dir = temporary();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).status().unwrap();
        assert!(done.success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_new_root_is_like_its_parent_s() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    let base = layer(&snapshotter, "base", "");
    chown(&base, Some(5), Some(6)).unwrap();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o1751)).unwrap();
    let set = |name: &str| rustix::fs::setxattr(&base, name, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    ["user.kept", "trusted.overlay.origin", "user.overlay.opaque"].into_iter().for_each(set);
    let upper = upper_of(&snapshotter.prepare(Kind::Active, "k", "base", no_labels()).unwrap());
    let (is, was) = (upper.metadata().unwrap(), base.metadata().unwrap());
    assert_eq!((is.mode(), is.uid(), is.gid(), is.mtime()), (was.mode(), 5, 6, was.mtime()));
    let mut names = vec![0; 256];
    let length = rustix::fs::listxattr(&upper, &mut names).unwrap();
    assert_eq!(&names[..length], b"user.kept\0");
}

#[test]
fn usage_is_what_the_disk_holds() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    let upper = upper_of(&snapshotter.prepare(Kind::Active, "k", "", no_labels()).unwrap());
    std::fs::create_dir_all(upper.join("a/b")).unwrap();
    std::fs::write(upper.join("a/b/big"), vec![1; 300_000]).unwrap();
    std::fs::hard_link(upper.join("a/b/big"), upper.join("again")).unwrap();
    std::fs::File::create(upper.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    std::os::unix::fs::symlink("/", upper.join("link")).unwrap();
    let bytes: u64 = ["", "a", "a/b", "a/b/big", "sparse", "link"]
        .iter()
        .map(|path| upper.join(path).symlink_metadata().unwrap().blocks() * 512)
        .sum();
    let expected = Usage { size: bytes, inodes: 6 };
    assert!((300_000..600_000).contains(&bytes), "{bytes}");
    assert_eq!(snapshotter.usage("k").unwrap(), expected);
    snapshotter.commit("layer", "k", "", no_labels()).unwrap();
    // For a layer it is stored, and not counted again.
    std::fs::write(upper.join("more"), "x").unwrap();
    assert_eq!(snapshotter.usage("layer").unwrap(), expected);
    snapshotter.prepare(Kind::View, "v", "layer", no_labels()).unwrap();
    assert_eq!(snapshotter.usage("v").unwrap(), Usage::default());
}

#[test]
fn a_start_puts_right_what_a_crash_has_left() {
    let scratch = Scratch::new();
    let snapshotter = scratch.open();
    let base = layer(&snapshotter, "base", "");
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o711)).unwrap();
    let upper = upper_of(&snapshotter.prepare(Kind::Active, "k", "base", no_labels()).unwrap());
    drop(snapshotter);
    // Made but not recorded; a removal that was not finished; a record whose directories did not reach the disk.
    let root = scratch.root();
    std::fs::create_dir_all(root.join("snapshots/40/fs/full")).unwrap();
    std::fs::create_dir_all(root.join("removed/41/fs/full")).unwrap();
    std::fs::remove_dir_all(upper.parent().unwrap()).unwrap();
    std::fs::remove_file(base.with_file_name("fs.inventory")).unwrap();

    let snapshotter = scratch.open();
    assert_eq!(upper.metadata().unwrap().mode() & 0o7777, 0o711);
    assert_eq!(upper_of(&snapshotter.mounts("k").unwrap()), upper);
    assert!(base.with_file_name("fs.inventory").exists());
    snapshotter.cleanup().unwrap();
    assert_agreed(&snapshotter, &root, "after a crash");
    // Its number is not used again.
    snapshotter.prepare(Kind::Active, "next", "base", no_labels()).unwrap();
    assert_eq!(snapshotter.stat("next").unwrap().id, 42);
}

#[test]
fn a_full_disk_loses_nothing_and_ends_nothing() {
    let small = Small::new("size=3m");
    let root = small.0.path().join("root");
    let snapshotter = Snapshotter::open(&Options { root: root.clone(), sync: true }).unwrap();
    layer(&snapshotter, "base", "");
    let fill = small.0.path().join("fill");
    let mut kept = vec![];
    // Until the growing database finds no space.
    let error = (0..2000).find_map(|number| {
        if number == 3 {
            let free = rustix::fs::statvfs(&root).unwrap();
            std::fs::write(&fill, vec![1; usize::try_from(free.f_bavail * free.f_frsize).unwrap()]).unwrap();
        }
        let key = format!("k{number}");
        let long = labels(&[("long", &"x".repeat(3000))]);
        match snapshotter.prepare(Kind::Active, &key, "base", long) {
            Ok(_) => kept.push(key),
            Err(error) => return Some(error),
        }
        None
    });
    let error = error.expect("the disk is full");
    assert!(error.to_string().contains("No space left on device"), "{error}");
    std::fs::remove_file(&fill).unwrap();
    // Without a restart.
    snapshotter.prepare(Kind::Active, "after", "base", no_labels()).unwrap();
    kept.push("after".to_owned());
    for key in &kept {
        assert!(snapshotter.stat(key).is_ok(), "{key}");
        assert!(upper_of(&snapshotter.mounts(key).unwrap()).is_dir(), "{key}");
    }
    snapshotter.cleanup().unwrap();
    assert_agreed(&snapshotter, &root, "after a full disk");
}

#[test]
fn directories_that_cannot_serve_are_told_in_one_line() {
    let scratch = Scratch::new();
    let refusal = |root: &Path| match Snapshotter::open(&Options { root: root.to_owned(), sync: false }) {
        Err(SnapshotError::Invalid { reason, .. }) => reason,
        Err(error) => error.to_string(),
        Ok(_) => panic!("{} was taken", root.display()),
    };
    let at = |name: &str| scratch.dir.path().join(name);
    std::fs::create_dir(at("foreign")).unwrap();
    std::fs::write(at("foreign/letter"), "dear").unwrap();
    assert_eq!(refusal(&at("foreign")), "is not a directory of snapshots: it holds letter");
    assert_eq!(std::fs::read(at("foreign/letter")).unwrap(), b"dear");
    assert!(refusal(&at("a,b")).starts_with("the path may hold no colon, comma"));
    std::fs::write(at("file"), "").unwrap();
    assert_eq!(refusal(&at("file")), format!("{}: File exists", at("file").display()));
    let snapshotter = scratch.open();
    assert_eq!(refusal(&scratch.root()), "another snapshotter serves this directory");
    drop(snapshotter);
    std::fs::write(scratch.root().join("metadata.redb"), "rubbish").unwrap();
    assert!(refusal(&scratch.root()).contains("metadata.redb"), "{}", refusal(&scratch.root()));

    // A file system of its own.
    std::fs::create_dir_all(at("own/lost+found")).unwrap();
    drop(Snapshotter::open(&Options { root: at("own"), sync: false }).unwrap());

    // A file system that has neither devices nor attributes to mark removals by.
    let small = Small::new("size=1m");
    let done = Command::new("mount").args(["-o", "remount,ro"]).arg(small.0.path()).status().unwrap();
    assert!(done.success());
    assert!(refusal(small.0.path()).contains("Read-only file system"), "{}", refusal(small.0.path()));
}
