//! Checkpoints of a mount that is in use. At each system call of a checkpoint, the driver is killed, the power fails, or
//! the call fails.
//!
//! A checkpoint does not change what the mount shows. So the tree must be the same afterwards, and the layer must be
//! complete or missing.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use stratafs::control::{Client, Request};
use stratafs::marks::chain::{Chain, ChainId};
use stratafs::union::layer::chain::{chain_namespace, new_id, read_chain};

use crate::common::stack::{Layers, Mount, Stack};
use crate::common::{Driver, Upper, run_test_within, sys, tree};
use crate::gate::{Act, Call, Counted, Gate, Order, shut_down};
use crate::power::Disk;
use crate::verbs::scenes;
use crate::{Tree, kernel_reads, report, soaking, without_times};

pub const LIMIT: Duration = Duration::from_secs(1800);

pub fn stack() -> Stack {
    Stack::new().lower(&scenes(1))
}

/// Makes changes of every kind. Returns the files that stay open for writing.
pub fn prepare(mount: &Mount) -> Vec<File> {
    let at = mount.at("0");
    sys::create(&at.join("new"), b"new\n").unwrap();
    sys::mkdir(&at.join("made"), 0o2750).unwrap();
    sys::create(&at.join("made/in"), b"in\n").unwrap();
    sys::link(&at.join("new"), &at.join("made/linked")).unwrap();
    sys::append(&at.join("d/sub/deep/x"), b"more\n").unwrap();
    sys::setxattr(&at.join("d"), "user.new", b"value").unwrap();
    sys::unlink(&at.join("gone")).unwrap();
    sys::rename(&at.join("full"), &at.join("moved")).unwrap();
    sys::rmdir(&at.join("e")).unwrap();
    sys::mkdir(&at.join("e"), 0o755).unwrap();
    let open = |path: &str| sys::open(&at.join(path), OFlags::RDWR, 0).unwrap();
    let files = vec![open("new"), open("d/f"), open("d/other")];
    sys::write_all(&files[1], b"changed\n").unwrap();
    sys::unlink(&at.join("d/other")).unwrap();
    files
}

pub fn look(mount: &Mount) -> Tree {
    without_times(&tree::snapshot(mount.root(), true))
}

pub fn mark(dir: &Path) -> Option<Chain> {
    let dir = File::open(dir).ok()?;
    read_chain(dir.as_fd(), chain_namespace(dir.as_fd()).unwrap()).unwrap()
}

/// A checkpoint that will be requested.
struct Wanted {
    client: Client,
    place: PathBuf,
    id: ChainId,
}

impl Wanted {
    /// A checkpoint at `name`.
    fn of(mount: &Mount, name: &str) -> Self {
        let layers = mount.layers();
        Self {
            client: Client::connect(layers.work.as_ref().unwrap()).unwrap(),
            place: layers.directory.path().join(name),
            id: new_id().unwrap(),
        }
    }

    fn ask(&mut self) -> std::io::Result<()> {
        let place = self.place.to_str().unwrap().to_owned();
        self.client.ask(&Request::Checkpoint { place, id: self.id.to_string(), sync: true }).map(drop)
    }

    /// Returns true if it was made. Otherwise removes what is left of it.
    fn was_made(&self, layers: &Layers) -> bool {
        let upper = mark(layers.upper.as_ref().unwrap());
        let is_made = upper.is_some_and(|chain| chain.id == self.id);
        if is_made {
            assert_eq!(mark(&self.place).map(|chain| chain.id), upper.unwrap().below);
        } else if self.place.exists() {
            std::fs::remove_dir_all(&self.place).unwrap();
        }
        is_made
    }
}

/// Adds the layer to the others if it was made. Until the next mount finishes the checkpoint, the layer may share files
/// with the upper.
fn with_layer(mut layers: Layers, wanted: &Wanted) -> (bool, Layers) {
    let is_made = wanted.was_made(&layers);
    if is_made {
        layers = match layers.try_mount(Driver::Stratafs) {
            Ok(_) => panic!("mounted without the layer"),
            Err((told, layers)) => {
                assert!(told.contains("needs the checkpoint layer"), "{told}");
                layers
            }
        };
        layers.add_checkpoint(wanted.place.clone());
    }
    (is_made, layers)
}

#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree, when: &str) {
    let difference = tree::diff(&without_times(found), expected);
    assert!(difference.is_empty(), "{when}:\n{difference}");
}

/// Asserts that nothing is lost, that no later write reaches the layer, and that the layer shows what the mount showed at
/// the checkpoint. Returns true if the checkpoint was made.
#[track_caller]
fn check(layers: Layers, wanted: &Wanted, shown: &Tree, when: &str) -> bool {
    let (is_made, layers) = with_layer(layers, wanted);
    let (by_kernel, layers) = kernel_reads(layers);
    assert_same(&by_kernel, shown, &format!("{when}: the kernel's overlayfs reads another tree"));
    check_mounted(layers, is_made, shown, when);
    is_made
}

