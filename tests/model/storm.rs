//! Sixteen processes at once on one mount. Each runs random sequences in directories of its own, checked by the model
//! after every few steps, while a second thread of it moves a file through directories that all share. Afterwards the
//! whole tree is what all models together say: on the mount, and on a fresh one of each driver.
//!
//! A deadlock is found by the test's time limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Backend, Outcome, Place, Seen};
use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Mount, Stack, run_test_within};
use crate::ops::{self, Layer, Op};
use crate::rng::Rng;
use crate::union::Union;
use crate::{SEQUENCE, limit, number, run};

const PROCESSES: u64 = 16;

/// Directories that all processes move files through.
const SHARED: u64 = 4;

/// Tells a process of the storm where to work: the mount.
const ROOT: &str = "STRATAFS_STORM_ROOT";
/// And which of the sixteen it is.
const WORKER: &str = "STRATAFS_STORM_WORKER";

/// A directory of a mount that somebody else has made.
struct Subtree {
    place: Place,
    driver: Driver,
}

impl Backend for Subtree {
    fn apply(&mut self, op: &Op, step: u64) -> Outcome {
        self.place.try_apply(op, step).unwrap_or_else(Outcome::Error)
    }

    fn tree(&mut self) -> Result<BTreeMap<String, Seen>, String> {
        self.place.tree()
    }

    fn is_kernel(&self) -> bool {
        self.driver == Driver::Overlayfs
    }

    fn finish(self: Box<Self>) {}
}

/// What one process does in one of its directories: the same in the process and where it is checked.
struct Sequence {
    directory: String,
    layers: Vec<Layer>,
    ops: Vec<(u64, Op)>,
}

impl Sequence {
    fn new(worker: u64, round: u64) -> Self {
        let mut rng = Rng::new(number("STRATAFS_MODEL_SEED", 10_000) + worker * 1_000_003 + round);
        let layers = ops::random_layers(&mut rng);
        let mut sequence = ops::random_ops(&mut rng, &layers, SEQUENCE, &[Driver::Stratafs]);
        sequence.retain(|op| !matches!(op, Op::Remount { .. } | Op::Restack { .. }));
        let ops = sequence.into_iter().enumerate().map(|(step, op)| (step as u64, op)).collect();
        Self { directory: format!("w{worker}-{round}"), layers, ops }
    }

    /// Every sequence of a worker.
    fn all_of(worker: u64) -> impl Iterator<Item = Self> {
        let rounds = (number("STRATAFS_MODEL_OPS", 0) / PROCESSES / SEQUENCE as u64).max(1);
        (0..rounds).map(move |round| Self::new(worker, round))
    }

