//! Many processes, many requests, and a full disk. Short here; `STRATAFS_SOAK=1` (`scripts/soak`) runs the sizes
//! that the names say. Each prints its figures.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Driver, Errno, Mount, Stack, run_test_within, sys};
use rustix::fs::OFlags;
use rustix::process::Signal;

/// Longest time that a test may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(3000);

/// `long` for the long form.
fn amount(short: usize, long: usize) -> usize {
    if std::env::var_os("STRATAFS_SOAK").is_some_and(|value| value == "1") { long } else { short }
}

/// Prints a figure, and notes it for `scripts/test` and `scripts/soak`.
fn tell(figure: &str) {
    println!("{figure}");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{figure}\n").as_bytes()).unwrap();
}

impl std::fmt::Display for Held {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} KiB and {} descriptors", self.memory_kib, self.descriptors)
    }
}

/// What the daemon holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory_kib: usize,
    descriptors: usize,
}

/// A figure of the daemon's `/proc/PID/status`, in KiB.
fn memory_kib(mount: &Mount, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mount.daemon().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(mount: &Mount) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", mount.daemon().unwrap())).unwrap().count()
}

fn held(mount: &Mount) -> Held {
    Held { memory_kib: memory_kib(mount, "VmRSS"), descriptors: descriptors(mount) }
}

