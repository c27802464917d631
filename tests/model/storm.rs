//! Sixteen processes at once on one mount. Each runs random sequences in directories of its own, checked by the model
//! after every few steps, while a second thread of it renames, exchanges, creates, removes and copies up files in
//! directories that all share, and appends to lower files that all append to. Afterwards the whole tree is what all
//! models together say: on the mount, and on a fresh one of each driver.
//!
//! A deadlock is found by the test's time limit. `STRATAFS_SOAK=1`: it goes on for a minute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Files of each process there: the first half from the lower layer.
const FILES: u64 = 6;

/// Lower files that every process appends its line to: sixteen want to copy each of them up.
const COMMON: u64 = 48;

/// How long the processes go on at least: a minute, if a long run is wanted.
fn duration() -> Duration {
    let long = std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 0 })
}

/// Time for the whole test; comparing what a long run leaves takes longer than the run.
fn time_limit() -> Duration {
    limit() + 15 * duration()
}

/// Sequences of each process. Where those of a long run are done before its minute is over, the rest of the process goes on.
fn rounds() -> u64 {
    let least = if duration().is_zero() { 1 } else { 20 };
    (number("STRATAFS_MODEL_OPS", 0) / PROCESSES / SEQUENCE as u64).max(least)
}

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
        (0..rounds()).map(move |round| Self::new(worker, round))
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

    /// Compares what is left with what the model says; `begun`: the process has come to it.
    fn check(&self, root: &Path, driver: Driver, begun: bool) {
        let mut union = Union::new(&self.layers, false);
        for (seed, op) in self.ops.iter().filter(|_| begun) {
            drop(union.apply(op, *seed));
        }
        let mut subtree = Subtree { place: Place::new(root.join(&self.directory)), driver };
        if let Err(message) = run::compare(&union, &mut subtree, &mut BTreeMap::new()) {
            panic!("{} in the end, by {driver:?}: {message}", self.directory);
        }
    }
}

/// The file `number` of a worker in a shared directory.
fn place(root: &Path, directory: u64, worker: u64, number: u64) -> PathBuf {
    root.join(format!("shared{directory}/f{worker}-{number}"))
}

/// What a worker has in the shared directories, and does to it until told to stop.
struct Wanderer<'a> {
    root: &'a Path,
    worker: u64,
    rng: Rng,
    /// Where each of its files is now, and what is in it.
    files: Vec<(PathBuf, String)>,
    /// Common files that have its line.
    appended: u64,
}

impl<'a> Wanderer<'a> {
    fn new(root: &'a Path, worker: u64) -> Self {
        let files = (0..FILES).map(|number| {
            let path = place(root, number % SHARED, worker, number);
            if number >= FILES / 2 {
                sys::create(&path, b"made").unwrap();
            }
            (path, if number < FILES / 2 { "low".to_owned() } else { "made".to_owned() })
        });
        let files = files.collect();
        Self { root, worker, rng: Rng::new(worker), files, appended: 0 }
    }

    fn step(&mut self) {
        let which = self.rng.below(FILES);
        let at = which as usize;
        match self.rng.below(8) {
            0 => {
                let other = self.rng.below(FILES) as usize;
                if other != at {
                    sys::rename_with(&self.files[at].0, &self.files[other].0, RenameFlags::EXCHANGE).unwrap();
                    let content = std::mem::take(&mut self.files[at].1);
                    self.files[at].1 = std::mem::replace(&mut self.files[other].1, content);
                }
            }
            1 => drop(sys::readdir(&self.root.join(format!("shared{}", self.rng.below(SHARED)))).unwrap()),
            2 => {
                let (path, content) = &mut self.files[at];
                sys::unlink(path).unwrap();
                sys::create(path, b"new").unwrap();
                *content = "new".to_owned();
            }
            3 => {
                let (path, content) = &mut self.files[at];
                sys::append(path, b".").unwrap();
                content.push('.');
            }
            4 => self.append_to_common(),
            _ => {
                let to = place(self.root, self.rng.below(SHARED), self.worker, which);
                sys::rename(&self.files[at].0, &to).unwrap();
                self.files[at].0 = to;
            }
        }
    }

    /// The next one; the first of the processes that come to it copies it up.
    fn append_to_common(&mut self) {
        if self.appended < COMMON {
            let path = self.root.join(format!("common/c{}", self.appended));
            sys::append(&path, format!("{}\n", self.worker).as_bytes()).unwrap();
            self.appended += 1;
        }
    }

    /// All that is left to do, and whether everything is where and what it should be.
    fn end(mut self) {
        while self.appended < COMMON {
            self.append_to_common();
        }
        for (path, content) in &self.files {
            assert_eq!(sys::text(path), *content, "{}", path.display());
        }
    }
}

