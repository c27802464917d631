//! Rollbacks of a mount that is in use. At each system call of a rollback, the driver is killed or the power fails.
//!
//! Afterwards the mount shows the checkpoint or the state before. The state to be kept is a layer or still in the upper.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::OFlags;
use stratafs::control::{Client, Request};
use stratafs::marks::chain::ChainId;
use stratafs::union::layer::chain::new_id;

use crate::checkpoint::{assert_same, check_mounted, look, mark, prepare, stack};
use crate::common::stack::{Layers, Mount};
use crate::common::{Driver, Upper, run_test_within, sys};
use crate::gate::{Act, Counted, Gate, Order};
use crate::power::Disk;
use crate::{Tree, kernel_reads, report, soaking};

const LIMIT: Duration = Duration::from_secs(1800);

/// What the mount shows after the interruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shows {
    /// The state before, with the same upper.
    Before,
    /// The state before; the upper has become the layer that keeps it.
    Kept,
    /// The checkpoint.
    Checkpoint,
}

/// A rollback that will be requested.
struct Wanted {
    client: Client,
    place: PathBuf,
    id: ChainId,
    lowers: Vec<String>,
    /// Where the state before becomes a layer.
    keep: Option<(PathBuf, ChainId)>,
}

impl Wanted {
    fn of(mount: &Mount, keeps: bool) -> Self {
        let layers = mount.layers();
        let beside = |name: &str| layers.directory.path().join(name);
        Self {
            client: Client::connect(layers.work.as_ref().unwrap()).unwrap(),
            place: beside("abandoned"),
            id: new_id().unwrap(),
            lowers: layers.lowers.iter().map(|lower| lower.to_str().unwrap().to_owned()).collect(),
            keep: keeps.then(|| (beside("kept"), new_id().unwrap())),
        }
    }

    fn ask(&mut self) -> std::io::Result<()> {
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let keep = self.keep.as_ref().map(|(place, id)| (text(place), id.to_string()));
        let (place, id, lowers) = (text(&self.place), self.id.to_string(), self.lowers.clone());
        self.client.ask(&Request::Switch { place, id, lowers, keep }).map(drop)
    }

    /// Finds out what the mount will show. Removes what is not needed, and adds a layer that was kept to the others if
    /// the upper is on it.
    fn end(&self, mut layers: Layers) -> (Shows, Layers) {
        let upper = mark(layers.upper.as_ref().unwrap()).map(|chain| chain.id);
        let kept = self.keep.as_ref().filter(|(_, id)| upper == Some(*id));
        let shows = match kept {
            _ if upper == Some(self.id) => Shows::Checkpoint,
            Some(_) => Shows::Kept,
            None => Shows::Before,
        };
        if self.place.exists() {
            std::fs::remove_dir_all(&self.place).unwrap();
        }
        match &self.keep {
            Some((place, _)) if shows == Shows::Kept => layers.add_checkpoint(place.clone()),
            Some((place, _)) if shows == Shows::Before && place.exists() => std::fs::remove_dir_all(place).unwrap(),
            _ => {}
        }
        (shows, layers)
    }
}

/// Makes a checkpoint of the mount and changes it. Returns the trees of the checkpoint and of the mount, and files that
/// stay open.
fn changed(mount: &mut Mount) -> (Tree, Tree, Vec<File>) {
    let mut open = prepare(mount);
    let checkpoint = look(mount);
    mount.checkpoint();
    let at = mount.at("0");
    sys::append(&at.join("new"), b"after\n").unwrap();
    sys::create(&at.join("after"), b"after\n").unwrap();
    sys::rename(&at.join("made"), &at.join("renamed")).unwrap();
    sys::unlink(&at.join("d/sub/deep/x")).unwrap();
    open.push(sys::open(&at.join("after"), OFlags::RDWR, 0).unwrap());
    (checkpoint, look(mount), open)
}

/// Asserts that stratafs and the kernel show one of the two trees, and that the state to be kept is not lost.
#[track_caller]
fn check(layers: Layers, wanted: &Wanted, (checkpoint, before): (&Tree, &Tree), when: &str) -> Shows {
    let (shows, layers) = wanted.end(layers);
    let expected = if shows == Shows::Checkpoint { checkpoint } else { before };
    let (by_kernel, layers) = kernel_reads(layers);
    assert_same(&by_kernel, expected, &format!("{when}, {shows:?}: the kernel's overlayfs reads another tree"));
    if let (Shows::Checkpoint, Some((place, _))) = (shows, &wanted.keep) {
        let mut kept = layers.fork();
        kept.lowers.insert(0, place.clone());
        (kept.upper, kept.work) = (None, None);
        kept.originals.clear();
        assert_same(&look(&kept.mount(Driver::Stratafs)), before, &format!("{when}: what was kept"));
    }
    check_mounted(layers, false, expected, &format!("{when}, {shows:?}"));
    shows
}

/// Interrupts a rollback at call number `at`. Returns what the mount shows; `None` if there are fewer calls. With `disk`,
/// the power fails; otherwise the driver is killed.
fn interrupted_at(at: usize, keeps: bool, disk: Option<&Disk>) -> Option<Shows> {
    let gate = Gate::default();
    let layers = disk.map_or_else(|| stack().build(), |disk| stack().build_in(&disk.root()));
    let mut mount = layers.mount_started_by(|command| gate.spawn(command));
    let (checkpoint, before, open) = changed(&mut mount);
    let root = disk.map(|disk| {
        rustix::fs::syncfs(disk.open()).unwrap();
        disk.open()
    });
    let mut wanted = Wanted::of(&mount, keeps);
    let act = root.as_ref().map_or(Act::Kill, |root| Act::Shutdown(root.as_raw_fd()));
    let counted = if soaking() && disk.is_none() { Counted::All } else { Counted::Changes };
    gate.give(Order { at, act, counted });
    let asked = wanted.ask();
    let Some(call) = gate.take() else {
        asked.unwrap();
        return None;
    };
    drop((open, root));
    let layers = mount.crash();
    if let Some(disk) = disk {
        disk.start_again();
    }
    Some(check(layers, &wanted, (&checkpoint, &before), &format!("interrupted at call {at}, {call}")))
}

/// Interrupts a rollback at every `step`th call.
fn everywhere(step: usize, keeps: bool, disk: Option<&Disk>) -> usize {
    let seen: Vec<Shows> = (0..).step_by(step).map_while(|at| interrupted_at(at, keeps, disk)).collect();
    assert!(seen.is_sorted(), "back again: {seen:?}");
    assert!(seen.first() == Some(&Shows::Before) && seen.last() == Some(&Shows::Checkpoint), "{seen:?}");
    seen.len()
}

#[test]
fn killed_at_every_call() {
    run_test_within(LIMIT, "rollback::killed_at_every_call", Driver::Stratafs, |_| {
        let step = if soaking() { 1 } else { 2 };
        for (keeps, verb) in [(false, "rollback"), (true, "rollback --keep")] {
            report("kill", Upper::Plain, verb, everywhere(step, keeps, None));
        }
    });
}

#[test]
fn power_lost() {
    run_test_within(LIMIT, "rollback::power_lost", Driver::Stratafs, |_| {
        let disk = Disk::new("ext4");
        let step = if soaking() { 1 } else { 5 };
        for (keeps, verb) in [(false, "rollback"), (true, "rollback --keep")] {
            report("power", Upper::Plain, verb, everywhere(step, keeps, Some(&disk)));
        }
    });
}