/// Does `work`. Also returns the most that the daemon held: memory as the kernel records it, descriptors from 20 samples
/// a second.
fn peak_of<T>(mount: &Mount, work: impl FnOnce() -> T) -> (T, Held) {
    let (done, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(descriptors(mount), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        // On a failure, the scope must not wait for the sampler.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        result
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    (result, Held { memory_kib: memory_kib(mount, "VmHWM"), descriptors: most.into_inner() })
}

/// Waits until the daemon holds little more than at first, and says how much.
#[track_caller]
fn assert_given_back(what: &str, mount: &Mount, before: Held, allowed_kib: usize) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let now = held(mount);
        let is_back = now.memory_kib <= before.memory_kib + allowed_kib && now.descriptors <= before.descriptors + 64;
        if is_back || Instant::now() > patience {
            tell(&format!("{what}: {before} before, {now} after"));
            assert!(is_back, "{what}: not given back: {before:?} before, {now:?} after");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn many(name: &'static str, body: impl FnOnce() + Send + 'static) {
    run_test_within(LIMIT, name, Driver::Stratafs, |_| body());
}

/// The directory in which [`a_worker`] works, and how often; unset: this is no worker.
const WORKER: &str = "STRATAFS_TEST_WORKER";

/// The work of each process of [`creations_and_removals`].
#[test]
#[ignore = "a process of another test"]
fn a_worker() {
    let order = std::env::var_os(WORKER).expect("started by creations_and_removals");
    let (rounds, path) = order.to_str().unwrap().split_once(' ').unwrap();
    let rounds: usize = rounds.parse().unwrap();
    for at in 0..rounds {
        let path = Path::new(path).join(format!("{}-{at}", std::process::id()));
        sys::create(&path, b"content").unwrap();
        sys::unlink(&path).unwrap();
    }
}

fn start_worker(directory: &Path, rounds: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_worker", "--ignored"])
        .env(WORKER, format!("{rounds} {}", directory.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// 1,000,000 creations and removals by 200 processes at a time.
#[test]
fn creations_and_removals() {
    many("creations_and_removals", || {
        let (crowd, each) = (amount(50, 200), amount(100, 5000));
        let mount = Stack::new().lower("dir d").mount(Driver::Stratafs);
        sys::create(&mount.at("d/first"), b"").unwrap();
        let (before, started) = (held(&mount), Instant::now());
        let (outcomes, peak) = peak_of(&mount, || {
            let workers: Vec<Child> = (0..crowd).map(|_| start_worker(&mount.at("d"), each)).collect();
            workers.into_iter().map(|mut worker| worker.wait().unwrap().success()).collect::<Vec<_>>()
        });
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(outcomes, vec![true; crowd]);
        assert_eq!(sys::names(&mount.at("d")), ["first"]);
        let what =
            format!("{} creations and removals by {crowd} processes, {seconds:.0} s, {peak} at most", crowd * each);
        assert_given_back(&what, &mount, before, 16 << 10);
    });
}

/// 10,000 open files.
#[test]
fn open_files() {
    many("open_files", || {
        let count = amount(1000, 10_000);
        let mount = Stack::new().lower("dir d").mount(Driver::Stratafs);
        let before = held(&mount);
        let started = Instant::now();
        let files: Vec<File> = (0..count)
            .map(|at| sys::open(&mount.at(&at.to_string()), OFlags::CREATE | OFlags::RDWR, 0o644).unwrap())
            .collect();
        for (at, file) in files.iter().enumerate() {
            sys::pwrite(file, at.to_string().as_bytes(), 0).unwrap();
        }
        let most = held(&mount);
        let what = format!("{count} open files, {:.0} s, {most} at most", started.elapsed().as_secs_f64());
        for (at, file) in files.iter().enumerate() {
            assert_eq!(sys::read_file(file).unwrap(), at.to_string().as_bytes());
        }
        drop(files);
        for at in 0..count {
            sys::unlink(&mount.at(&at.to_string())).unwrap();
        }
        assert_given_back(&what, &mount, before, 16 << 10);
    });
}

/// A directory of 1,000,000 entries.
#[test]
fn large_directory() {
    many("large_directory", || {
        let count = amount(10_000, 1_000_000);
        let mut layers = Stack::new().lower("dir d").build();
        for at in 0..count {
            sys::create(&layers.lowers[0].join(format!("d/{at:07}")), b"").unwrap();
        }
        layers.originals.clear();
        let mount = layers.mount(Driver::Stratafs);
        let (before, started) = (held(&mount), Instant::now());
        sys::create(&mount.at("d/new"), b"").unwrap();
        sys::unlink(&mount.at("d/0000000")).unwrap();
        let mut names = sys::names(&mount.at("d"));
        names.dedup();
        assert_eq!(names.len(), count);
        let seconds = started.elapsed().as_secs_f64();
        let now = held(&mount);
        tell(&format!("a directory of {count}, {seconds:.0} s: {before} before, {now} after listing it"));
        assert!(sys::exists(&mount.at(&format!("d/{:07}", count - 1))));
    });
}

/// 100 containers' worth of mounts at once.
#[test]
fn mounts_at_once() {
    many("mounts_at_once", || {
        let count = amount(20, 100);
        let mounts: Vec<Mount> =
            (0..count).map(|_| Stack::new().lower("file d/f \"lower\\n\"").mount(Driver::Stratafs)).collect();
        std::thread::scope(|scope| {
            for (at, mount) in mounts.iter().enumerate() {
                scope.spawn(move || sys::append(&mount.at("d/f"), format!("{at}\n").as_bytes()).unwrap());
            }
        });
        let memory: usize = mounts.iter().map(|mount| held(mount).memory_kib).sum();
        let most = mounts.iter().map(|mount| memory_kib(mount, "VmHWM")).max().unwrap();
        let open: usize = mounts.iter().map(descriptors).sum();
        tell(&format!("{count} mounts: {memory} KiB resident in all, {most} KiB in one at most, {open} descriptors"));
        for (at, mount) in mounts.iter().enumerate() {
            assert_eq!(sys::text(&mount.at("d/f")), format!("lower\n{at}\n"));
        }
    });
}

/// The driver is stopped and continued during work.
#[test]
fn stopped_and_continued() {
    many("stopped_and_continued", || {
        let rounds = amount(10, 200);
        let mount = Stack::new().lower("file f fill=100000").mount(Driver::Stratafs);
        let daemon = mount.daemon().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for at in 0..rounds * 20 {
                    let path = mount.at(&format!("new{at}"));
                    sys::create(&path, &vec![at as u8; 5000]).unwrap();
                    sys::append(&mount.at("f"), b"more\n").unwrap();
                }
            });
            for _ in 0..rounds {
                sys::signal(daemon, Signal::STOP);
                std::thread::sleep(Duration::from_millis(20));
                sys::signal(daemon, Signal::CONT);
                std::thread::sleep(Duration::from_millis(5));
            }
            writer.join().unwrap();
        });
        let mount = mount.remount(Driver::Stratafs);
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_size, 100_000 + 5 * 20 * rounds as i64);
        for at in 0..rounds * 20 {
            assert_eq!(sys::read(&mount.at(&format!("new{at}"))).unwrap(), vec![at as u8; 5000]);
        }
    });
}

/// The kernel's caches, those of the whole machine, are dropped while they are dirty.
#[test]
#[ignore = "long: it drops the whole machine's cache, in scripts/soak"]
fn caches_dropped_while_dirty() {
    many("caches_dropped_while_dirty", || {
        for option in ["writeback", "passthrough=off", "passthrough=upper"] {
            let mount = Stack::new().lower("file f fill=3000000").stratafs_option(option).mount(Driver::Stratafs);
            let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
            for at in 0..3000_u64 {
                sys::pwrite(&file, &[at as u8; 1000], at * 1000).unwrap();
                if at % 300 == 0 {
                    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
                }
            }
            drop(file);
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let content = sys::read(&mount.at("f")).unwrap();
            assert!((0..3000).all(|at| content[at * 1000..][..1000] == [at as u8; 1000]), "{option}");
        }
    });
}

/// A small generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// The content of every file, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// One random operation near the limit; `files` is updated to the acknowledged state. Returns true if there was no room.
fn step(root: &Path, dice: &mut Dice, files: &mut Files) -> bool {
    let name = format!("f{}", dice.below(40));
    let other = format!("f{}", dice.below(40));
    let path = root.join(&name);
    let length = usize::try_from(dice.below(60_000)).unwrap();
    let outcome = match (dice.below(10), files.contains_key(&name)) {
        (0..=5, known) => {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND;
            let opened = sys::open(&path, flags, 0o644);
            let before = files.get(&name).map_or(0, Vec::len);
            let written = opened.and_then(|file| {
                files.entry(name.clone()).or_default();
                let written = sys::write_all(&file, &vec![b'a' + (length % 26) as u8; length]);
                // Full in the middle of a write: the first part is there.
                let now = usize::try_from(rustix::fs::fstat(&file).unwrap().st_size).unwrap();
                assert!(now >= before && now <= before + length, "{name}: {before} + {length} became {now}");
                assert!(written.is_err() || now == before + length, "{name}: {before} + {length} became {now}");
                files.get_mut(&name).unwrap().resize(now, b'a' + (length % 26) as u8);
                written
            });
            assert!(known || written.is_ok() || files.contains_key(&name) == sys::exists(&path), "{name}");
            written
        }
        (6..=7, true) => {
            let removed = sys::unlink(&path);
            if removed.is_ok() {
                files.remove(&name);
            }
            removed
        }
        (8, true) => {
            let renamed = sys::rename(&path, &root.join(&other));
            if renamed.is_ok() {
                let content = files.remove(&name).unwrap();
                files.insert(other, content);
            }
            renamed
        }
        (_, true) => sys::chmod(&path, 0o600),
        (_, false) => Ok(()),
    };
    match outcome {
        Ok(()) => false,
        Err(Errno::NOSPC) => true,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Every existing file with its content.
fn found(root: &Path) -> Files {
    sys::names(root).into_iter().map(|name| (name.clone(), sys::read(&root.join(&name)).unwrap())).collect()
}

/// 1,000 operations with almost no space; then everything is deleted.
fn on_a_full_disk(driver: Driver) {
    let base = common::stack::Scratch::new(&common::stack::base(), "stratafs-full-");
    rustix::mount::mount("tmpfs", base.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=1600k"))
        .unwrap();
    let lower: String = (0..20).map(|at| format!("file f{at} fill={}\n", at * 1000)).collect();
    let mut layers = Stack::new().build_in(base.path());
    let aside = tempfile::Builder::new().prefix("stratafs-lower-").tempdir_in(common::stack::base()).unwrap();
    common::tree::build(aside.path(), &lower);
    layers.originals.push(common::tree::snapshot(aside.path(), true));
    layers.lowers.push(aside.path().to_owned());
    let mut files: Files = (0..20).map(|at| (format!("f{at}"), common::tree::pattern(at * 1000))).collect();
    let mount = layers.mount(driver);
    let mut dice = Dice(7);
    let refused = (0..1000).filter(|_| step(mount.root(), &mut dice, &mut files)).count();
    tell(&format!("full disk, {driver:?}: {refused} of 1000 operations refused"));
    assert!(refused > 50, "the disk was hardly full: {refused}");
    assert!(found(mount.root()) == files, "torn files");
    let mount = mount.remount(driver);
    assert!(found(mount.root()) == files, "torn files after a remount");
    // Fill it to the last page.
    let filler = sys::open(&mount.at("filler"), OFlags::CREATE | OFlags::WRONLY, 0o644).unwrap();
    while rustix::io::write(&filler, &[1; 4096]).is_ok() {}
    drop(filler);
    for name in files.keys() {
        sys::unlink(&mount.at(name)).unwrap_or_else(|error| panic!("remove {name} on a full disk: {error}"));
    }
    assert_eq!(sys::names(mount.root()), ["filler"]);
    drop(mount);
    drop(aside);
    rustix::mount::unmount(base.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// The kernel's overlayfs does the same.
#[test]
fn full_disk_overlayfs() {
    run_test_within(LIMIT, "full_disk_overlayfs", Driver::Overlayfs, on_a_full_disk);
}

#[test]
fn full_disk_stratafs() {
    run_test_within(LIMIT, "full_disk_stratafs", Driver::Stratafs, on_a_full_disk);
}