#[track_caller]
pub fn check_mounted(layers: Layers, is_made: bool, shown: &Tree, when: &str) {
    let mount = layers.mount(Driver::Stratafs);
    assert_same(&look(&mount), shown, &format!("{when}: another tree"));
    sys::append(&mount.at("0/new"), b"later\n").unwrap();
    sys::append(&mount.at("0/d/f"), b"later\n").unwrap();
    sys::create(&mount.at("0/moved/later"), b"later\n").unwrap();
    // That asserts that the layers have not changed, and that nothing is left in the work directory.
    let mut layers = mount.unmount();
    if is_made {
        layers.upper = None;
        layers.work = None;
        let mount = layers.mount(Driver::Stratafs);
        assert_same(&look(&mount), shown, &format!("{when}: the layer shows another tree"));
    }
}

/// Kills the driver at call number `at` of a checkpoint. Returns true if the checkpoint was made; `None` if it has fewer
/// calls.
fn kill_at(at: usize) -> Option<bool> {
    let gate = Gate::default();
    let mount = stack().build().mount_started_by(|command| gate.spawn(command));
    let open = prepare(&mount);
    let shown = look(&mount);
    let mut wanted = Wanted::of(&mount, "layer");
    gate.give(Order { at, act: Act::Kill, counted: if soaking() { Counted::All } else { Counted::Changes } });
    let asked = wanted.ask();
    let Some(call) = gate.take() else {
        asked.unwrap();
        return None;
    };
    asked.unwrap_err();
    drop(open);
    let when = format!("killed at call {at}, {call}");
    Some(check(mount.crash(), &wanted, &shown, &when))
}

#[test]
fn killed_at_every_call() {
    run_test_within(LIMIT, "checkpoint::killed_at_every_call", Driver::Stratafs, |_| {
        let step = if soaking() { 1 } else { 3 };
        let made: Vec<bool> = (0..).step_by(step).map_while(kill_at).collect();
        let before = made.iter().take_while(|made| !**made).count();
        assert!(before > 3 && made.len() > before + 3, "{made:?}");
        assert!(made[before..].iter().all(|made| *made), "made and then not: {made:?}");
        report("kill", Upper::Plain, "checkpoint", made.len());
    });
}

/// A mount whose driver was killed right after the exchange, while the layer shares files with the upper.
fn crashed() -> (Layers, Wanted, Tree) {
    let gate = Gate::default();
    let mount = stack().build().mount_started_by(|command| gate.spawn(command));
    let open = prepare(&mount);
    let shown = look(&mount);
    let mut wanted = Wanted::of(&mount, "layer");
    gate.give(Order { at: 0, act: Act::Kill, counted: Counted::Named("renameat") });
    let told = wanted.ask().unwrap_err();
    let call = gate.take().unwrap();
    drop(open);
    let (is_made, layers) = with_layer(mount.crash(), &wanted);
    assert!(is_made, "killed at {call}: {told}");
    (layers, wanted, shown)
}

/// The control socket is there before the mount answers.
#[test]
fn the_control_socket_exists_before_the_mount_answers() {
    run_test_within(LIMIT, "checkpoint::the_control_socket_exists_before_the_mount_answers", Driver::Stratafs, |_| {
        // `unlinkat` is delayed: one call removes a socket that a killed mount left.
        for at in 0.. {
            let gate = Gate::default();
            gate.give(Order { at, act: Act::Wait(Duration::from_millis(300)), counted: Counted::Named("unlinkat") });
            let mount = stack().build().mount_started_by(|command| gate.spawn(command));
            Wanted::of(&mount, "layer").ask().unwrap();
            if gate.take().is_none() {
                assert!(at > 0);
                return;
            }
        }
    });
}

#[test]
fn killed_at_every_call_of_the_next_mount() {
    run_test_within(LIMIT, "checkpoint::killed_at_every_call_of_the_next_mount", Driver::Stratafs, |_| {
        // The short form counts only calls that finish the checkpoint, not those that every mount begins with.
        let kinds: &[Counted] = match soaking() {
            true => &[Counted::Changes],
            false => {
                &["renameat", "fchown", "fsync", "lremovexattr", "fremovexattr", "removexattr"].map(Counted::Named)
            }
        };
        let mut points = 0;
        for &counted in kinds {
            for at in 0.. {
                let (layers, _, shown) = crashed();
                let gate = Gate::default();
                gate.give(Order { at, act: Act::Kill, counted });
                let mounted = layers.try_mount_started_by(|command| gate.spawn(command));
                let struck = gate.take();
                match (mounted, struck) {
                    (Err((_, layers)), Some(call)) => {
                        let when = format!("the next mount killed at call {at}, {call}");
                        check_mounted(layers, true, &shown, &when);
                        points += 1;
                    }
                    (Ok(mount), None) => {
                        mount.unmount();
                        break;
                    }
                    (Ok(_), Some(call)) => panic!("mounted, though it was killed at call {at}, {call}"),
                    (Err((told, _)), None) => panic!("does not mount: {told}"),
                }
            }
        }
        assert!(points >= 4, "only {points} points");
        report("kill", Upper::Plain, "mount_after_checkpoint", points);
    });
}

