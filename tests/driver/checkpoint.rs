//! Checkpoints of a union with open files.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use stratafs::driver::checkpoint::Kept;
use stratafs::driver::types::{HandleId, Kernel, NodeId};
use stratafs::union::layer::chain::new_id;

use crate::fixture::{ROOT, Union};

/// A simulated kernel that accepts every file for passthrough.
#[derive(Default)]
struct Taking(AtomicU32);

impl Kernel for Taking {
    fn register_backing(&self, _: BorrowedFd<'_>) -> Result<u32, Errno> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn unregister_backing(&self, _: u32) {}

    fn invalidate_attr(&self, _: NodeId) {}

    fn invalidate_pages(&self, _: NodeId) {}

    fn invalidate_entry(&self, _: NodeId, _: &OsStr) {}

    fn delete_entry(&self, _: NodeId, _: &OsStr, _: NodeId) {}
}

fn union() -> Union {
    let union = Union::new(|_| {}, |_| {});
    union.overlay.attach(Arc::new(Taking::default()), true);
    union
}

fn write(union: &Union, handle: HandleId, offset: u64, bytes: &[u8]) {
    assert_eq!(union.overlay.write(&ROOT, handle, offset, bytes, false), Ok(bytes.len()));
}

fn read(union: &Union, handle: HandleId) -> Vec<u8> {
    let mut buffer = [0; 64];
    let count = union.overlay.read(handle, 0, &mut buffer).unwrap();
    buffer[..count].to_vec()
}

/// Makes a checkpoint; returns its layer.
fn checkpoint(union: &Union, name: &str) -> PathBuf {
    let place = union.path().join(name);
    union.overlay.checkpoint(&place, new_id().unwrap(), false).unwrap();
    place
}

/// Data written through a descriptor after a checkpoint is in the upper; data written before is in the layer.
#[test]
fn a_writer_goes_on_in_the_new_upper() {
    let union = union();
    let dir = union.mkdir(NodeId::ROOT, "dir").unwrap();
    let file = union.create(dir, "file").unwrap();
    let linked = union.overlay.link(file, NodeId::ROOT, "linked".as_ref()).unwrap();
    assert_eq!(linked.node, file);
    let writer = union.open(file, libc::O_RDWR).unwrap();
    write(&union, writer, 0, b"before");
    let inode = fs::metadata(union.path().join("upper/dir/file")).unwrap().ino();
    let layer = checkpoint(&union, "first");
    write(&union, writer, 0, b"after!");
    for name in ["dir/file", "linked"] {
        assert_eq!(fs::read(layer.join(name)).unwrap(), b"before", "{name}");
        let upper = union.path().join("upper").join(name);
        assert_eq!(fs::read(&upper).unwrap(), b"after!", "{name}");
        assert_eq!(fs::metadata(&upper).unwrap().ino(), inode, "the same file: {name}");
    }
    assert_eq!(read(&union, writer), b"after!");
    let second = checkpoint(&union, "second");
    write(&union, writer, 0, b"later!");
    assert_eq!(fs::read(second.join("linked")).unwrap(), b"after!");
    assert_eq!(fs::read(union.path().join("upper/linked")).unwrap(), b"later!");
}

/// While the layer still has the file itself instead of a copy, the link count does not show that.
#[test]
fn links_of_a_moving_file_are_not_counted_twice() {
    let union = union();
    let [one, two] = ["one", "two"].map(|name| union.create(NodeId::ROOT, name).unwrap());
    union.overlay.link(one, NodeId::ROOT, "linked".as_ref()).unwrap();
    let writers = [one, two].map(|file| union.open(file, libc::O_RDWR).unwrap());
    let seen = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let count = |node| union.overlay.getattr(node, None).unwrap().0.nlink;
                seen.lock().unwrap().push([count(one), count(two)]);
            }
        });
        for number in 0..50 {
            checkpoint(&union, &format!("layer{number}"));
        }
        over.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|counts| *counts == [2, 1]), "{seen:?}");
    union.overlay.unlink(NodeId::ROOT, "two".as_ref()).unwrap();
    assert_eq!(union.overlay.getattr(two, Some(writers[1])).unwrap().0.nlink, 0);
}

