//! Processes change files all the time, by calls and through mappings, and a checkpoint is made every 50 ms. At each
//! checkpoint, the processes are frozen and the mount is read. The layers of the checkpoint must hold exactly what was
//! read; they are compared after the processes have continued.
//!
//! With `STRATAFS_SOAK=1`, this takes a minute.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::Signal;

use crate::common::sys::{self, Mapping, RenameFlags};
use crate::common::{Driver, Errno, Mount, Stack, run_test_within, tree};
use crate::number;
use crate::rng::Rng;
use crate::storm::{KERNEL_LAYERS, PERIOD, duration};

const PROCESSES: u64 = 4;

/// Checkpoints of the short form.
const FEW: usize = 25;

/// Tells a process where to work: the mount.
const ROOT: &str = "STRATAFS_BESIDE_ROOT";
/// Tells a process its number.
const WORKER: &str = "STRATAFS_BESIDE_WORKER";

/// Names that all processes use; some are in the lower layer.
const PATHS: [&str; 14] =
    ["a", "b", "d", "d/a", "d/b", "d/in", "d/in/a", "d/in/b", "e", "e/a", "low", "low/a", "low/b", "low/in/a"];

const LOWER: &str =
    "file low/a \"low\\n\"\nfile low/b fill=20000\nfile low/in/a \"in\\n\"\nhard low/in/hard low/a\nfile b \"b\\n\"";

/// Errors that the processes may get, because others change the same names.
const EXPECTED: [Errno; 9] = [
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTDIR,
    Errno::ISDIR,
    Errno::NOTEMPTY,
    Errno::INVAL,
    Errno::PERM,
    Errno::MLINK,
    Errno::LOOP,
];

/// A file of its own that a process keeps open and mapped. It writes one page after the other, over and over.
struct Log {
    file: File,
    mapping: Mapping,
    count: u64,
}

const PAGES: u64 = 8;
const PAGE: u64 = 4096;

impl Log {
    fn new(root: &Path, worker: u64) -> Self {
        let flags = OFlags::CREATE | OFlags::RDWR;
        let file = sys::open(&root.join(format!("log{worker}")), flags, 0o644).unwrap();
        rustix::fs::ftruncate(&file, 2 * PAGES * PAGE).unwrap();
        let mapping = Mapping::new(&file, (PAGES * PAGE) as usize, true);
        Self { file, mapping, count: 0 }
    }

    /// The next page through the mapping, then the same by a call in the second half.
    fn step(&mut self) {
        let at = self.count % PAGES * PAGE;
        self.count += 1;
        let text = self.count.to_le_bytes();
        self.mapping.store(at as usize, &text);
        sys::pwrite(&self.file, &text, PAGES * PAGE + at).unwrap();
    }
}

fn step(rng: &mut Rng, root: &Path) -> Result<(), Errno> {
    let mut path = || root.join(*rng.pick(&PATHS));
    let (one, other) = (path(), path());
    let text = vec![b'a' + (rng.below(26) as u8); *rng.pick(&[1, 100, 5000])];
    match rng.below(16) {
        0..3 => sys::create(&one, &text),
        3..5 => sys::append(&one, &text),
        5 => sys::write_at(&one, 50, &text),
        6 => sys::truncate(&one, 70),
        7 => sys::mkdir(&one, 0o755),
        8 => sys::unlink(&one),
        9 => sys::rmdir(&one),
        10 | 11 => sys::rename(&one, &other),
        12 => sys::rename_with(&one, &other, RenameFlags::EXCHANGE),
        13 => sys::link(&one, &other),
        14 => sys::symlink("somewhere", &one),
        _ => sys::chmod(&one, *rng.pick(&[0o600, 0o644, 0o755])),
    }
}

/// One of the processes. It works until it is killed.
#[test]
#[ignore = "a process of another test"]
fn beside_worker() {
    let root = std::env::var_os(ROOT).map(PathBuf::from).expect("started by another test");
    let worker = number(WORKER, 0);
    let mut rng = Rng::new(number("STRATAFS_MODEL_SEED", 1) + worker);
    let mut log = Log::new(&root, worker);
    loop {
        log.step();
        if let Err(errno) = step(&mut rng, &root) {
            assert!(EXPECTED.contains(&errno), "{errno}");
        }
    }
}

/// The processes. They are killed when this is dropped.
struct Workers(Vec<Child>);

