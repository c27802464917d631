//! kill -9 of `strata` at every system call by which it creates, removes and rolls back to checkpoints. Afterwards the
//! container is in the state before or after, acknowledged checkpoints are there, and `gc` leaves no garbage.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use stratafs::container::checkpoint::tidy;
use stratafs::container::{Container, CreateOptions, Driver};
use stratafs::store::Store;

use super::checkpoint::shown;
use super::crashes::{Victim, one_image};
use super::fixture::*;

type Tree = BTreeMap<String, String>;

/// All containers and their checkpoints, with their files.
fn state(store: &Store) -> BTreeMap<String, Tree> {
    let mut state = BTreeMap::new();
    for container in Container::list(store).unwrap().containers {
        state.insert(container.name().to_owned(), shown(store, container.name(), None));
        for checkpoint in container.checkpoints(store).unwrap() {
            let tree = shown(store, container.name(), Some(&checkpoint.name));
            state.insert(format!("{}@{}", container.name(), checkpoint.name), tree);
        }
    }
    state
}

fn write(upper: &Path, name: &str) {
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc").join(name), name).unwrap();
}

/// A store whose container `c` has three checkpoints and further changes.
fn start() -> Scratch {
    let scratch = Scratch::new();
    scratch.load(&one_image("kept:1", &[base_layer()])).unwrap();
    let image = scratch.store.find("kept:1").unwrap();
    let options = CreateOptions { name: Some("c".to_owned()), driver: Driver::Overlay, ..CreateOptions::default() };
    let container = Container::create(&scratch.store, &image, &options).unwrap();
    let upper = container.dir().join("upper");
    for name in ["one", "two", "three"] {
        write(&upper, name);
        container.create_checkpoint(&scratch.store, name).unwrap();
    }
    write(&upper, "four");
    scratch
}

fn copy(of: &Scratch) -> Victim {
    let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
    let root = dir.path().join("store");
    assert!(Command::new("cp").arg("-a").arg(of.store.root()).arg(&root).status().unwrap().success());
    Victim { dir, root }
}

/// Calls that change a part of a checkpoint, or flush it to the disk. A `?`: not every architecture has it.
const CALLS: [&str; 14] = [
    "?rename",
    "renameat",
    "renameat2",
    "linkat",
    "?unlink",
    "unlinkat",
    "?rmdir",
    "?mkdir",
    "mkdirat",
    "symlinkat",
    "fsetxattr",
    "fsync",
    "syncfs",
    "mknodat",
];

const VERBS: [&[&str]; 5] = [
    &["checkpoint", "create", "c", "four"],
    &["rollback", "c", "one"],
    &["rollback", "--keep", "four", "c", "two"],
    &["fork", "c", "d"],
    &["checkpoint", "rm", "c", "two"],
];

#[test]
fn checkpoints_killed_at_every_call() {
    let start = start();
    let before = state(&start.store);
    let mut points = 0;
    for args in VERBS {
        let victim = copy(&start);
        assert!(victim.strata(&[], args).status.success(), "{args:?}");
        let after = state(&Store::open(&victim.root).unwrap());
        assert_ne!(before, after, "{args:?}");
        for call in CALLS {
            for number in 1.. {
                let victim = copy(&start);
                let Some(output) = victim.harmed(call, "signal=KILL", number, args) else { break };
                let what = format!("{args:?}, killed at {call} {number}");
                let store = Store::open(&victim.root).unwrap();
                let now = state(&store);
                assert!(now == before || now == after, "{what}: {:?}", now.keys());
                assert!(!output.status.success() || now == after, "{what}: it was acknowledged");
                assert_eq!(store.chain_faults().unwrap(), Vec::<String>::new(), "{what}");
                tidy(&store, true).unwrap();
                store.gc(false).unwrap();
                assert_eq!(state(&store), now, "{what}: gc");
                assert_eq!(store.chain_faults().unwrap(), Vec::<String>::new(), "{what}: gc");
                assert_eq!(std::fs::read_dir(victim.root.join("tmp")).unwrap().count(), 0, "{what}: tmp");
                let ids = |name: &str| name.parse::<stratafs::marks::chain::ChainId>().is_ok() || name == "lock";
                for entry in std::fs::read_dir(victim.root.join("checkpoints")).unwrap() {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    assert!(ids(&name), "{what}: {name}");
                }
                points += 1;
            }
        }
    }
    println!("{points} kill points");
    assert!(points > 60, "only {points} kill points");
}
