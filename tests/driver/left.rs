//! Leftovers after the kernel has forgotten a file, and operations that still work on a removed file.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use stratafs::driver::types::NodeId;

use crate::fixture::{ROOT, Union, both};

/// Descriptors of this process for files below `directory` without a name.
fn held_below(directory: &Path) -> usize {
    let is_held = |fd: std::io::Result<fs::DirEntry>| {
        let target = fs::read_link(fd.unwrap().path()).unwrap_or_default();
        target.starts_with(directory) && target.to_string_lossy().ends_with(" (deleted)")
    };
    fs::read_dir("/proc/self/fd").unwrap().map(is_held).filter(|&held| held).count()
}

/// With `index=on`, a lower hard link whose names were all removed leaves neither node nor descriptor, so its blocks are freed.
#[test]
fn an_indexed_file_without_names_is_let_go() {
    let fill = |lower: &Path| {
        fs::write(lower.join("a"), "content").unwrap();
        fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
    };
    let union = Union::new(fill, |config| config.index = true);
    let (a, b) = (union.at("a"), union.at("b"));
    assert_eq!(a, b);
    assert_eq!(union.unlink(NodeId::ROOT, "a"), Ok(()));
    assert_eq!(union.unlink(NodeId::ROOT, "b"), Ok(()));
    assert_eq!(union.chmod(a, 0o600), Ok(0o600), "the kernel still knows it");
    union.overlay.forget(a, 2);
    assert_eq!(union.overlay.population(), (1, 0));
    assert_eq!(held_below(union.path()), 0);
}

/// An open lower directory that was removed is copied up without a name, as an open file is.
#[test]
fn a_removed_lower_directory_takes_new_attributes() {
    let union = Union::new(|lower| fs::create_dir(lower.join("dir")).unwrap(), |_| {});
    let dir = union.at("dir");
    assert_eq!(union.overlay.rmdir(NodeId::ROOT, "dir".as_ref()), Ok(()));
    assert_eq!(union.chmod(dir, 0o700), Ok(0o700));
    assert_eq!(union.overlay.getattr(dir, None).unwrap().0.mode & 0o7777, 0o700);
    assert_eq!(union.overlay.setxattr(&ROOT, dir, "user.key".as_ref(), b"value", 0, false), Ok(()));
    assert_eq!(union.overlay.getxattr(dir, "user.key".as_ref()), Ok(b"value".to_vec()));
    assert_eq!(union.create(dir, "file"), Err(Errno::NOENT));
    assert_eq!(union.list(dir), Ok(vec![]));
    union.overlay.forget(dir, 1);
    assert_eq!(union.overlay.population(), (1, 0));
    assert_eq!(held_below(union.path()), 0);
    let staged = fs::read_dir(union.path().join("work/work")).unwrap().map(|entry| entry.unwrap().file_name());
    let staged: Vec<_> = staged.filter(|name| name.as_encoded_bytes().starts_with(b"#")).collect();
    assert_eq!(staged.len(), 1, "the shared whiteout alone: {staged:?}");
}

/// A verb that fails after it has counted a lookup takes the count back. Here, another process removes each new link from the
/// upper before its attributes are read.
#[test]
fn a_link_that_fails_leaves_no_lookup() {
    let union = Union::new(|_| {}, |_| {});
    let file = union.create(NodeId::ROOT, "file").unwrap();
    let mut failed = 0;
    for round in 0..20_000 {
        let name = format!("link{round}");
        let over = AtomicBool::new(false);
        let link = || {
            let linked = union.overlay.link(file, NodeId::ROOT, name.as_ref());
            over.store(true, Ordering::Release);
            linked
        };
        let remove = || {
            while !over.load(Ordering::Acquire) && fs::remove_file(union.path().join("upper").join(&name)).is_err() {
                std::hint::spin_loop();
            }
        };
        match both(link, remove).0 {
            Ok(entry) => union.overlay.forget(entry.node, 1),
            Err(errno) => {
                assert_eq!(errno, Errno::STALE);
                failed += 1;
                if failed == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(failed, 3, "the stranger was never fast enough");
    union.overlay.forget(file, 1);
    assert_eq!(union.overlay.population(), (1, 0));
}