/// A reader whose reads are made by the kernel sees data appended after a checkpoint, and the layer does not change.
#[test]
fn an_early_reader_sees_later_writes() {
    let union = union();
    let file = union.create(NodeId::ROOT, "log").unwrap();
    let writer = union.open(file, libc::O_WRONLY).unwrap();
    write(&union, writer, 0, b"one");
    union.overlay.release(writer);
    let reader = union.open(file, libc::O_RDONLY).unwrap();
    let inode = fs::metadata(union.path().join("upper/log")).unwrap().ino();
    let layer = checkpoint(&union, "layer");
    assert!(!union.path().join("upper/log").exists(), "it is not written");
    let writer = union.open(file, libc::O_WRONLY).unwrap();
    write(&union, writer, 3, b" two");
    assert_eq!(read(&union, reader), b"one two");
    assert_eq!(fs::metadata(union.path().join("upper/log")).unwrap().ino(), inode, "what the reader has open");
    assert_eq!(fs::read(layer.join("log")).unwrap(), b"one");
}

/// Open files leave a layer before another mount uses it; after that, the layer is never written.
#[test]
fn open_files_leave_a_layer_that_is_shared() {
    let union = union();
    let file = union.create(NodeId::ROOT, "file").unwrap();
    let other = union.create(NodeId::ROOT, "other").unwrap();
    union.overlay.link(other, NodeId::ROOT, "link".as_ref()).unwrap();
    let reader = union.open(file, libc::O_RDONLY).unwrap();
    let layer = checkpoint(&union, "layer");
    union.overlay.share(std::slice::from_ref(&layer)).unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let before = ["file", "other", "link"].map(|name| inode(layer.join(name)));
    assert_ne!(inode(union.path().join("upper/file")), before[0]);
    for (node, bytes) in [(file, b"new"), (other, b"New")] {
        let writer = union.open(node, libc::O_WRONLY).unwrap();
        write(&union, writer, 0, bytes);
    }
    assert_eq!(read(&union, reader), b"new");
    assert_eq!(["file", "other", "link"].map(|name| inode(layer.join(name))), before);
    assert_eq!(fs::read(layer.join("file")).unwrap(), b"");
    assert_eq!(fs::read(layer.join("other")).unwrap(), b"");
    // A hard link stays one file.
    let upper = |name: &str| union.path().join("upper").join(name);
    assert_eq!(inode(upper("other")), inode(upper("link")));
    assert_eq!(fs::read(upper("link")).unwrap(), b"New");
    assert_eq!(union.overlay.lookup(NodeId::ROOT, "link".as_ref()).unwrap().unwrap().node, other);
}

/// A hard link stays one file over a checkpoint, even if one name is in a directory below that of another. Regression:
/// the change waited for itself.
#[test]
fn a_hard_link_in_nested_directories_is_changed_after_a_checkpoint() {
    let union = union();
    let dir = union.mkdir(NodeId::ROOT, "dir").unwrap();
    let sub = union.mkdir(dir, "sub").unwrap();
    let file = union.create(dir, "one").unwrap();
    union.overlay.link(file, sub, "two".as_ref()).unwrap();
    let inode = fs::metadata(union.path().join("upper/dir/one")).unwrap().ino();
    let layer = checkpoint(&union, "layer");
    let writer = union.open(file, libc::O_WRONLY).unwrap();
    write(&union, writer, 0, b"new");
    for name in ["dir/one", "dir/sub/two"] {
        let upper = union.path().join("upper").join(name);
        assert_eq!(
            (fs::read(&upper).unwrap(), fs::metadata(&upper).unwrap().ino()),
            (b"new".to_vec(), inode),
            "{name}"
        );
        assert_eq!(fs::read(layer.join(name)).unwrap(), b"", "{name}");
    }
}

