//! kill -9 of `strata` at every system call that changes the store, a failure of every such call, and a full disk. Afterwards the
//! store is in the state before or after, `verify` finds no damage, and acknowledged changes are there.
//!
//! strace kills or fails the n-th call of one kind in each thread, for every kind and every n until a run ends without harm.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use stratafs::container::{Container, CreateOptions, Driver};
use stratafs::store::Store;
use stratafs::store::save::Format;
use stratafs::tar::compression::Compression;

use super::fixture::*;
use super::liar::{Image, Liar};
use super::tar_build::Tar;

/// Calls that publish, remove or flush. A `?`: not every architecture has it.
pub(super) const PUBLISHING: &[&str] = &[
    "?rename",
    "renameat",
    "renameat2",
    "?link",
    "linkat",
    "?unlink",
    "unlinkat",
    "?rmdir",
    "?mkdir",
    "mkdirat",
    "fsync",
    "fdatasync",
    "syncfs",
    "flock",
    "?chmod",
    "fchmodat",
    "fchmod",
];
/// Calls that make or fill staged files.
const FILLING: &[&str] = &[
    "openat",
    "openat2",
    "write",
    "pwrite64",
    "pread64",
    "copy_file_range",
    "mknodat",
    "symlinkat",
    "fsetxattr",
    "lsetxattr",
    "fchown",
    "fchownat",
    "utimensat",
    "ftruncate",
    "getdents64",
];
/// Of the calls that fill files, only one in this many is harmed; all of them with `STRATAFS_SOAK=1`.
const STRIDE: usize = 3;
/// No command makes more calls of one kind in one thread.
const MOST_CALLS: u32 = 1000;

/// An initial store, and the archives for the commands.
struct Start {
    scratch: Scratch,
    archive: PathBuf,
    rootfs: PathBuf,
    kept: Vec<u8>,
    /// It answers as long as the tests run.
    _registry: Liar,
    remote: String,
}

impl Start {
    /// `kept:1` shares its lowest layer with what is to come; `gone:1` is there to be removed; a container of `kept:1`
    /// has changes.
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.load(&one_image("kept:1", &[base_layer()])).unwrap();
        let gone = Tar::new().dir("gone").file("gone/file", "g".repeat(9000)).end();
        scratch.load(&one_image("gone:1", &[base_layer(), gone])).unwrap();
        let image = scratch.store.find("kept:1").unwrap();
        let options = CreateOptions { name: Some("c".to_owned()), driver: Driver::Overlay, ..CreateOptions::default() };
        let container = Container::create(&scratch.store, &image, &options).unwrap();
        let upper = container.dir().join("upper");
        std::fs::create_dir(upper.join("etc")).unwrap();
        std::fs::write(upper.join("etc/new"), "n").unwrap();
        let archive = scratch.dir.path().join("in.tar");
        std::fs::write(&archive, one_image("new:1", &layers())).unwrap();
        let rootfs = scratch.dir.path().join("rootfs.tar");
        std::fs::write(&rootfs, top_layer()).unwrap();
        let kept = scratch.save(&["kept:1"], Format::DockerArchive, Compression::None);
        let image = Image::of(&layers());
        let registry = Liar::start(move |asked, _| image.answer(asked));
        let remote = format!("{}/pulled:1", registry.host());
        Self { scratch, archive, rootfs, kept, _registry: registry, remote }
    }

    /// A copy of the store, to be harmed.
    fn copy(&self) -> Victim {
        let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
        let root = dir.path().join("store");
        let done = Command::new("cp").arg("-a").arg(self.scratch.store.root()).arg(&root).status().unwrap();
        assert!(done.success());
        Victim { dir, root }
    }
}

/// A docker-archive.
pub(super) fn one_image(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let members: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let list = serde_json::json!([{"Config": "c.json", "RepoTags": [name], "Layers": members}]);
    let mut files = vec![("c.json".to_owned(), config(layers, name))];
    files.extend(members.iter().cloned().zip(layers.iter().cloned()));
    files.push(("manifest.json".to_owned(), list.to_string().into_bytes()));
    tar_of(&files)
}

pub(super) struct Victim {
    pub(super) dir: tempfile::TempDir,
    pub(super) root: PathBuf,
}