    /// Its directory in layer `number`, as text.
    fn text(&self, number: usize) -> String {
        let directory = &self.directory;
        let mut text = format!("dir {directory} mode=755\n");
        for line in ops::layer_text(self.layers.get(number).unwrap_or(&vec![])).lines() {
            let mut words = line.splitn(3, ' ');
            let (kind, path, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            // The second word of a hard link is a path, too.
            let rest = if kind == "hard" { format!("{directory}/{rest}") } else { rest.to_owned() };
            text.push_str(&format!("{kind} {directory}/{path} {rest}\n"));
        }
        text
    }

    fn run(&self, root: &Path, driver: Driver) {
        let make = |_: &[Layer]| {
            let place = Place::new(root.join(&self.directory));
            Box::new(Subtree { place, driver }) as Box<dyn Backend>
        };
        if let Err(failure) = run::run(&self.layers, &self.ops, &make) {
            panic!("{}, step {}: {}", self.directory, failure.step, failure.message);
        }
    }

    /// Compares what is left with what the model says.
    fn check(&self, root: &Path, driver: Driver) {
        let mut union = Union::new(&self.layers, false);
        for (seed, op) in &self.ops {
            drop(union.apply(op, *seed));
        }
        let mut subtree = Subtree { place: Place::new(root.join(&self.directory)), driver };
        if let Err(message) = run::compare(&union, &mut subtree, &mut BTreeMap::new()) {
            panic!("{} in the end, by {driver:?}: {message}", self.directory);
        }
    }
}

/// Moves a worker's two files through the shared directories until told to stop; where they are then.
fn wander(root: &Path, worker: u64, stop: &AtomicBool) -> [PathBuf; 2] {
    let mut rng = Rng::new(worker);
    let place = |directory: u64, name: &str| root.join(format!("shared{directory}/{name}{worker}"));
    let mut at = [place(0, "low"), place(1, "made")];
    sys::create(&at[1], format!("made {worker}").as_bytes()).unwrap();
    let mut steps = 0;
    while steps < 20 || !stop.load(Ordering::Relaxed) {
        steps += 1;
        match rng.below(4) {
            0 => sys::rename_with(&at[0], &at[1], RenameFlags::EXCHANGE).unwrap(),
            1 => drop(sys::readdir(&root.join(format!("shared{}", rng.below(SHARED)))).unwrap()),
            _ => {
                let which = rng.below(2) as usize;
                let to = place(rng.below(SHARED), ["low", "made"][which]);
                sys::rename(&at[which], &to).unwrap();
                at[which] = to;
            }
        }
    }
    at
}

/// Not a test: one of the sixteen processes, which the storm starts.
#[test]
fn storm_worker() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let worker = number(WORKER, 0);
    let driver = if std::env::var_os("STRATAFS_STORM_KERNEL").is_some() { Driver::Overlayfs } else { Driver::Stratafs };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let wanderer = scope.spawn(|| wander(&root, worker, &stop));
        let sequences = scope.spawn(|| Sequence::all_of(worker).for_each(|sequence| sequence.run(&root, driver)));
        let outcome = sequences.join();
        stop.store(true, Ordering::Relaxed);
        let at = wanderer.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut texts = at.map(|path| sys::text(&path));
        texts.sort();
        assert_eq!(texts, [format!("low {worker}"), format!("made {worker}")]);
    });
}

/// The processes; killed when the test ends before them.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(mount: &Mount) -> Self {
        let start = |worker: u64| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "storm::storm_worker", "--nocapture", "--test-threads=1"]);
            command.env(ROOT, mount.root()).env(WORKER, worker.to_string());
            if mount.driver() == Driver::Overlayfs {
                command.env("STRATAFS_STORM_KERNEL", "1");
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        Self((0..PROCESSES).map(start).collect())
    }

    fn join(mut self) {
        let ended: Vec<_> = self.0.drain(..).map(|child| child.wait_with_output().unwrap()).collect();
        let failed: Vec<_> = ended.iter().filter(|output| !output.status.success()).collect();
        let told: String = failed.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect();
        assert!(failed.is_empty(), "{} of {PROCESSES} processes failed:\n{told}", failed.len());
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that have ended say so.
            drop((child.kill(), child.wait()));
        }
    }
}

fn check_all(mount: &Mount) {
    for worker in 0..PROCESSES {
        Sequence::all_of(worker).for_each(|sequence| sequence.check(mount.root(), mount.driver()));
    }
    let shared = |n: u64| sys::readdir(&mount.at(&format!("shared{n}"))).unwrap().len() as u64;
    assert_eq!((0..SHARED).map(shared).sum::<u64>(), 2 * PROCESSES, "files in the shared directories");
}

fn storm(driver: Driver) {
    let deepest = (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.layers.len()).max().unwrap();
    let mut stack = Stack::new();
    for number in 0..deepest {
        let mut text: String =
            (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.text(number)).collect();
        if number == 0 {
            (0..SHARED).for_each(|shared| text.push_str(&format!("dir shared{shared}\n")));
            (0..PROCESSES).for_each(|worker| text.push_str(&format!("file shared0/low{worker} \"low {worker}\"\n")));
        }
        stack = stack.lower(&text);
    }
    let mount = stack.mount(driver);
    Crowd::start(&mount).join();
    check_all(&mount);
    let mount = mount.remount(driver);
    check_all(&mount);
    if driver == Driver::Stratafs {
        check_all(&mount.remount(Driver::Overlayfs));
    }
}

#[test]
fn overlayfs() {
    run_test_within(limit(), "model::storm::overlayfs", Driver::Overlayfs, storm);
}

#[test]
fn stratafs() {
    run_test_within(limit(), "model::storm::stratafs", Driver::Stratafs, storm);
}
