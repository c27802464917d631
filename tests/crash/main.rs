//! Nothing is lost if the driver is killed, the power fails or the disk fails, at any call that changes a layer.
//!
//! | file | does |
//! |---|---|
//! | `gate` | intercepts the daemon's system calls |
//! | `verbs` | the changes that are interrupted |
//! | `kill` | `kill -9` before each call |
//! | `faults` | each call fails |
//! | `power` | the power fails at each call; why this is a shutdown and not device mapper |
//! | `checkpoint` | all of these at each call of a checkpoint, and of the next mount after one |
//! | `links` | kill and faults while a hard link of a checkpoint goes to the upper |
//! | `ending` | the driver takes long to end after the unmount |
//! | `observed` | failures are in the log and in the counts |
//!
//! `STRATAFS_SOAK=1` runs the long forms.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

#[macro_use]
mod verbs;
mod checkpoint;
mod ending;
mod faults;
mod gate;
mod kill;
mod links;
mod observed;
mod power;
mod rollback;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use common::stack::Layers;
use common::{Driver, Upper, sys, tree};

/// The union as a user sees it.
type Tree = BTreeMap<String, String>;

/// A tree without details that differ between runs: times other than those of the layers, and times of directories,
/// which are restored one step after the change.
fn without_times(tree: &Tree) -> Tree {
    let line = |line: &String| {
        let is_dir = line.starts_with("dir ");
        let kept = line.split(' ').filter(|word| !word.starts_with("mtime=") || (!is_dir && word.len() < 22));
        kept.collect::<Vec<_>>().join(" ")
    };
    tree.iter().map(|(path, text)| (path.clone(), line(text))).collect()
}

/// A tree without times.
fn without_any_times(tree: &Tree) -> Tree {
    let line = |line: &String| line.split(' ').filter(|word| !word.starts_with("mtime=")).collect::<Vec<_>>().join(" ");
    tree.iter().map(|(path, text)| (path.clone(), line(text))).collect()
}

/// True for the long forms of the tests.
fn soaking() -> bool {
    std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1")
}

/// True for verbs that uppers of this kind refuse, which tests/mount/uppers checks.
fn refuses(upper: Upper, verb: &verbs::Verb) -> bool {
    match upper {
        Upper::Bindfs => verb.name.starts_with("exchange_") || verb.name == "tmpfile",
        Upper::XattrWhiteouts => verb.leaves_device(),
        _ => false,
    }
}

/// Notes the number of tested points for `scripts/test`; each kind of upper is counted separately.
fn report(kind: &str, upper: Upper, verb: &str, points: usize) {
    let kind = match upper {
        Upper::Plain => kind.to_owned(),
        upper => format!("{kind}-on-{upper:?}"),
    };
    println!("{kind} {verb}: {points} points");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("points");
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{kind} {verb} {points}\n").as_bytes()).unwrap();
}

/// What the kernel's overlayfs shows of the upper, without changing it.
fn kernel_reads(mut layers: Layers) -> (Tree, Layers) {
    let (upper, work) = (layers.upper.take().unwrap(), layers.work.take().unwrap());
    layers.originals.insert(0, tree::snapshot(&upper, true));
    layers.lowers.insert(0, upper);
    let mount = layers.mount(Driver::Overlayfs);
    let seen = tree::snapshot(mount.root(), true);
    let mut layers = mount.unmount();
    layers.originals.remove(0);
    layers.upper = Some(layers.lowers.remove(0));
    layers.work = Some(work);
    (seen, layers)
}

/// What a fresh mount by `driver` shows.
fn mounted_reads(layers: Layers, driver: Driver) -> (Tree, Layers) {
    let mount = layers.mount(driver);
    let seen = tree::snapshot(mount.root(), true);
    (seen, mount.unmount())
}

/// Asserts that the change happened completely or not at all.
#[track_caller]
fn assert_old_or_new(found: &Tree, old: &Tree, new: &Tree, when: &str) {
    let found = without_times(found);
    let (from_old, from_new) = (tree::diff(&found, old), tree::diff(&found, new));
    assert!(
        from_old.is_empty() || from_new.is_empty(),
        "{when}: neither the old tree:\n{from_old}nor the new one:\n{from_new}"
    );
}

/// A tree as the kernel's overlayfs shows it, for which a user's device 0:0 is a whiteout.
fn without_devices_of_users(tree: &Tree) -> Tree {
    tree.iter()
        .filter(|(_, line)| !line.starts_with("whiteout "))
        .map(|(path, line)| (path.clone(), line.clone()))
        .collect()
}

fn has_named_whiteout(directory: &Path) -> bool {
    sys::names(directory).iter().any(|name| {
        let path = directory.join(name);
        let is_dir = || sys::lstat(&path).unwrap().st_mode & libc::S_IFMT == libc::S_IFDIR;
        name.starts_with(".wh.") || (is_dir() && has_named_whiteout(&path))
    })
}

/// Asserts the conditions for an upper after its driver died: the change happened or not, the kernel's overlayfs
/// agrees, no staged file is left and no lower layer has changed.
#[track_caller]
fn check_crashed(mut layers: Layers, verb: &verbs::Verb, old: &Tree, new: &Tree, when: &str) {
    let indexed = verb.options.contains(&"index=on");
    let mut by_kernel = None;
    // `.wh.NAME`, which covers a step of several calls, has no meaning for the kernel.
    let covered = has_named_whiteout(layers.upper.as_deref().unwrap());
    if !indexed && !covered {
        let (seen, back) = kernel_reads(layers);
        (by_kernel, layers) = (Some(seen), back);
    }
    // Unmounting asserts that the work directory is empty and that the lower layers are what they were.
    let (found, layers) = mounted_reads(layers, Driver::Stratafs);
    let between = verb.leaves_device().then(|| without_devices_of_users(new));
    let new = between.as_ref().filter(|between| without_times(&found) == **between).unwrap_or(new);
    if verb.options.contains(&"metacopy=on") {
        // Copying content into a file that has only attributes changes its time, which is restored afterwards
        // (kernel: `ovl_copy_up_meta_inode_data` does the same).
        assert_old_or_new(&without_any_times(&found), &without_any_times(old), &without_any_times(new), when);
    } else {
        assert_old_or_new(&found, old, new, when);
    }
    // The index identifies the upper by its handle, and bindfs makes its own handles.
    if covered || (indexed && layers.upper_on == Upper::Bindfs) {
        return;
    }
    // Names without an upper file find theirs by the index, which the kernel has only with an upper.
    let by_kernel = by_kernel.unwrap_or_else(|| mounted_reads(layers, Driver::Overlayfs).0);
    let difference = tree::diff(&by_kernel, &without_devices_of_users(&found));
    assert!(difference.is_empty(), "{when}: the kernel's overlayfs reads another tree:\n{difference}");
}