impl Victim {
    /// Runs `strata` under `wrapper`, for five minutes at most.
    pub(super) fn strata(&self, wrapper: &[&str], args: &[&str]) -> Output {
        Command::new("timeout")
            .args(["--signal=KILL", "300"])
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_strata"))
            .arg("--root")
            .arg(&self.root)
            .args(args)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            // So that it does not read passwords of the machine's users.
            .env("HOME", self.dir.path())
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("DOCKER_CONFIG")
            .output()
            .unwrap()
    }

    /// Runs `strata` with the `number`-th call of one kind in each thread replaced by `harm`. Returns `None` if no
    /// call was harmed.
    pub(super) fn harmed(&self, call: &str, harm: &str, number: u32, args: &[&str]) -> Option<Output> {
        let log = self.dir.path().join("strace");
        let (trace, inject) = (format!("--trace={call}"), format!("--inject={call}:{harm}:when={number}"));
        let wrapper = ["strace", "-f", "-qqq", "-o", log.to_str().unwrap(), &trace, &inject];
        let output = self.strata(&wrapper, args);
        let log = std::fs::read_to_string(&log).expect("strace; scripts/test installs it");
        let taken = log.contains("(INJECTED)") || log.contains("killed by SIGKILL");
        // The killed process may be a program that it starts.
        assert!(output.status.signal().is_none() || log.contains("killed by SIGKILL"), "{output:?}\n{log}");
        taken.then_some(output)
    }

    /// True if the last command of [`Self::harmed`] could not write its message either.
    fn could_not_tell(&self) -> bool {
        let log = std::fs::read_to_string(self.dir.path().join("strace")).unwrap();
        log.lines().any(|line| line.contains(" write(2, \"strata: ") && line.contains("(INJECTED)"))
    }

    /// Everything in the store except times and the content of `tmp`.
    fn listing(&self) -> BTreeSet<String> {
        let store = Store::open(&self.root).unwrap();
        listing_of(&store)
    }

