//! Sixteen processes at once on one mount. Each runs random sequences in its own directories, checked by the model
//! every few steps. A second thread of each process works in directories that all processes share: it renames,
//! exchanges, makes and removes files and directories, renames directories in which all make files, removes, replaces
//! and appends to common lower files, and uses its names of common hard links. At the end, the whole tree equals all
//! models together: on the mount, and on a new mount by each driver.
//!
//! The test's time limit finds a deadlock. With `STRATAFS_SOAK=1`, this takes a minute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backend::{Backend, Outcome, Place, Seen};
use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Mount, Stack, Upper, run_test_within, tree};
use crate::ops::{self, Layer, Op};
use crate::rng::Rng;
use crate::union::Union;
use crate::{SEQUENCE, limit, number, run};

const PROCESSES: u64 = 16;

/// Files and directories of each process that move: the first half from the lower layer.
const THINGS: u64 = 8;

/// Lower hard links, of which each process has a name.
const LINKS: u64 = 16;

/// Directories that all processes rename, make files in and list.
const MOVING: u64 = 3;

/// Lower files in each of them.
const LOW: u64 = 5;

/// Lower files that every process appends its line to: sixteen want to copy each of them up.
const COMMON: u64 = 48;

/// How long the processes work at least: a minute in a long run.
pub fn duration() -> Duration {
    let long = std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 0 })
}

/// Time for the whole test; comparing what a long run leaves takes longer than the run.
fn time_limit() -> Duration {
    limit() + 15 * duration()
}

/// Sequences of each process. If the sequences of a long run are done before its minute is over, the rest of the process
/// continues.
fn rounds() -> u64 {
    let least = if duration().is_zero() { 1 } else { 20 };
    (number("STRATAFS_MODEL_OPS", 0) / PROCESSES / SEQUENCE as u64).max(least)
}

/// Tells a process of the storm where to work: the mount.
const ROOT: &str = "STRATAFS_STORM_ROOT";
/// Tells a process its number.
const WORKER: &str = "STRATAFS_STORM_WORKER";
/// Set if kernel overlayfs made the mount.
const KERNEL: &str = "STRATAFS_STORM_KERNEL";
/// Set if hard links stay one file.
const INDEXED: &str = "STRATAFS_STORM_INDEXED";

/// A directory of a mount made by another process.
struct Subtree {
    place: Place,
    driver: Driver,
    indexed: bool,
    counts_links: bool,
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

    fn is_indexed(&self) -> bool {
        self.indexed
    }

    fn counts_links(&self) -> bool {
        self.counts_links
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

    fn run(&self, root: &Path, driver: Driver, indexed: bool) {
        let make = |_: &[Layer]| {
            let place = Place::new(root.join(&self.directory));
            Box::new(Subtree { place, driver, indexed, counts_links: true }) as Box<dyn Backend>
        };
        if let Err(failure) = run::run(&self.layers, &self.ops, &make) {
            panic!("{}, step {}: {}", self.directory, failure.step, failure.message);
        }
    }

    /// Compares the final tree with the model; `begun` is true if the process has started the sequence. With
    /// `counts_links`, also compares link counts.
    fn check(&self, mount: &Mount, begun: bool, counts_links: bool) {
        let (driver, indexed) = (mount.driver(), is_indexed(mount));
        let mut union = Union::new(&self.layers, indexed);
        for (seed, op) in self.ops.iter().filter(|_| begun) {
            drop(union.apply(op, *seed));
        }
        let place = Place::new(mount.at(&self.directory));
        let mut subtree = Subtree { place, driver, indexed, counts_links };
        if let Err(message) = run::compare(&union, &mut subtree, &mut BTreeMap::new()) {
            panic!("{} in the end, by {driver:?}: {message}", self.directory);
        }
    }
}

/// Directories that all processes move their own files and directories through, from the lower layer.
const SHARED: [&str; 5] = ["shared0", "shared1", "shared2", "shared0/in", "shared1/in/deep"];

/// The name of the thing `number` of a worker.
fn name_of(worker: u64, number: u64) -> String {
    format!("t{worker}-{number}")
}

/// Where the thing is at first.
fn first_place(worker: u64, number: u64) -> String {
    format!("{}/{}", SHARED[number as usize % SHARED.len()], name_of(worker, number))
}

/// What a worker moves about, with its content.
#[derive(Clone, Debug, PartialEq)]
enum Thing {
    File(String),
    Directory(BTreeMap<String, String>),
}

impl Thing {
    /// The thing `number`, as it is in the lower layer or is made at first.
    fn new(number: u64) -> Self {
        let origin = if number < THINGS / 2 { "low" } else { "made" };
        match number % 2 {
            0 => Self::File(origin.to_owned()),
            _ => Self::Directory(["x", "y"].map(|name| (name.to_owned(), origin.to_owned())).into()),
        }
    }