/// A hard link stays one file over a checkpoint, even if the directory of a name that the kernel has forgotten was moved since:
/// under its old path there is nothing, or something else.
#[test]
fn a_hard_link_in_a_moved_directory_is_changed_after_a_checkpoint() {
    for (shared, again) in [(false, false), (false, true), (true, false)] {
        let union = union();
        let outer = union.mkdir(NodeId::ROOT, "outer").unwrap();
        let dir = union.mkdir(outer, "dir").unwrap();
        let sub = union.mkdir(dir, "sub").unwrap();
        let file = union.create(sub, "file").unwrap();
        union.overlay.link(file, NodeId::ROOT, "linked".as_ref()).unwrap();
        let layer = checkpoint(&union, "layer");
        union.overlay.forget(file, 2);
        union.overlay.forget(sub, 1);
        union.rename((outer, "dir"), (NodeId::ROOT, "moved")).unwrap();
        if again {
            checkpoint(&union, "between");
            union.rename((NodeId::ROOT, "moved"), (outer, "again")).unwrap();
        }
        let other = union.mkdir(outer, "dir").unwrap();
        union.create(other, "sub").unwrap();
        if shared {
            union.overlay.share(std::slice::from_ref(&layer)).unwrap();
        }
        let file = union.at("linked");
        let writer = union.open(file, libc::O_WRONLY).unwrap();
        write(&union, writer, 0, b"new");
        let path = if again { "outer/again/sub/file" } else { "moved/sub/file" };
        assert_eq!(union.at(path), file, "{path}");
        assert_eq!(union.overlay.getattr(file, None).unwrap().0.nlink, 2);
        let upper = |name: &str| union.path().join("upper").join(name);
        assert_eq!(fs::read(upper(path)).unwrap(), b"new");
        assert_eq!(fs::metadata(upper(path)).unwrap().ino(), fs::metadata(upper("linked")).unwrap().ino());
        assert_eq!(fs::read(layer.join("outer/dir/sub/file")).unwrap(), b"");
        assert_eq!(fs::read(layer.join("linked")).unwrap(), b"");
    }
}

/// As before, while other directories appear and vanish, and the directory of the other name is renamed.
#[test]
fn a_hard_link_is_changed_after_a_checkpoint_while_directories_move() {
    let union = union();
    let places = ["a", "b"].map(|name| union.mkdir(NodeId::ROOT, name).unwrap());
    let files: Vec<String> = (0..100).map(|number| format!("f{number}")).collect();
    let dir = union.mkdir(places[0], "dir").unwrap();
    for name in &files {
        let file = union.create(dir, name).unwrap();
        union.overlay.link(file, NodeId::ROOT, name.as_ref()).unwrap();
        union.overlay.forget(file, 2);
    }
    checkpoint(&union, "layer");
    let over = AtomicBool::new(false);
    let disturb = || {
        let mut at = 0;
        while !over.load(Ordering::Acquire) {
            union.rename((places[at], "dir"), (places[1 - at], "dir")).unwrap();
            at = 1 - at;
            let made = union.mkdir(places[at], "made").unwrap();
            union.mkdir(made, "in").unwrap();
            union.overlay.rmdir(made, "in".as_ref()).unwrap();
            union.overlay.rmdir(places[at], "made".as_ref()).unwrap();
        }
        at
    };
    let change = || {
        let opened: Vec<_> = files.iter().map(|name| union.open(union.at(name), libc::O_WRONLY)).collect();
        over.store(true, Ordering::Release);
        opened
    };
    let (at, opened) = crate::fixture::both(disturb, change);
    for (name, opened) in files.iter().zip(opened) {
        write(&union, opened.unwrap(), 0, b"new");
        let upper = |path: &str| fs::metadata(union.path().join("upper").join(path)).unwrap().ino();
        assert_eq!(upper(&format!("{}/dir/{name}", ["a", "b"][at])), upper(name), "{name}");
    }
}

