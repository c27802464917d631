//! kill -9 of the service at every system call that changes something, during containerd's calls. After a restart,
//! everything acknowledged is there, and the interrupted call has happened or not. The other calls work, and at the
//! end nothing is left.
//!
//! strace kills at the n-th call of one kind in each thread, for every n until a run comes to its end unharmed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::client::*;
use super::wire;
use super::*;

/// Calls that change the disk. A `?`: not every architecture has it.
const CALLS: &[&str] = &[
    "?rename",
    "renameat",
    "renameat2",
    "?mkdir",
    "mkdirat",
    "?unlink",
    "unlinkat",
    "?rmdir",
    "fsync",
    "fdatasync",
    "syncfs",
    "pwrite64",
    "ftruncate",
    "?chmod",
    "fchmod",
    "fchmodat",
    "fchown",
    "utimensat",
    "write",
    "bind",
];

/// Kinds of calls that the short form tries, with the step between two tried calls.
const SHORT: &[(&str, u32)] =
    &[("?rename", 1), ("?mkdir", 2), ("unlinkat", 3), ("fsync", 4), ("fdatasync", 5), ("syncfs", 1), ("pwrite64", 31)];

/// No thread makes more calls of one kind.
const MOST: u32 = 2000;

/// The label that is changed.
const LABEL: &str = "step";