    fn make(&self, path: &Path) {
        match self {
            Self::File(content) => sys::create(path, content.as_bytes()).unwrap(),
            Self::Directory(files) => {
                sys::mkdir(path, 0o755).unwrap();
                files.iter().for_each(|(name, content)| sys::create(&path.join(name), content.as_bytes()).unwrap());
            }
        }
    }

    fn layer_text(&self, path: &str) -> String {
        match self {
            Self::File(content) => format!("file {path} \"{content}\"\n"),
            Self::Directory(files) => {
                files.iter().map(|(name, content)| format!("file {path}/{name} \"{content}\"\n")).collect()
            }
        }
    }

    fn remove(&self, path: &Path) {
        match self {
            Self::File(_) => sys::unlink(path).unwrap(),
            Self::Directory(_) => std::fs::remove_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        }
    }

    fn check(&self, path: &Path) {
        let found = match self {
            Self::File(_) => Self::File(sys::text(path)),
            Self::Directory(_) => {
                let text = |name: String| (name.clone(), sys::text(&path.join(name)));
                Self::Directory(sys::names(path).into_iter().map(text).collect())
            }
        };
        assert_eq!(found, *self, "{}", path.display());
    }
}

/// What a worker does beside its sequences until told to stop.
struct Wanderer<'a> {
    root: &'a Path,
    worker: u64,
    rng: Rng,
    /// Where each of its things is now, and what it is.
    things: Vec<(PathBuf, Thing)>,
    /// Number of common files that it has appended to.
    appended: u64,
    removed: u64,
    linked: u64,
    /// Files that it has made in each of the directories that move.
    made: [u64; MOVING as usize],
}

impl<'a> Wanderer<'a> {
    fn new(root: &'a Path, worker: u64) -> Self {
        let things = (0..THINGS).map(|number| {
            let (path, thing) = (root.join(first_place(worker, number)), Thing::new(number));
            if number >= THINGS / 2 {
                thing.make(&path);
            }
            (path, thing)
        });
        let things = things.collect();
        let made = [0; MOVING as usize];
        Self { root, worker, rng: Rng::new(worker), things, appended: 0, removed: 0, linked: 0, made }
    }

    fn step(&mut self) {
        let at = self.rng.below(THINGS) as usize;
        match self.rng.below(14) {
            0 | 1 => self.exchange(at),
            2 => drop(sys::readdir(&self.root.join(*self.rng.pick(&SHARED))).unwrap()),
            3 => self.make_again(at),
            4 => self.change(at),
            5 => self.append_to_common(),
            6 => self.remove_common(),
            7 => self.use_link(),
            8 => self.move_common(),
            9 => self.make_in_moving(),
            10 => self.list_moving(),
            _ => self.rename(at),
        }
    }