impl Workers {
    fn start(root: &Path) -> Self {
        let start = |worker: u64| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "beside::beside_worker", "--ignored", "--nocapture", "--test-threads=1"]);
            command.env(ROOT, root).env(WORKER, worker.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        };
        let workers = Self((0..PROCESSES).map(start).collect());
        let deadline = Instant::now() + Duration::from_secs(60);
        let has_size = |worker: u64| {
            std::fs::metadata(root.join(format!("log{worker}"))).is_ok_and(|log| log.len() == 2 * PAGES * PAGE)
        };
        while !(0..PROCESSES).all(has_size) {
            assert!(Instant::now() < deadline, "the processes do not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        workers
    }

    /// Stops all processes while `act` runs. None is in a call then.
    fn frozen<T>(&mut self, act: impl FnOnce() -> T) -> T {
        self.0.iter().for_each(|child| sys::signal(child.id(), Signal::STOP));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.0.iter().all(|child| is_stopped(child.id())) {
            assert!(Instant::now() < deadline, "a process does not stop");
            std::thread::yield_now();
        }
        let done = act();
        self.0.iter().for_each(|child| sys::signal(child.id(), Signal::CONT));
        done
    }

    /// Asserts that all of them still work.
    fn check(&mut self) {
        for child in &mut self.0 {
            assert_eq!(child.try_wait().unwrap(), None, "a process has ended");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // `kill` fails for a process that has ended.
            drop((child.kill(), child.wait()));
        }
    }
}

/// True if all threads of a process stand still.
fn is_stopped(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// The tree of the layers that a mount has now, read through another mount.
fn of_layers(mount: &Mount) -> BTreeMap<String, String> {
    let mut layers = mount.layers().fork();
    (layers.upper, layers.work) = (None, None);
    let driver = if layers.lowers.len() <= KERNEL_LAYERS { Driver::Overlayfs } else { Driver::Stratafs };
    // They are compared with themselves when the mount ends; each time would be too often.
    layers.originals.clear();
    let mount = layers.mount(driver);
    tree::snapshot(mount.root(), true)
}

/// The pages of a log, as counts.
fn pages(content: &[u8], first: u64) -> Vec<u64> {
    let page = |at: u64| {
        let at = ((first + at) * PAGE) as usize;
        u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
    };
    (0..PAGES).map(page).collect()
}

/// Asserts that the pages are those of one moment: each was written right after the one before.
fn assert_one_moment(layer: &Path, what: &str) {
    for worker in 0..PROCESSES {
        let content = sys::read(&layer.join(format!("log{worker}"))).unwrap();
        for first in [0, PAGES] {
            let pages = pages(&content, first);
            let last = pages.iter().copied().max().unwrap();
            for (at, &page) in (0..).zip(&pages) {
                let expected =
                    (0..PAGES).map(|back| last.saturating_sub(back)).find(|&n| n > 0 && (n - 1) % PAGES == at);
                assert_eq!(page, expected.unwrap_or(0), "{what}: log{worker}: {pages:?}");
            }
        }
    }
}

fn beside(options: &[&str]) {
    let stack = options.iter().fold(Stack::new().lower(LOWER), |stack, option| stack.stratafs_option(option));
    let mut mount = stack.mount(Driver::Stratafs);
    let mut workers = Workers::start(mount.root());
    let (started, mut count, mut longest) = (Instant::now(), 0, 0);
    while count < FEW || started.elapsed() < duration() {
        let next = Instant::now() + PERIOD;
        let shown = workers.frozen(|| {
            // If a mapping is not passed through, pages that were written are only in the kernel until `fsync(2)`. (With
            // some kernels, `syncfs(2)` does not wait for a FUSE mount's pages.)
            for worker in 0..PROCESSES {
                let log = mount.root().join(format!("log{worker}"));
                rustix::fs::fsync(sys::open(&log, OFlags::RDONLY, 0).unwrap()).unwrap();
            }
            let shown = tree::snapshot(mount.root(), true);
            let answer = mount.try_checkpoint().unwrap_or_else(|error| panic!("checkpoint {count}: {error}"));
            longest = longest.max(answer.paused_us.unwrap());
            assert!(answer.moved_files >= Some(PROCESSES), "the logs are written to");
            shown
        });
        let difference = tree::diff(&of_layers(&mount), &shown);
        assert!(difference.is_empty(), "checkpoint {count}:\n{difference}");
        assert_one_moment(&mount.layers().lowers[0], &format!("checkpoint {count}"));
        workers.check();
        count += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    eprintln!("{count} checkpoints in {:?}; requests waited for {longest} µs at most", started.elapsed());
    drop(workers);
    // That asserts that no layer has changed since it was made.
    mount.remount(Driver::Stratafs);
}

macro_rules! besides {
    ($($test:ident $options:expr;)*) => {$(
        #[test]
        fn $test() {
            let name = concat!("model::beside::", stringify!($test));
            run_test_within(Duration::from_secs(300) + 20 * duration(), name, Driver::Stratafs, |_| beside(&$options));
        }
    )*};
}

besides! {
    every_checkpoint_is_what_was_read [];
    without_passthrough ["passthrough=off"];
}