/// The power fails at call number `at`. Returns `None` if there are fewer calls.
fn cut_at(at: usize, disk: &Disk) -> Option<bool> {
    let gate = Gate::default();
    let mount = stack().build_in(&disk.root()).mount_started_by(|command| gate.spawn(command));
    let open = prepare(&mount);
    rustix::fs::syncfs(disk.open()).unwrap();
    let shown = look(&mount);
    let mut wanted = Wanted::of(&mount, "layer");
    let root = disk.open();
    gate.give(Order { at, act: Act::Shutdown(root.as_raw_fd()), counted: Counted::Changes });
    let asked = wanted.ask();
    let Some(call) = gate.take() else {
        asked.unwrap();
        return None;
    };
    drop((open, root));
    let layers = mount.crash();
    disk.start_again();
    Some(check(layers, &wanted, &shown, &format!("power off at call {at}, {call}")))
}

fn cut_everywhere(kind: &'static str) {
    run_test_within(LIMIT, "checkpoint::power", Driver::Stratafs, move |_| {
        let disk = Disk::new(kind);
        let step = if soaking() { 1 } else { 7 };
        let made: Vec<bool> = (0..).step_by(step).map_while(|at| cut_at(at, &disk)).collect();
        assert!(made.len() > 5, "{made:?}");
        // An acknowledged checkpoint is on the disk, with everything in it.
        let mount = stack().build_in(&disk.root()).mount(Driver::Stratafs);
        let open = prepare(&mount);
        let shown = look(&mount);
        let mut wanted = Wanted::of(&mount, "layer");
        wanted.ask().unwrap();
        shut_down(disk.open().as_raw_fd());
        drop(open);
        let layers = mount.crash();
        disk.start_again();
        assert!(check(layers, &wanted, &shown, "acknowledged, then the power went off"));
        report("power", Upper::Plain, &format!("checkpoint {kind}"), made.len() + 1);
    });
}

#[test]
fn power_lost_on_ext4() {
    cut_everywhere("ext4");
}

#[test]
fn power_lost_on_xfs() {
    cut_everywhere("xfs");
}

/// Requests a checkpoint at `name` and lets one call fail. Returns that call, if there is one, and whether the checkpoint
/// was made.
fn fail_at(mount: &Mount, gate: &Gate, name: &str, order: Order) -> (Option<Call>, bool) {
    let mut wanted = Wanted::of(mount, name);
    gate.give(order);
    let asked = wanted.ask();
    let call = gate.take();
    let is_made = mark(mount.layers().upper.as_ref().unwrap()).is_some_and(|chain| chain.id == wanted.id);
    let when = format!("{order:?} at {call:?}: {asked:?}");
    match &asked {
        Ok(()) => assert!(is_made, "{when}"),
        Err(error) => {
            let told = error.to_string();
            assert!(!told.contains('\n'), "{when}");
            assert!(is_made || !wanted.place.exists(), "{when}: something is left");
            assert!(!is_made || told.starts_with("the checkpoint is made, but"), "{when}");
        }
    }
    (call, is_made)
}

/// Whichever call fails, the mount continues and shows the same.
#[test]
fn failing_at_every_call() {
    run_test_within(LIMIT, "checkpoint::failing_at_every_call", Driver::Stratafs, |_| {
        let errnos: &[Errno] = if soaking() { &[Errno::NOSPC, Errno::IO, Errno::MFILE] } else { &[Errno::NOSPC] };
        let mut points = 0;
        for &errno in errnos {
            let gate = Gate::default();
            let mut mount = stack().build().mount_started_by(|command| gate.spawn(command));
            let open = prepare(&mount);
            let shown = look(&mount);
            for at in 0.. {
                let name = format!("layer-{errno}-{at}");
                let order = Order { at, act: Act::Fail(errno), counted: Counted::Changes };
                let (call, is_made) = fail_at(&mount, &gate, &name, order);
                assert_same(&look(&mount), &shown, &format!("{errno} at call {at}, {call:?}"));
                if is_made {
                    mount.note_checkpoint(&name);
                }
                if call.is_none() {
                    break;
                }
                points += 1;
            }
            // A checkpoint without a fault succeeds afterwards.
            mount.checkpoint();
            rustix::io::pwrite(&open[0], b"LATER", 0).unwrap();
            drop(open);
            let mut layers = mount.unmount();
            layers.upper = None;
            layers.work = None;
            assert_same(&look(&layers.mount(Driver::Stratafs)), &shown, "the last layer shows another tree");
        }
        report("fault", Upper::Plain, "checkpoint", points);
    });
}