/// What is asked, one after the other.
#[derive(Clone, Copy, Debug)]
enum Step {
    Prepare(&'static str, &'static str),
    View(&'static str, &'static str),
    Label(&'static str, &'static str),
    Commit(&'static str, &'static str),
    Remove(&'static str),
    Cleanup,
}

const STEPS: &[Step] = &[
    Step::Prepare("make a", ""),
    Step::Commit("a", "make a"),
    Step::Prepare("make b", "a"),
    Step::Commit("b", "make b"),
    Step::Prepare("web", "b"),
    Step::Prepare("db", "b"),
    Step::View("look", "b"),
    Step::Label("look", "1"),
    Step::Remove("web"),
    Step::Cleanup,
    Step::Prepare("web", "a"),
    Step::Label("look", "2"),
    Step::Remove("db"),
    Step::Remove("look"),
    Step::Remove("b"),
];

/// The snapshots after some steps, with their label.
fn after(steps: &[Step]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for step in steps {
        match *step {
            Step::Prepare(key, _) | Step::View(key, _) => {
                assert!(labels.insert(key.to_owned(), String::new()).is_none());
            }
            Step::Label(key, value) => value.clone_into(labels.get_mut(key).unwrap()),
            Step::Commit(name, key) => {
                assert!(labels.remove(key).is_some() && labels.insert(name.to_owned(), String::new()).is_none());
            }
            Step::Remove(key) => assert!(labels.remove(key).is_some()),
            Step::Cleanup => {}
        }
    }
    labels
}

fn take(client: &Client, step: Step) -> Result<(), Failed> {
    match step {
        Step::Prepare(key, parent) => {
            let upper = client.prepare(key, parent)?;
            // As a container would write, so that there is something to lose.
            std::fs::create_dir_all(upper.join("dir")).unwrap();
            std::fs::write(upper.join("dir/file"), key).unwrap();
            Ok(())
        }
        Step::View(key, parent) => {
            let (key, parent) = (key.to_owned(), parent.to_owned());
            let asked = wire::PrepareRequest { key, parent, labels: no_labels() };
            client.call::<wire::MountsResponse>("View", &asked).map(drop)
        }
        Step::Label(name, value) => {
            let info = wire::Info { name: name.to_owned(), labels: labels(&[(LABEL, value)]), ..Default::default() };
            let update_mask = Some(wire::FieldMask { paths: vec![format!("labels.{LABEL}")] });
            client
                .call::<wire::InfoResponse>("Update", &wire::UpdateRequest { info: Some(info), update_mask })
                .map(drop)
        }
        Step::Commit(name, key) => client.commit(name, key).map(drop),
        Step::Remove(key) => client.by_key::<wire::Empty>("Remove", key).map(drop),
        Step::Cleanup => client.call::<wire::Empty>("Cleanup", &wire::Empty {}).map(drop),
    }
}

/// True if the service was killed.
fn killed_at(call: &str, number: u32) -> bool {
    let what = format!("{call} {number}");
    let scratch = Scratch::new();
    let trace = scratch.dir.path().join("strace");
    // -D: the service is the child, strace its grandchild.
    let words = ["strace", "-D", "-f", "-qqq", "-o", trace.to_str().unwrap(), &format!("--trace={call}")];
    let mut wrapper: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    wrapper.push(format!("--inject={call}:signal=KILL:when={number}"));
    let mut service = Service::start(&scratch, &wrapper);
    // It may be killed before it listens.
    let client = loop {
        match Client::try_connect(&service.socket) {
            None if service.child.try_wait().unwrap().is_none() => std::thread::sleep(Duration::from_millis(2)),
            client => break client,
        }
    };
    let steps = |client: &Client| STEPS.iter().take_while(|&&step| acknowledged(client, step, &what)).count();
    let done = client.as_ref().map_or(0, steps);
    drop(client);
    if done == STEPS.len() {
        service.signal(rustix::process::Signal::TERM);
    }
    let status = service.child.wait().unwrap();
    assert!(trace.exists(), "there is no strace; scripts/test installs it");
    assert!(status.signal() == Some(9) || (status.success() && done == STEPS.len()), "{what}: {status}");
    drop(service);

    let mut again = Service::start(&scratch, &[]);
    let client = again.client();
    let label = |info: &wire::Info| info.labels.get(LABEL).cloned().unwrap_or_default();
    let found: BTreeMap<String, String> =
        client.list(&[]).unwrap().into_iter().map(|info| (info.name.clone(), label(&info))).collect();
    let (before, next) = (after(&STEPS[..done]), after(&STEPS[..STEPS.len().min(done + 1)]));
    assert!(found == before || found == next, "{what}: after {done} steps: {found:?}");
    for (name, file) in [("a", "make a"), ("b", "make b")] {
        if found.contains_key(name) {
            let layer = client.by_key::<wire::MountsResponse>("Mounts", name);
            assert_eq!(layer.unwrap_err().status, Some(FAILED_PRECONDITION), "{what}");
            assert_eq!(content(&scratch, &client, name), file, "{what}");
        }
    }
    for &step in &STEPS[if found == before { done } else { done + 1 }..] {
        take(&client, step).unwrap_or_else(|failed| panic!("{what}: {step:?}: {failed:?}"));
    }
    client.call::<wire::Empty>("Cleanup", &wire::Empty {}).unwrap();
    drop(again);
    let snapshotter = scratch.open();
    assert_agreed(&snapshotter, &scratch.root(), &what);
    for name in ["web", "a"] {
        snapshotter.remove(name).unwrap();
    }
    snapshotter.cleanup().unwrap();
    assert_eq!(directories(&scratch.root()), (BTreeSet::new(), 0), "{what}");
    status.signal() == Some(9)
}

/// True if a step was done; false if the connection was lost meanwhile.
fn acknowledged(client: &Client, step: Step, what: &str) -> bool {
    match take(client, step) {
        Ok(()) => true,
        Err(Failed { status: None, .. }) => false,
        Err(failed) => panic!("{what}: {step:?}: {failed:?}"),
    }
}

/// What the layer `name` holds.
fn content(scratch: &Scratch, client: &Client, name: &str) -> String {
    let view = format!("look at {name}");
    client
        .call::<wire::MountsResponse>(
            "View",
            &wire::PrepareRequest { key: view.clone(), parent: name.to_owned(), labels: no_labels() },
        )
        .unwrap();
    let mounts: wire::MountsResponse = client.by_key("Mounts", &view).unwrap();
    client.by_key::<wire::Empty>("Remove", &view).unwrap();
    let [mount] = mounts.mounts.as_slice() else { panic!("{mounts:?}") };
    let lowers = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let top = lowers.map_or(mount.source.as_str(), |lowers| lowers.split(':').next().unwrap());
    assert!(Path::new(top).starts_with(scratch.root()));
    std::fs::read_to_string(Path::new(top).join("dir/file")).unwrap()
}

#[test]
fn killed_at_calls_that_change_something() {
    let soak = std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1");
    let mut points = 0;
    let kinds: Vec<(&str, u32)> = if soak { CALLS.iter().map(|&call| (call, 1)).collect() } else { SHORT.to_vec() };
    for (call, stride) in kinds {
        let mut number = 1;
        while killed_at(call, number) {
            points += 1;
            number += stride;
            assert!(number < MOST, "{call} never ends");
        }
    }
    eprintln!("killed at {points} calls");
    assert!(points > 20, "{points}: were the right calls tried?");
}