fn switch(union: &Union, lowers: &[&str]) -> usize {
    switch_keeping(union, lowers, None)
}

/// Puts other layers below the union, as a rollback does. Returns the number of nodes that are no longer shown.
fn switch_keeping(union: &Union, lowers: &[&str], kept: Option<&str>) -> usize {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let place = union.path().join(format!("abandoned-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let lowers: Vec<PathBuf> = lowers.iter().map(|name| union.path().join(name)).collect();
    let kept_at = kept.map(|name| union.path().join(name));
    let kept = kept_at.as_deref().map(|place| Kept { place, id: new_id().unwrap() });
    let switched = union.overlay.switch(&place, new_id().unwrap(), &lowers, kept).unwrap();
    // As `strata` does.
    fs::remove_dir_all(&place).unwrap();
    switched.abandoned
}

fn content(union: &Union, path: &str) -> Vec<u8> {
    let handle = union.open(union.at(path), libc::O_RDONLY).unwrap();
    let content = read(union, handle);
    union.overlay.release(handle);
    content
}

fn put(union: &Union, parent: NodeId, name: &str, bytes: &[u8]) -> NodeId {
    let node = match union.find(parent, name).unwrap() {
        Some(entry) => entry.node,
        None => union.create(parent, name).unwrap(),
    };
    let handle = union.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    write(union, handle, 0, bytes);
    union.overlay.release(handle);
    node
}

/// After a switch, changed files are as at the checkpoint, unchanged files keep their nodes, and open files of the
/// abandoned state behave like deleted ones.
#[test]
fn a_switch_brings_the_checkpoint_back() {
    let union = union();
    let dir = union.mkdir(NodeId::ROOT, "dir").unwrap();
    let same = put(&union, dir, "same", b"same");
    let changed = put(&union, dir, "changed", b"first");
    let removed = put(&union, dir, "removed", b"first");
    let deep = union.mkdir(dir, "deep").unwrap();
    put(&union, deep, "file", b"deep");
    checkpoint(&union, "first");
    let reader = union.open(same, libc::O_RDONLY).unwrap();
    let writer = union.open(changed, libc::O_RDWR).unwrap();
    write(&union, writer, 0, b"second");
    union.chmod(same, 0o600).unwrap();
    union.unlink(dir, "removed").unwrap();
    union.rename((dir, "deep"), (NodeId::ROOT, "moved")).unwrap();
    let fresh = union.mkdir(NodeId::ROOT, "fresh").unwrap();
    let new = put(&union, fresh, "new", b"new");
    let new_reader = union.open(new, libc::O_RDONLY).unwrap();
    assert_eq!(union.list(NodeId::ROOT).unwrap(), ["dir", "fresh", "moved"]);
    assert!(switch(&union, &["first", "lower"]) >= 5);
    assert_eq!(union.list(NodeId::ROOT).unwrap(), ["dir"]);
    assert_eq!(union.list(dir).unwrap(), ["changed", "deep", "removed", "same"]);
    assert_eq!(union.at("dir"), dir);
    for (path, expected) in
        [("dir/same", &b"same"[..]), ("dir/changed", b"first"), ("dir/removed", b"first"), ("dir/deep/file", b"deep")]
    {
        assert_eq!(content(&union, path), expected, "{path}");
    }
    assert!(union.find(NodeId::ROOT, "fresh").unwrap().is_none());
    // Old nodes: what is open goes on, and nothing else does.
    assert_ne!(union.at("dir/changed"), changed);
    assert_ne!(union.at("dir/removed"), removed);
    assert_eq!(read(&union, writer), b"second");
    write(&union, writer, 0, b"third!");
    assert_eq!((read(&union, reader), read(&union, new_reader)), (b"same".to_vec(), b"new".to_vec()));
    assert_eq!(union.chmod(new, 0o640), Ok(0o640));
    assert_eq!(union.open(changed, libc::O_RDONLY), Err(Errno::STALE));
    assert_eq!(union.create(fresh, "x"), Err(Errno::NOENT));
    assert_eq!(union.list(fresh).unwrap(), Vec::<String>::new());
    assert_eq!(content(&union, "dir/changed"), b"first");
    assert_eq!(fs::read(union.path().join("first/dir/changed")).unwrap(), b"first");
    // The upper is a new one, and takes changes.
    put(&union, dir, "changed", b"fourth");
    assert_eq!(content(&union, "dir/changed"), b"fourth");
    assert_eq!(fs::read(union.path().join("upper/dir/changed")).unwrap(), b"fourth");
    union.overlay.release(writer);
    assert_eq!(content(&union, "dir/changed"), b"fourth");
}

/// A file that did not change keeps its node, its handles and its number.
#[test]
fn what_did_not_change_is_the_same_after_a_switch() {
    let union = Union::new(
        |lower| {
            fs::create_dir(lower.join("base")).unwrap();
            fs::write(lower.join("base/file"), "base").unwrap();
        },
        |_| {},
    );
    let dir = union.mkdir(NodeId::ROOT, "dir").unwrap();
    let file = put(&union, dir, "file", b"upper");
    union.overlay.link(file, NodeId::ROOT, "linked".as_ref()).unwrap();
    checkpoint(&union, "first");
    let base = union.at("base/file");
    let readers = [file, base].map(|node| union.open(node, libc::O_RDONLY).unwrap());
    let attributes = |node| union.overlay.getattr(node, None).unwrap().0;
    let before = [dir, file, base, union.at("base")].map(attributes);
    put(&union, dir, "new", b"new");
    put(&union, union.at("base"), "new", b"new");
    switch(&union, &["first", "lower"]);
    assert_eq!([dir, file, base, union.at("base")].map(attributes), before);
    assert_eq!((union.at("dir/file"), union.at("linked"), union.at("base/file")), (file, file, base));
    assert_eq!(readers.map(|reader| read(&union, reader)), [b"upper".to_vec(), b"base".to_vec()]);
    assert_eq!(union.list(union.at("base")).unwrap(), ["file"]);
}

/// A switch there and back, also to a checkpoint that is not below the present state.
#[test]
fn a_switch_leads_anywhere() {
    let union = union();
    put(&union, NodeId::ROOT, "file", b"one");
    checkpoint(&union, "one");
    let dir = union.mkdir(NodeId::ROOT, "dir").unwrap();
    put(&union, dir, "two", b"two");
    put(&union, NodeId::ROOT, "file", b"two");
    checkpoint(&union, "two");
    put(&union, NodeId::ROOT, "file", b"lost");
    switch(&union, &["one", "lower"]);
    assert_eq!((content(&union, "file"), union.list(NodeId::ROOT).unwrap().len()), (b"one".to_vec(), 1));
    union.mkdir(NodeId::ROOT, "dir").unwrap();
    put(&union, NodeId::ROOT, "file", b"three");
    switch_keeping(&union, &["two", "one", "lower"], Some("three"));
    assert_eq!((content(&union, "file"), content(&union, "dir/two")), (b"two".to_vec(), b"two".to_vec()));
    switch(&union, &["three", "one", "lower"]);
    assert_eq!((content(&union, "file"), union.list(union.at("dir")).unwrap().len()), (b"three".to_vec(), 0));
    switch(&union, &["two", "one", "lower"]);
    assert_eq!((content(&union, "file"), content(&union, "dir/two")), (b"two".to_vec(), b"two".to_vec()));
    let state = union.overlay.state();
    let names: Vec<_> = state.lowers.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["two", "one", "lower"]);
    let wrong = union.overlay.switch(&union.path().join("x"), new_id().unwrap(), &[union.path().join("two")], None);
    assert!(wrong.unwrap_err().line.contains("directly below it"));
    assert!(!union.path().join("x").exists());
    assert_eq!(content(&union, "file"), b"two");
}

/// A writer whose file was abandoned changes neither the layer that was kept nor the new tree.
#[test]
fn kept_layers_do_not_change() {
    let union = union();
    let file = put(&union, NodeId::ROOT, "file", b"one");
    checkpoint(&union, "one");
    let writer = union.open(file, libc::O_RDWR).unwrap();
    let other = put(&union, NodeId::ROOT, "other", b"other");
    let reader = union.open(other, libc::O_RDONLY).unwrap();
    write(&union, writer, 0, b"two");
    switch_keeping(&union, &["one", "lower"], Some("two"));
    write(&union, writer, 0, b"six");
    assert_eq!(union.chmod(other, 0o600), Ok(0o600));
    assert_eq!((read(&union, writer), read(&union, reader)), (b"six".to_vec(), b"other".to_vec()));
    let kept = |name: &str| union.path().join("two").join(name);
    assert_eq!(fs::read(kept("file")).unwrap(), b"two");
    assert_eq!(fs::metadata(kept("other")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(content(&union, "file"), b"one");
    switch(&union, &["two", "one", "lower"]);
    assert_eq!((content(&union, "file"), content(&union, "other")), (b"two".to_vec(), b"other".to_vec()));
}

/// If a union cannot have a checkpoint, the error says so, and nothing is left of the attempt.
#[test]
fn a_checkpoint_that_cannot_be_made_changes_nothing() {
    let union = union();
    let file = union.create(NodeId::ROOT, "file").unwrap();
    let place = union.path().join("taken");
    fs::create_dir(&place).unwrap();
    let refused = union.overlay.checkpoint(&place, new_id().unwrap(), false).unwrap_err();
    assert_eq!(refused.errno, Errno::EXIST);
    assert!(refused.to_string().starts_with(place.to_str().unwrap()), "{refused}");
    let elsewhere = PathBuf::from("/dev/shm/stratafs-no-checkpoint");
    let refused = union.overlay.checkpoint(&elsewhere, new_id().unwrap(), false).unwrap_err();
    assert_eq!(refused.errno, Errno::XDEV);
    assert!(!elsewhere.exists());
    assert_eq!(union.chmod(file, 0o600), Ok(0o600));
    let indexed = Union::new(|_| {}, |config| config.index = true);
    let refused = indexed.overlay.checkpoint(&indexed.path().join("x"), new_id().unwrap(), false).unwrap_err();
    assert_eq!(refused.to_string(), "a mount with index=on has no checkpoints");
}

/// Names that were removed before a checkpoint do not count as links after a rollback to it, whether or not the file's inode
/// went to the upper meanwhile. A rollback to before the removal brings them back.
#[test]
fn removed_links_are_counted_as_at_the_checkpoint() {
    for changed in [false, true] {
        let union = union();
        let file = union.create(NodeId::ROOT, "one").unwrap();
        union.overlay.link(file, NodeId::ROOT, "two".as_ref()).unwrap();
        union.overlay.link(file, NodeId::ROOT, "three".as_ref()).unwrap();
        let links = || union.overlay.getattr(union.at("one"), None).unwrap().0.nlink;
        checkpoint(&union, "first");
        union.unlink(NodeId::ROOT, "two").unwrap();
        assert_eq!(links(), 2);
        checkpoint(&union, "second");
        if changed {
            let writer = union.open(file, libc::O_WRONLY).unwrap();
            write(&union, writer, 0, b"changed");
            union.overlay.release(writer);
        }
        union.unlink(NodeId::ROOT, "three").unwrap();
        assert_eq!(links(), 1);
        switch(&union, &["second", "first", "lower"]);
        assert_eq!(links(), 2, "changed: {changed}");
        switch(&union, &["first", "lower"]);
        assert_eq!(links(), 3, "changed: {changed}");
    }
}
