//! A limit on what the upper holds, across checkpoints. `scripts/conformance/reports.d/size` has the other tests.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use stratafs::driver::types::{HandleId, NodeId};
use stratafs::union::layer::chain::new_id;

use crate::fixture::{ROOT, Union};

const LIMIT: u64 = 1 << 20;

fn union() -> Union {
    Union::new(|lower| fs::write(lower.join("lower"), [1; 100_000]).unwrap(), |config| config.size = Some(LIMIT))
}

/// What `df` shows as used, in bytes.
fn used(union: &Union) -> u64 {
    let stat = union.overlay.statfs().unwrap();
    assert_eq!(stat.blocks * stat.frsize, LIMIT);
    (stat.blocks - stat.bfree) * stat.frsize
}

/// What `du` counts in the upper, in bytes.
fn held(union: &Union) -> u64 {
    fn add(path: &Path, seen: &mut HashSet<u64>) -> u64 {
        let stat = fs::symlink_metadata(path).unwrap();
        let own = if seen.insert(stat.ino()) { stat.blocks() * 512 } else { 0 };
        let below = if stat.is_dir() { Some(fs::read_dir(path).unwrap()) } else { None };
        own + below.into_iter().flatten().map(|entry| add(&entry.unwrap().path(), seen)).sum::<u64>()
    }
    add(&union.path().join("upper"), &mut HashSet::new())
}

fn write(union: &Union, handle: HandleId, offset: u64, length: usize) -> Result<usize, Errno> {
    union.overlay.write(&ROOT, handle, offset, &vec![7; length], false)
}

fn checkpoint(union: &Union, name: &str) {
    union.overlay.checkpoint(&union.path().join(name), new_id().unwrap(), false).unwrap();
}

/// Files that a checkpoint put into a layer no longer count. Files that are open for writing have moved to the new upper
/// and still count.
#[test]
fn after_a_checkpoint_the_new_upper_counts() {
    let union = union();
    let (closed, open) = (union.create(NodeId::ROOT, "closed").unwrap(), union.create(NodeId::ROOT, "open").unwrap());
    let writer = union.open(closed, libc::O_RDWR).unwrap();
    assert_eq!(write(&union, writer, 0, 600_000), Ok(600_000));
    union.overlay.release(writer);
    let writer = union.open(open, libc::O_RDWR).unwrap();
    assert_eq!(write(&union, writer, 0, 200_000), Ok(200_000));
    // As much as there is room for.
    assert!(write(&union, writer, 300_000, 300_000).unwrap() < 250_000);
    assert_eq!(write(&union, writer, 800_000, 4096), Err(Errno::NOSPC));
    assert_eq!((used(&union), held(&union)), (LIMIT, LIMIT));
    checkpoint(&union, "first");
    assert!((440_000..460_000).contains(&used(&union)), "{}", used(&union));
    assert_eq!(used(&union), held(&union));
    assert_eq!(write(&union, writer, 600_000, 300_000), Ok(300_000));
    assert_eq!(used(&union), held(&union));
    // Copied up from the layer that was the upper.
    let writer_of_closed = union.open(closed, libc::O_RDWR).unwrap_err();
    assert_eq!(writer_of_closed, Errno::NOSPC);
    union.overlay.release(writer);
    union.unlink(NodeId::ROOT, "open").unwrap();
    let writer = union.open(closed, libc::O_RDWR).unwrap();
    assert_eq!(used(&union), held(&union));
    union.overlay.release(writer);
    assert_eq!(used(&union), held(&union));
}

/// A file that was removed before a checkpoint belongs to neither upper.
#[test]
fn a_file_that_was_removed_before_a_checkpoint_does_not_count_after_it() {
    let union = union();
    let node = union.create(NodeId::ROOT, "file").unwrap();
    let [reader, writer] = [libc::O_RDONLY, libc::O_RDWR].map(|flags| union.open(node, flags).unwrap());
    assert_eq!(write(&union, writer, 0, 500_000), Ok(500_000));
    union.unlink(NodeId::ROOT, "file").unwrap();
    assert!(used(&union) > 500_000);
    checkpoint(&union, "first");
    assert_eq!(used(&union), held(&union));
    union.overlay.release(writer);
    union.overlay.release(reader);
    assert_eq!(used(&union), held(&union));
}

/// Files that a rollback abandons do not count, even if they are open. What is written to them afterwards counts until
/// they are closed.
#[test]
fn after_a_rollback_only_the_new_upper_counts() {
    let union = union();
    checkpoint(&union, "first");
    let node = union.create(NodeId::ROOT, "file").unwrap();
    let writer = union.open(node, libc::O_RDWR).unwrap();
    assert_eq!(write(&union, writer, 0, 500_000), Ok(500_000));
    let lowers = ["first", "lower"].map(|name| union.path().join(name));
    union.overlay.switch(&union.path().join("abandoned"), new_id().unwrap(), &lowers, None).unwrap();
    assert_eq!(used(&union), held(&union));
    assert_eq!(write(&union, writer, 500_000, 100_000), Ok(100_000));
    assert!(used(&union) >= held(&union) + 100_000);
    union.overlay.release(writer);
    assert_eq!(used(&union), held(&union));
}

/// A copy that does not fit is not made, and leaves nothing behind.
#[test]
fn a_copy_up_that_does_not_fit_changes_nothing() {
    let union = union();
    let node = union.create(NodeId::ROOT, "file").unwrap();
    let writer = union.open(node, libc::O_RDWR).unwrap();
    assert_eq!(write(&union, writer, 0, 1_000_000), Ok(1_000_000));
    let lower = union.at("lower");
    let staged = || fs::read_dir(union.path().join("work/work")).unwrap().count();
    let before = staged();
    assert_eq!(union.chmod(lower, 0o600), Err(Errno::NOSPC));
    assert_eq!(union.open(lower, libc::O_RDWR), Err(Errno::NOSPC));
    assert!(!union.path().join("upper/lower").exists());
    assert_eq!(staged(), before);
    assert_eq!(used(&union), held(&union));
    union.unlink(NodeId::ROOT, "lower").unwrap();
    assert_eq!(used(&union), held(&union));
}