    fn rename(&mut self, at: usize) {
        let to = self.root.join(*self.rng.pick(&SHARED)).join(name_of(self.worker, at as u64));
        let from = std::mem::replace(&mut self.things[at].0, to.clone());
        sys::rename(&from, &to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
    }

    /// Exchanges two of its things.
    fn exchange(&mut self, at: usize) {
        let other = self.rng.below(THINGS) as usize;
        if other == at {
            return;
        }
        sys::rename_with(&self.things[at].0, &self.things[other].0, RenameFlags::EXCHANGE).unwrap();
        let thing = self.things[at].1.clone();
        self.things[at].1 = std::mem::replace(&mut self.things[other].1, thing);
    }

    fn make_again(&mut self, at: usize) {
        let (path, thing) = &mut self.things[at];
        thing.remove(path);
        *thing = match thing {
            Thing::File(_) => Thing::File("new".to_owned()),
            Thing::Directory(_) => Thing::Directory([("new".to_owned(), "new".to_owned())].into()),
        };
        thing.make(path);
    }

    fn change(&mut self, at: usize) {
        let (path, thing) = &mut self.things[at];
        let (file, content) = match thing {
            Thing::File(content) => (path.clone(), content),
            Thing::Directory(files) => {
                let Some((name, content)) = files.iter_mut().next() else { return };
                (path.join(name), content)
            }
        };
        sys::append(&file, b".").unwrap();
        content.push('.');
    }

    /// Appends to the next common file, which the first of the processes copies up.
    fn append_to_common(&mut self) {
        if self.appended < COMMON {
            let path = self.root.join(format!("common/c{}", self.appended));
            sys::append(&path, format!("{}\n", self.worker).as_bytes()).unwrap();
            self.appended += 1;
        }
    }

    /// Lower files that every process wants to remove or replace: at the end they are removed, or belong to one process.
    fn remove_common(&mut self) {
        if self.removed >= COMMON {
            return;
        }
        let path = self.root.join(format!("common/u{}", self.removed));
        if self.removed.is_multiple_of(2) {
            match sys::unlink(&path) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => panic!("{}: {errno}", path.display()),
            }
        } else {
            let own = self.root.join(format!("common/o{}-{}", self.worker, self.removed));
            sys::create(&own, self.worker.to_string().as_bytes()).unwrap();
            sys::rename(&own, &path).unwrap();
        }
        self.removed += 1;
    }

    /// Uses its own name of a lower hard link of which every process has a name.
    fn use_link(&mut self) {
        if self.linked >= LINKS {
            return;
        }
        let path = self.root.join(link_name(self.linked, &self.worker.to_string()));
        sys::append(&path, format!("{}\n", self.worker).as_bytes()).unwrap();
        if self.linked.is_multiple_of(2) {
            sys::unlink(&path).unwrap();
        }
        self.linked += 1;
    }

    /// Moves a directory that all processes move and make files in.
    fn move_common(&mut self) {
        let (number, from, to) = (self.rng.below(MOVING), self.rng.below(3), self.rng.below(3));
        let [from, to] = [from, to].map(|at| self.root.join(&moving_places(number)[at as usize]));
        if from != to {
            match sys::rename(&from, &to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => panic!("{} to {}: {errno}", from.display(), to.display()),
            }
        }
    }

    /// Calls `act` with the place of the moving directory `number`, until that place did not change in the meantime.
    fn in_moving<T>(&self, number: u64, act: impl Fn(&Path) -> Result<T, Errno>) -> T {
        for _ in 0..100_000 {
            for place in moving_places(number) {
                match act(&self.root.join(place)) {
                    Err(Errno::NOENT) => {}
                    done => return done.unwrap_or_else(|errno| panic!("directory {number} that moves: {errno}")),
                }
            }
        }
        panic!("the directory {number} that moves is nowhere");
    }

    fn make_in_moving(&mut self) {
        let number = self.rng.below(MOVING);
        let name = format!("{}-{}", self.worker, self.made[number as usize]);
        self.in_moving(number, |place| sys::create(&place.join(&name), b"made"));
        self.made[number as usize] += 1;
    }