    /// `verify` finds nothing, and the untouched image is complete.
    fn assert_sound(&self, start: &Start, what: &str) {
        let output = self.strata(&[], &["verify"]);
        assert!(output.status.success(), "{what}: {output:?}");
        let store = Store::open(&self.root).unwrap();
        let saved = save_from(&store, &["kept:1"], Format::DockerArchive, Compression::None);
        assert_eq!(saved, start.kept, "{what}");
        // Every image that is listed has all its layers.
        for image in store.images().unwrap() {
            store.layers_of(&image).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

/// The commands that change a store, those that add first.
const ADDING: &[&str] = &["load", "pull", "import", "commit", "tag"];
const REMOVING: &[&str] = &["rmi", "gc", "rm"];

fn arguments<'a>(start: &'a Start, verb: &str) -> Vec<&'a str> {
    match verb {
        "load" => vec!["load", "-q", "-i", start.archive.to_str().unwrap()],
        "pull" => vec!["pull", "-q", "--plain-http", &start.remote],
        "import" => vec!["import", start.rootfs.to_str().unwrap(), "flat:1"],
        "commit" => vec!["commit", "c", "child:1"],
        "tag" => vec!["tag", "kept:1", "kept:2"],
        "rmi" => vec!["rmi", "gone:1"],
        "gc" => vec!["gc", "--untagged"],
        _ => vec!["rm", "c"],
    }
}

/// The store after the command if nothing harms it. Before `gc`, the store has garbage.
fn unharmed(start: &Start, verb: &str, args: &[&str]) -> Sides {
    let victim = prepared(start, verb);
    let before = victim.listing();
    let output = victim.strata(&[], args);
    assert!(output.status.success(), "{verb}: {output:?}");
    Sides { before, after: victim.listing() }
}

fn prepared(start: &Start, verb: &str) -> Victim {
    let victim = start.copy();
    if verb == "gc" {
        // Another image takes the name of one, which then has none.
        let store = Store::open(&victim.root).unwrap();
        store.tag(&store.find("kept:1").unwrap(), &"gone:1".parse().unwrap()).unwrap();
    }
    victim
}

/// Harms every command at every call of these kinds; returns how often.
fn harm_everything(verbs: &[&str], calls: &[&str], harm: &str, check: &dyn Fn(&Victim, &Output, &str, &Sides)) -> u32 {
    let start = Start::new();
    let soaking = std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1");
    let mut points = 0;
    for verb in verbs {
        let args = arguments(&start, verb);
        let sides = unharmed(&start, verb, &args);
        for call in calls {
            let stride = if soaking || PUBLISHING.contains(call) { 1 } else { STRIDE };
            for number in (1..).step_by(stride) {
                assert!(number < MOST_CALLS, "{verb}: {call} does not come to its end");
                let victim = prepared(&start, verb);
                let Some(output) = victim.harmed(call, harm, number, &args) else { break };
                let what = format!("{verb}, {harm} at {call} {number}");
                victim.assert_sound(&start, &what);
                check(&victim, &output, &what, &sides);
                points += 1;
            }
        }
    }
    points
}

/// The store without and with the command.
struct Sides {
    before: BTreeSet<String>,
    after: BTreeSet<String>,
}

/// Work that was neither finished nor undone is collected by `gc`, and any writer empties `tmp`.
fn assert_collected(victim: &Victim, what: &str, sides: &Sides) {
    let collected = victim.strata(&[], &["gc"]);
    assert!(collected.status.success(), "{what}: {collected:?}");
    let now = victim.listing();
    assert!(now == sides.before || now == sides.after, "{what}: {:#?}", differences(&now, sides));
    assert_eq!(std::fs::read_dir(victim.root.join("tmp")).unwrap().count(), 0, "{what}: tmp");
}

fn killed(verbs: &[&str]) {
    let points = harm_everything(verbs, PUBLISHING, "signal=KILL", &|victim, output, what, sides| {
        if output.status.success() {
            assert_eq!(victim.listing(), sides.after, "{what}: it was acknowledged");
        }
        assert_collected(victim, what, sides);
    });
    println!("{verbs:?}: {points} kill points");
    assert!(points > 30, "only {points} kill points");
}

#[test]
fn killed_at_every_call_that_adds() {
    killed(ADDING);
}

#[test]
fn killed_at_every_call_that_removes() {
    killed(REMOVING);
}

fn failing(verbs: &[&str], harm: &str) {
    let calls = [PUBLISHING, FILLING].concat();
    let points = harm_everything(verbs, &calls, harm, &|victim, output, what, sides| {
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{what}: {told}");
        let now = victim.listing();
        // Unreadable entries are left by `gc` with a warning.
        let acknowledged = output.status.success() && !told.contains("WARN");
        assert!(!acknowledged || now == sides.after, "{what}: it was acknowledged: {:#?}", differences(&now, sides));
        let lines = u32::from(!output.status.success() && !victim.could_not_tell());
        assert_eq!(errors(&told), lines, "{what}: one line: {told}");
        if REMOVING.contains(&verbs[0]) {
            return assert_collected(victim, what, sides);
        }
        assert!(now == sides.before || now == sides.after, "{what}: {:#?}", differences(&now, sides));
    });
    println!("{verbs:?}: {points} calls");
    assert!(points > 50, "only {points} calls");
}

#[test]
fn a_load_of_which_a_call_fails_leaves_nothing_behind() {
    failing(&["load"], "error=EIO");
}

#[test]
fn a_pull_of_which_a_call_fails_leaves_nothing_behind() {
    failing(&["pull"], "error=EIO");
}

#[test]
fn a_removal_of_which_a_call_fails_can_be_done_again() {
    failing(REMOVING, "error=EIO");
}

/// Lines that are not warnings.
fn errors(told: &str) -> u32 {
    told.lines().map(|line| u32::from(!line.trim_start().starts_with("WARN"))).sum()
}

/// Entries that a store has although neither side has them, or lacks although both have them.
fn differences(now: &BTreeSet<String>, sides: &Sides) -> Vec<String> {
    let surplus = now.iter().filter(|line| !sides.before.contains(*line) && !sides.after.contains(*line));
    let missing = sides.before.intersection(&sides.after).filter(|line| !now.contains(*line));
    surplus.map(|line| format!("+ {line}")).chain(missing.map(|line| format!("- {line}"))).collect()
}

#[test]
fn few_descriptors_are_enough_or_told() {
    let start = Start::new();
    let archive = start.archive.to_str().unwrap();
    let mut failed = 0;
    for limit in 3..40 {
        let victim = start.copy();
        let before = victim.listing();
        let limits = format!("--nofile={limit}:{limit}");
        let output = victim.strata(&["prlimit", &limits], &["load", "-q", "-i", archive]);
        victim.assert_sound(&start, &limits);
        if !output.status.success() {
            assert_eq!(victim.listing(), before, "{limits}");
            failed += 1;
        }
    }
    assert!(failed > 0, "no limit was too small");
}

/// A small file system in memory, unmounted at the end.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(super) fn new(bytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
        let options = format!("size={bytes},mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "strata-test"]).arg(dir.path());
        assert!(mount.status().unwrap().success(), "mount");
        Self(dir)
    }

    fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_in_mid_load_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let big = Tar::new().dir("d").file("d/a", vec![b'a'; 300_000]).file("d/b", vec![b'b'; 300_000]).end();
    let archive = scratch.dir.path().join("big.tar");
    std::fs::write(&archive, one_image("big:1", &[base_layer(), big])).unwrap();
    let small = scratch.dir.path().join("small.tar");
    std::fs::write(&small, docker_old("x:1")).unwrap();
    let (mut failed, mut done) = (0, 0);
    for size in (200..1000).step_by(20) {
        let disk = SmallDisk::new(size << 10);
        let victim = Victim { dir: tempfile::tempdir().unwrap(), root: disk.path().join("store") };
        if !victim.strata(&[], &["load", "-q", "-i", small.to_str().unwrap()]).status.success() {
            continue;
        }
        let (before, used) = (victim.listing(), disk.used());
        let output = victim.strata(&[], &["load", "-q", "-i", archive.to_str().unwrap()]);
        let sound = victim.strata(&[], &["verify"]);
        assert!(sound.status.success(), "{size}: {sound:?}");
        if output.status.success() {
            done += 1;
            continue;
        }
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("No space left on device") && told.lines().count() == 1, "{size}: {told}");
        assert_eq!((victim.listing(), disk.used()), (before, used), "{size}: {told}");
        failed += 1;
    }
    println!("{failed} loads failed, {done} had room");
    assert!(failed > 5 && done > 5, "{failed} failed, {done} had room");
}

/// Runs `strata` repeatedly, each time with other arguments; returns its failures.
fn repeat(victim: &Victim, rounds: u32, args: &dyn Fn(u32) -> Vec<String>) -> Vec<String> {
    let mut failures = Vec::new();
    for round in 0..rounds {
        let args = args(round);
        let output = victim.strata(&[], &args.iter().map(String::as_str).collect::<Vec<_>>());
        if !output.status.success() {
            failures.push(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    failures
}

/// Several programs at once load overlapping images, remove them, collect, verify, and make, mount and remove
/// containers.
#[test]
fn everything_at_once() {
    if !super::overlayfs_for("everything_at_once") {
        return;
    }
    const ROUNDS: u32 = 12;
    let start = Start::new();
    let victim = start.copy();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let archive = |name: &str, layers: &[Vec<u8>]| {
        let path = start.scratch.dir.path().join(name.replace(':', "-"));
        std::fs::write(&path, one_image(name, layers)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let overlapping =
        [archive("a:1", &layers()), archive("b:1", &layers()[..2]), archive("c:1", &[base_layer(), top_layer()])];
    let load_and_remove = |name: &'static str, path: &str| {
        let path = path.to_owned();
        move |round: u32| match round % 2 {
            0 => words(&["load", "-q", "-i", &path]),
            _ => words(&["rmi", name]),
        }
    };
    let loads = [
        load_and_remove("a:1", &overlapping[0]),
        load_and_remove("b:1", &overlapping[1]),
        load_and_remove("c:1", &overlapping[2]),
    ];
    let containers = |round: u32| match round % 3 {
        0 => words(&["mount", "--driver", "overlay", "--name", "m", "kept:1"]),
        1 => words(&["umount", "m"]),
        _ => words(&["rm", "m"]),
    };
    let failures = std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for load in &loads {
            workers.push(scope.spawn(|| repeat(&victim, 2 * ROUNDS + 1, load)));
        }
        workers.push(scope.spawn(|| repeat(&victim, 3 * ROUNDS, &containers)));
        workers.push(scope.spawn(|| repeat(&victim, ROUNDS, &|_| words(&["gc", "--untagged"]))));
        workers.push(scope.spawn(|| repeat(&victim, ROUNDS, &|_| words(&["verify"]))));
        workers.push(scope.spawn(|| repeat(&victim, ROUNDS, &|_| words(&["save", "-o", "/dev/null", "kept:1"]))));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(failures.is_empty(), "{failures:#?}");
    victim.assert_sound(&start, "at once");
    let store = Store::open(&victim.root).unwrap();
    let mut names: Vec<String> =
        store.images().unwrap().iter().flat_map(|image| &image.names).map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["a:1", "b:1", "c:1", "gone:1", "kept:1"]);
    assert_eq!(store.gc(true).unwrap().layers, 0, "nothing was left to collect");
}