fn wander(root: &Path, worker: u64, stop: &AtomicBool) {
    let mut wanderer = Wanderer::new(root, worker);
    let mut steps = 0;
    while steps < 50 || !stop.load(Ordering::Relaxed) {
        steps += 1;
        wanderer.step();
    }
    wanderer.end();
}

/// Not a test: one of the sixteen processes, which the storm starts. Prints how many sequences it has run.
#[test]
fn storm_worker() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let worker = number(WORKER, 0);
    let driver = if std::env::var_os("STRATAFS_STORM_KERNEL").is_some() { Driver::Overlayfs } else { Driver::Stratafs };
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let is_time = || duration().is_zero() || started.elapsed() < duration();
    std::thread::scope(|scope| {
        let wanderer = scope.spawn(|| wander(&root, worker, &stop));
        let sequences = scope.spawn(|| {
            let run = |sequence: Sequence| sequence.run(&root, driver);
            Sequence::all_of(worker).take_while(|_| is_time()).map(run).count()
        });
        let outcome = sequences.join();
        if outcome.is_ok() {
            // Where the sequences did not last.
            std::thread::sleep(duration().saturating_sub(started.elapsed()));
        }
        stop.store(true, Ordering::Relaxed);
        wanderer.join().unwrap();
        println!("\n{RAN}{}", outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
}

/// What a process prints before the number of its sequences.
const RAN: &str = "sequences: ";

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
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        Self((0..PROCESSES).map(start).collect())
    }

    /// Waits for all; how many sequences each has run.
    fn join(mut self) -> Vec<u64> {
        let ended: Vec<_> = self.0.drain(..).map(|child| child.wait_with_output().unwrap()).collect();
        let failed: Vec<_> = ended.iter().filter(|output| !output.status.success()).collect();
        let told: String = failed.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect();
        assert!(failed.is_empty(), "{} of {PROCESSES} processes failed:\n{told}", failed.len());
        let ran = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().find_map(|line| line.strip_prefix(RAN)?.parse().ok()).expect("the number of sequences")
        };
        ended.iter().map(ran).collect()
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

/// Compares everything with the models; what is in the shared directories. `ran`: sequences of each process.
fn check_all(mount: &Mount, ran: &[u64]) -> BTreeMap<PathBuf, String> {
    for (worker, &ran) in (0..).zip(ran) {
        for (round, sequence) in (0..).zip(Sequence::all_of(worker)) {
            sequence.check(mount.root(), mount.driver(), round < ran);
        }
    }
    for number in 0..COMMON {
        let text = sys::text(&mount.at(&format!("common/c{number}")));
        let mut lines: Vec<&str> = text.strip_prefix("low\n").expect("the lower content").lines().collect();
        lines.sort_by_key(|line| line.parse::<u64>().expect("a number"));
        let all: Vec<String> = (0..PROCESSES).map(|worker| worker.to_string()).collect();
        assert_eq!(lines, all, "common/c{number}");
    }
    let shared = (0..SHARED).map(|number| PathBuf::from(format!("shared{number}")));
    let names = shared.flat_map(|dir| sys::names(&mount.root().join(&dir)).into_iter().map(move |name| dir.join(name)));
    let files: BTreeMap<PathBuf, String> =
        names.map(|path| (path.clone(), sys::text(&mount.root().join(path)))).collect();
    assert_eq!(files.len() as u64, FILES * PROCESSES, "files in the shared directories");
    files
}

fn storm(driver: Driver) {
    let deepest = (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.layers.len()).max().unwrap();
    let mut stack = Stack::new();
    for number in 0..deepest {
        let mut text: String =
            (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.text(number)).collect();
        if number == 0 {
            (0..SHARED).for_each(|shared| text.push_str(&format!("dir shared{shared}\n")));
            for (worker, file) in (0..PROCESSES).flat_map(|worker| (0..FILES / 2).map(move |file| (worker, file))) {
                text.push_str(&format!(
                    "file {} \"low\"\n",
                    place(Path::new(""), file % SHARED, worker, file).display()
                ));
            }
            (0..COMMON).for_each(|number| text.push_str(&format!("file common/c{number} \"low\\n\"\n")));
        }
        stack = stack.lower(&text);
    }
    let mount = stack.mount(driver);
    let started = Instant::now();
    let ran = Crowd::start(&mount).join();
    eprintln!("{} sequences in {:?}", ran.iter().sum::<u64>(), started.elapsed());
    let files = check_all(&mount, &ran);
    let mount = mount.remount(driver);
    assert_eq!(check_all(&mount, &ran), files);
    if driver == Driver::Stratafs {
        assert_eq!(check_all(&mount.remount(Driver::Overlayfs), &ran), files);
    }
}

#[test]
fn overlayfs() {
    run_test_within(time_limit(), "model::storm::overlayfs", Driver::Overlayfs, storm);
}

#[test]
fn stratafs() {
    run_test_within(time_limit(), "model::storm::stratafs", Driver::Stratafs, storm);
}
