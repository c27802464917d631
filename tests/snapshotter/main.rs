//! containerd's snapshotter. Needs root (marks in `trusted.*`, small file systems), but no FUSE: mounts are tested with
//! containerd itself, in `scripts/engines/containerd`.
//!
//! | file | does |
//! |---|---|
//! | `calls` | the life of snapshots, in this process |
//! | `disk` | what is in the directory: attributes, usage, a full disk, what a crash has left, unusable directories |
//! | `client` | a gRPC client |
//! | `service` | the program: gRPC statuses, its socket, its end |
//! | `kill` | `kill -9` at system calls that change something |

#![allow(clippy::unwrap_used)]
#![cfg(feature = "snapshotter")]

mod calls;
mod client;
mod disk;
mod kill;
mod service;
#[path = "../../src/snapshotter/wire.rs"]
#[allow(missing_docs)]
mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stratafs::snapshotter::{Kind, Labels, Mount, Options, Snapshotter};

/// A directory. Not in `/tmp`, which may be a tmpfs; short, for the paths of sockets.
fn temporary() -> tempfile::TempDir {
    let base = std::env::var_os("STRATAFS_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    tempfile::Builder::new().prefix("ss-").tempdir_in(base).unwrap()
}

/// A directory of snapshots, without syncing.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { dir: temporary() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn open(&self) -> Snapshotter {
        Snapshotter::open(&Options { root: self.root(), sync: false }).unwrap()
    }
}

fn no_labels() -> Labels {
    Labels::new()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The directory with the changes of the snapshot that `mounts` show.
fn upper_of(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else { panic!("one mount: {mounts:?}") };
    let option = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    PathBuf::from(option.unwrap_or(&mount.source))
}

/// Makes the layer `name` above `parent`, with one file of that name.
fn layer(snapshotter: &Snapshotter, name: &str, parent: &str) -> PathBuf {
    let key = format!("making {name}");
    let upper = upper_of(&snapshotter.prepare(Kind::Active, &key, parent, no_labels()).unwrap());
    std::fs::write(upper.join(name), name).unwrap();
    snapshotter.commit(name, &key, "", no_labels()).unwrap();
    upper
}

/// The directories of snapshots, and how many are being deleted.
fn directories(root: &Path) -> (BTreeSet<u64>, usize) {
    let names = |dir: &str| std::fs::read_dir(root.join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
    (names("snapshots").map(|name| name.to_str().unwrap().parse().unwrap()).collect(), names("removed").count())
}

/// Every snapshot has its directory, and every directory its snapshot.
fn assert_agreed(snapshotter: &Snapshotter, root: &Path, what: &str) {
    let known: BTreeSet<u64> = snapshotter.list(&[]).unwrap().iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(directories(root), (known, 0), "{what}");
}