    /// Lists a moving directory. No file may be missing at any moment.
    fn list_moving(&mut self) {
        let number = self.rng.below(MOVING);
        let listed = self.in_moving(number, sys::readdir);
        let names: std::collections::BTreeSet<String> =
            listed.into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
        let own = (0..self.made[number as usize]).map(|at| format!("{}-{at}", self.worker));
        let missing: Vec<String> =
            own.chain((0..LOW).map(|at| format!("low{at}"))).filter(|n| !names.contains(n)).collect();
        assert!(missing.is_empty(), "{missing:?} missing in directory {number} that moves: {names:?}");
    }

    /// The final steps, and a check that everything is where and what it should be.
    fn end(mut self) {
        while self.appended < COMMON {
            self.append_to_common();
        }
        while self.removed < COMMON {
            self.remove_common();
        }
        while self.linked < LINKS {
            self.use_link();
        }
        self.things.iter().for_each(|(path, thing)| thing.check(path));
    }
}

/// The places of the directory `number` that moves; it is in one of them.
fn moving_places(number: u64) -> [String; 3] {
    [format!("moving/a{number}"), format!("moving/b{number}"), format!("moving/in/c{number}")]
}

/// A name of the lower hard link `number`: a worker's, or `keep`, which is never touched.
fn link_name(number: u64, whose: &str) -> String {
    format!("links/h{number}-{whose}")
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

/// One of the sixteen processes. Prints how many sequences it has run.
#[test]
#[ignore = "a process of another test"]
fn storm_worker() {
    let root = std::env::var_os(ROOT).map(PathBuf::from).expect("started by the storm");
    let worker = number(WORKER, 0);
    let driver = if std::env::var_os(KERNEL).is_some() { Driver::Overlayfs } else { Driver::Stratafs };
    let indexed = std::env::var_os(INDEXED).is_some();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let is_time = || duration().is_zero() || started.elapsed() < duration();
    std::thread::scope(|scope| {
        let wanderer = scope.spawn(|| wander(&root, worker, &stop));
        let sequences = scope.spawn(|| {
            let run = |sequence: Sequence| sequence.run(&root, driver, indexed);
            Sequence::all_of(worker).take_while(|_| is_time()).map(run).count()
        });
        let outcome = sequences.join();
        if outcome.is_ok() {
            // If the sequences took less than the wanted time.
            std::thread::sleep(duration().saturating_sub(started.elapsed()));
        }
        stop.store(true, Ordering::Relaxed);
        wanderer.join().unwrap();
        println!("\n{RAN}{}", outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
}

/// Time between two checkpoints.
pub const PERIOD: Duration = Duration::from_millis(50);

/// The most layers of a mount by the kernel (`OVL_MAX_STACK`).
pub const KERNEL_LAYERS: usize = 500;

/// Tells the other thread to stop when it is dropped, even in a panic.
pub struct Last<'a>(pub &'a AtomicBool);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a process prints before the number of its sequences.
const RAN: &str = "sequences: ";

/// The processes. They are killed if the test ends before them.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(mount: &Mount) -> Self {
        let start = |worker: u64| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "storm::storm_worker", "--ignored", "--nocapture", "--test-threads=1"]);
            command.env(ROOT, mount.root()).env(WORKER, worker.to_string());
            if mount.driver() == Driver::Overlayfs {
                command.env(KERNEL, "1");
            }
            if is_indexed(mount) {
                command.env(INDEXED, "1");
            }
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        Self((0..PROCESSES).map(start).collect())
    }

    /// As [`Self::join`], and makes a checkpoint every [`PERIOD`] meanwhile.
    fn join_beside_checkpoints(self, mount: &mut Mount) -> Vec<u64> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let checkpoints = scope.spawn(|| {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    let next = Instant::now() + PERIOD;
                    mount.checkpoint();
                    count += 1;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                count
            });
            let ran = {
                let _last = Last(&over);
                self.join()
            };
            let count = checkpoints.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            eprintln!("{count} checkpoints");
            assert!(count > 5, "only {count} checkpoints");
            ran
        })
    }

    /// Waits for all. Returns the number of sequences that each has run.
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
            // `kill` fails for a process that has ended.
            drop((child.kill(), child.wait()));
        }
    }
}

