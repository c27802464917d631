//! Checkpoints of a union whose files are open.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use stratafs::driver::types::{HandleId, Kernel, NodeId};
use stratafs::union::layer::chain::new_id;

use crate::fixture::{ROOT, Union};

/// A kernel that takes every file for passthrough.
#[derive(Default)]
struct Taking(AtomicU32);

impl Kernel for Taking {
    fn register_backing(&self, _: BorrowedFd<'_>) -> Result<u32, Errno> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn unregister_backing(&self, _: u32) {}

    fn invalidate_attr(&self, _: NodeId) {}

    fn invalidate_pages(&self, _: NodeId) {}
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

/// Makes a checkpoint; its layer.
fn checkpoint(union: &Union, name: &str) -> PathBuf {
    let place = union.path().join(name);
    union.overlay.checkpoint(&place, new_id().unwrap(), false).unwrap();
    place
}

/// What is written through a descriptor after a checkpoint is in the upper, and the layer has what was written before.
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

/// A reader whose reads the kernel makes itself sees what is appended after a checkpoint, and the layer does not change.
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
    assert!(!union.path().join("upper/log").exists(), "nobody writes to it");
    let writer = union.open(file, libc::O_WRONLY).unwrap();
    write(&union, writer, 3, b" two");
    assert_eq!(read(&union, reader), b"one two");
    assert_eq!(fs::metadata(union.path().join("upper/log")).unwrap().ino(), inode, "what the reader has open");
    assert_eq!(fs::read(layer.join("log")).unwrap(), b"one");
}

/// Files that are open leave a layer before another mount uses it; after that the layer is never written to.
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
}

/// A hard link stays one file over a checkpoint, also with a name in a directory of which another name's directory is the parent:
/// once, the change waited for itself there.
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

/// What cannot have a checkpoint is told, and nothing is left of the attempt.
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