/// Compares everything with the models. `ran` are the numbers of sequences of the processes. With `counts_links`, also
/// compares link counts. Returns the content of the shared directories.
fn check_all(mount: &Mount, ran: &[u64], counts_links: bool) -> BTreeMap<String, String> {
    for (worker, &ran) in (0..).zip(ran) {
        for (round, sequence) in (0..).zip(Sequence::all_of(worker)) {
            sequence.check(mount, round < ran, counts_links);
        }
    }
    for number in 0..COMMON {
        let text = sys::text(&mount.at(&format!("common/c{number}")));
        assert_lines_of_all(&text, &format!("common/c{number}"));
        let path = mount.at(&format!("common/u{number}"));
        if number.is_multiple_of(2) {
            assert_eq!(sys::lstat(&path).err(), Some(Errno::NOENT), "{}", path.display());
        } else {
            assert!(sys::text(&path).parse::<u64>().is_ok_and(|worker| worker < PROCESSES), "{}", path.display());
        }
    }
    (0..LINKS).for_each(|number| check_link(mount, number, is_indexed(mount)));
    for number in 0..MOVING {
        let places = moving_places(number);
        assert_eq!(places.iter().filter(|place| sys::exists(&mount.at(place))).count(), 1, "{places:?}");
    }
    tree::snapshot(mount.root(), false)
        .into_iter()
        .filter(|(path, _)| ["shared", "common", "links", "moving"].iter().any(|part| path.starts_with(part)))
        .map(|(path, line)| (path, line.split(' ').filter(|word| !word.starts_with("mtime=")).collect()))
        .collect()
}

fn is_indexed(mount: &Mount) -> bool {
    mount.layers().options.iter().any(|option| option == "index=on")
}

fn assert_lines_of_all(text: &str, what: &str) {
    let mut lines: Vec<&str> = text.strip_prefix("low\n").expect("the lower content").lines().collect();
    lines.sort_by_key(|line| line.parse::<u64>().expect("a number"));
    let all: Vec<String> = (0..PROCESSES).map(|worker| worker.to_string()).collect();
    assert_eq!(lines, all, "{what}");
}

/// With an index all names are one file; else each that was written to is a file of its own.
fn check_link(mount: &Mount, number: u64, indexed: bool) {
    let keep = mount.at(&link_name(number, "keep"));
    let left = if number.is_multiple_of(2) { 0 } else { PROCESSES };
    if indexed {
        assert_lines_of_all(&sys::text(&keep), &keep.display().to_string());
        assert_eq!(sys::lstat(&keep).unwrap().st_nlink, left + 1, "{}", keep.display());
    } else {
        assert_eq!(sys::text(&keep), "low\n", "{}", keep.display());
    }
    for worker in 0..PROCESSES {
        let path = mount.at(&link_name(number, &worker.to_string()));
        if left == 0 {
            assert_eq!(sys::lstat(&path).err(), Some(Errno::NOENT), "{}", path.display());
        } else if indexed {
            assert_eq!(sys::ino(&path), sys::ino(&keep), "{}", path.display());
        } else {
            assert_eq!(sys::text(&path), format!("low\n{worker}\n"), "{}", path.display());
        }
    }
}

/// The lower layer of what all share.
fn shared_text() -> String {
    let mut text: String = SHARED.iter().map(|shared| format!("dir {shared}\n")).collect();
    for (worker, number) in (0..PROCESSES).flat_map(|worker| (0..THINGS / 2).map(move |number| (worker, number))) {
        text.push_str(&Thing::new(number).layer_text(&first_place(worker, number)));
    }
    for number in 0..COMMON {
        text.push_str(&format!("file common/c{number} \"low\\n\"\nfile common/u{number} \"low\\n\"\n"));
    }
    for number in 0..LINKS {
        let keep = link_name(number, "keep");
        text.push_str(&format!("file {keep} \"low\\n\"\n"));
        for worker in 0..PROCESSES {
            text.push_str(&format!("hard {} {keep}\n", link_name(number, &worker.to_string())));
        }
    }
    text.push_str("dir moving/in\n");
    for number in 0..MOVING {
        let [first, ..] = moving_places(number);
        text.push_str(&(0..LOW).map(|at| format!("file {first}/low{at} \"low\"\n")).collect::<String>());
    }
    text
}

/// Runs the storm on a mount by `driver` with `options`, whose upper is reached through `upper`. With `checkpoints`,
/// these are made at the same time.
fn storm(driver: Driver, options: &[&str], upper: Upper, checkpoints: bool) {
    let deepest = (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.layers.len()).max().unwrap();
    let mut stack = options.iter().fold(Stack::new().upper_on(upper), |stack, option| stack.option(option));
    for number in 0..deepest {
        let mut text: String =
            (0..PROCESSES).flat_map(Sequence::all_of).map(|sequence| sequence.text(number)).collect();
        if number == 0 {
            text.push_str(&shared_text());
        }
        stack = stack.lower(&text);
    }
    let mut mount = stack.mount(driver);
    let started = Instant::now();
    let crowd = Crowd::start(&mount);
    let ran = if checkpoints { crowd.join_beside_checkpoints(&mut mount) } else { crowd.join() };
    eprintln!("{} sequences in {:?}", ran.iter().sum::<u64>(), started.elapsed());
    let seen = check_all(&mount, &ran, true);
    let mount = mount.remount(driver);
    assert_eq!(check_all(&mount, &ran, !checkpoints), seen);
    if driver == Driver::Stratafs && mount.layers().lowers.len() <= KERNEL_LAYERS {
        let layers = mount.unmount();
        // In an upper, the kernel lists whiteouts by attribute that are not directly below its root; in a lower layer it
        // does not.
        let layers = if upper == Upper::XattrWhiteouts { layers.restack() } else { layers };
        assert_eq!(check_all(&layers.mount(Driver::Overlayfs), &ran, !checkpoints), seen);
    }
}

macro_rules! storms {
    ($($test:ident $driver:ident $options:expr, $upper:ident $(, $inventories:ident)?;)*) => {$(
        #[test]
        fn $test() {
            let name = concat!("model::storm::", stringify!($test));
            run_test_within(time_limit(), name, Driver::$driver, |driver| {
                $(crate::common::$inventories();)?
                storm(driver, &$options, Upper::$upper, false);
            });
        }
    )*};
}

/// Twenty checkpoints a second change nothing for the processes, and the kernel's overlayfs mounts the layers.
#[test]
fn stratafs_beside_checkpoints() {
    run_test_within(time_limit(), "model::storm::stratafs_beside_checkpoints", Driver::Stratafs, |driver| {
        storm(driver, &[], Upper::Plain, true);
    });
}

storms! {
    overlayfs Overlayfs [], Plain;
    overlayfs_indexed Overlayfs ["index=on", "metacopy=on"], Plain;
    stratafs Stratafs [], Plain;
    stratafs_indexed Stratafs ["index=on"], Plain;
    stratafs_metacopy Stratafs ["metacopy=on"], Plain;
    stratafs_indexed_metacopy Stratafs ["index=on", "metacopy=on"], Plain;
    stratafs_with_inventories Stratafs ["index=on"], Plain, use_inventories;
    stratafs_with_xattr_whiteouts Stratafs [], XattrWhiteouts;
}
