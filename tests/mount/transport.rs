//! `transport=`: requests through rings, and mounts without rings.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::checkpoint;
use crate::common::stack::Layers;
use crate::common::sys;
use crate::common::tree::pattern;
use crate::common::{Driver, Errno, Mount, Stack, skip};
use crate::on_stratafs;

/// The kernel grants rings while `Y` is in it, to mounts that are made meanwhile.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
const STATS: &str = "user.stratafs.stats";

/// While this is held, no other test changes the switch; dropping it restores the switch.
struct Switch {
    _lock: File,
    before: String,
}

impl Switch {
    /// `None`: the kernel knows no rings, and the test is skipped.
    fn set(on: bool) -> Option<Self> {
        let Ok(before) = std::fs::read_to_string(SWITCH) else {
            skip(std::thread::current().name().unwrap_or_default(), "the kernel has no FUSE over io_uring");
            return None;
        };
        let lock = File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/rings.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let before = std::fs::read_to_string(SWITCH).unwrap_or(before);
        std::fs::write(SWITCH, if on { "Y" } else { "N" }).unwrap();
        Some(Self { _lock: lock, before })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        std::fs::write(SWITCH, &self.before).unwrap();
    }
}

/// Mounts `layers` with rings available (`on`) or not.
fn mount_with(layers: Layers, on: bool, driver: Driver) -> Option<Mount> {
    let _switch = Switch::set(on)?;
    let mount = layers.mount(driver);
    // Answered only when the transport has been settled.
    sys::lstat(mount.root()).unwrap();
    Some(mount)
}

fn on_rings(stack: Stack, driver: Driver) -> Option<Mount> {
    mount_with(stack.stratafs_option("transport=ring").build(), true, driver)
}

fn stats(mount: &Mount) -> serde_json::Value {
    serde_json::from_slice(&sys::getxattr(mount.root(), STATS).unwrap()).unwrap()
}

/// Requests of the calling thread, and of those that it starts, go into the queue of the first processor.
fn stay_on_the_first_processor() {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).unwrap();
}

/// Asks for `count` names below `slow`, each in a thread of its own.
fn ask_for_slow_names(mount: &Mount, count: usize) -> Vec<JoinHandle<Result<(), Errno>>> {
    let ask = |number| {
        let path = mount.at(&format!("slow/f{number}"));
        std::thread::spawn(move || sys::lstat(&path).map(drop))
    };
    (0..count).map(ask).collect()
}

/// Stops all threads of a process. The kernel gives the signal to one of them, and the others go on until that one runs.
fn stop(process: u32) {
    sys::signal(process, Signal::STOP);
    let begun = Instant::now();
    while !thread_stats(process).iter().all(|stat| stat.starts_with('T')) {
        assert!(begun.elapsed() < Duration::from_secs(30), "process {process} does not stop");
    }
}

/// For each thread of a process, the fields of `/proc/PID/task/TID/stat` from the third on.
fn thread_stats(process: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // A thread may end meanwhile.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats.map(|stat| stat.rsplit(") ").next().unwrap().to_owned()).collect()
}

/// Makes requests that are answered quickly.
fn ask_much(mount: &Mount) {
    for _ in 0..500 {
        assert_eq!(sys::getxattr(&mount.at("f"), "user.x"), Err(Errno::NODATA));
    }
}

/// How many threads of the driver are `SCHED_IDLE`: their field 41 is 5.
fn threads_in_the_idle_class(mount: &Mount) -> usize {
    let stats = thread_stats(mount.daemon().unwrap());
    stats.iter().filter(|stat| stat.split(' ').nth(38) == Some("5")).count()
}

/// Mounts through the device, then through rings where there are any.
fn on_each_transport(driver: Driver, test: impl Fn(&Mount)) {
    let stack = || Stack::new().lower("file f \"x\"");
    test(&stack().stratafs_option("transport=device").build().mount(driver));
    if let Some(mount) = on_rings(stack(), driver) {
        test(&mount);
    }
}

/// Mounts `layers` by `command`, whose process ends after mounting and prints nothing.
#[track_caller]
fn start(command: &mut Command, layers: &Layers) {
    let output = command.args(&layers.stratafs_arguments()[1..]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

on_stratafs! {
    /// Each kind of request and answer, short and long.
    fn through_rings(driver) {
        let names: String = (0..3000).map(|n| format!("file many/{n:0200}\n")).collect();
        let stack = Stack::new().lower(&format!("{names}file f fill=3000000\nfile g \"lower\""));
        let Some(mount) = on_rings(stack.stratafs_option("passthrough=off"), driver) else { return };
        assert_eq!(stats(&mount)["transport"], "ring");
        assert_eq!(sys::names(&mount.at("many")).len(), 3000);
        assert!(sys::read(&mount.at("f")).unwrap() == pattern(3_000_000), "long reads");
        let content = pattern(5_000_000);
        std::fs::write(mount.at("new"), &content).unwrap();
        assert!(sys::read(&mount.upper("new")).unwrap() == content, "long writes");
        sys::append(&mount.at("g"), b"+").unwrap();
        assert_eq!(sys::text(&mount.at("g")), "lower+");
        let long = "n".repeat(255);
        let target = "t/".repeat(2047);
        std::os::unix::fs::symlink(&target, mount.at(&long)).unwrap();
        assert_eq!(std::fs::read_link(mount.at(&long)).unwrap().as_os_str(), OsStr::new(&target));
        for size in [0, 1, 4000] {
            let value = pattern(size);
            sys::setxattr(&mount.at("new"), "user.x", &value).unwrap();
            assert_eq!(sys::getxattr(&mount.at("new"), "user.x").unwrap(), value);
        }
        // Longer than what is moved aside; ext4 has no room for it.
        let refused = sys::setxattr(&mount.at("new"), "user.x", &pattern(60_000));
        assert!(matches!(refused, Ok(()) | Err(Errno::NOSPC)), "{refused:?}");
        sys::rename(&mount.at("new"), &mount.at("moved")).unwrap();
        std::fs::hard_link(mount.at("moved"), mount.at("linked")).unwrap();
        assert_eq!(std::fs::metadata(mount.at("linked")).unwrap().nlink(), 2);
        let nameless = sys::open(mount.root(), OFlags::TMPFILE | OFlags::RDWR, 0o600).unwrap();
        sys::pwrite(&nameless, b"x", 0).unwrap();
        assert_eq!(sys::lstat(&mount.at("missing")).map(drop), Err(Errno::NOENT));
    }

    /// Requests that wait leave their processor's queue to others, which are answered in the meantime.
    fn requests_that_wait_hold_up_no_others(driver) {
        const SLOW: usize = 8;
        let slow: String = (0..SLOW).map(|n| format!("file slow/f{n}\n")).collect();
        let inner = Stack::new().lower(&slow).mount(driver);
        let quick: String = (0..100).map(|n| format!("file quick/f{n}\n")).collect();
        let mut layers = Stack::new().lower(&quick).stratafs_option("transport=ring").build();
        layers.lowers.push(inner.root().to_owned());
        layers.settle();
        let Some(mount) = mount_with(layers, true, driver) else { return };
        stay_on_the_first_processor();
        // Known from now on: which layer has which directory.
        sys::lstat(&mount.at("slow")).unwrap();
        sys::lstat(&mount.at("quick")).unwrap();
        let opened = File::open(mount.at("quick/f99")).unwrap();

        let daemon = inner.daemon().unwrap();
        stop(daemon);
        let waiting = ask_for_slow_names(&mount, SLOW);
        let begun = Instant::now();
        for number in 0..100 {
            sys::lstat(&mount.at(&format!("quick/f{number}"))).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = begun.elapsed();
        assert!(waiting.iter().all(|thread| !thread.is_finished()), "nothing waited");
        sys::signal(daemon, Signal::CONT);
        for thread in waiting {
            thread.join().unwrap().unwrap();
        }
        assert!(took < Duration::from_secs(20), "{took:?}");
        drop(opened);
        drop(mount);
    }

    /// A thread is `SCHED_IDLE` while it answers many requests, so that its clients stay on their processors, and no
    /// longer.
    fn threads_give_way_while_they_answer_much(driver) {
        on_each_transport(driver, |mount| {
            let becomes = |what: &str, wanted: &dyn Fn(usize) -> bool| {
                let begun = Instant::now();
                while !wanted(threads_in_the_idle_class(mount)) {
                    assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {}", stats(mount));
                }
            };
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| while !over.load(Ordering::Relaxed) { ask_much(mount) });
                let found = std::panic::catch_unwind(AssertUnwindSafe(|| becomes("no thread gives way", &|idle| idle > 0)));
                over.store(true, Ordering::Relaxed);
                found.unwrap();
            });
            becomes("a thread gives way for ever", &|idle| idle == 0);
        });
    }

    /// Programs that keep all processors busy take no more than their share from the requests of others.
    fn busy_processors_answer_requests(driver) {
        on_each_transport(driver, |mount| {
            let (over, begun) = (AtomicBool::new(false), Instant::now());
            let is_over = || over.load(Ordering::Relaxed) || begun.elapsed() > Duration::from_secs(60);
            std::thread::scope(|scope| {
                for _ in 0..2 * std::thread::available_parallelism().unwrap().get() {
                    scope.spawn(|| while !is_over() {});
                }
                ask_much(mount);
                over.store(true, Ordering::Relaxed);
                // 500 requests: a thread that stayed SCHED_IDLE would get about one hundredth of a processor.
                assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
            });
        });
    }

    /// A stopped driver continues where it was; after a killed driver, no process waits for ever.
    fn stopped_and_killed(driver) {
        let Some(mount) = on_rings(Stack::new().lower("dir slow\nfile slow/f0\nfile slow/f1"), driver) else { return };
        let daemon = mount.daemon().unwrap();
        stop(daemon);
        let waiting = ask_for_slow_names(&mount, 2);
        std::thread::sleep(Duration::from_millis(50));
        assert!(waiting.iter().all(|thread| !thread.is_finished()), "a stopped driver answered");
        sys::signal(daemon, Signal::CONT);
        waiting.into_iter().for_each(|thread| thread.join().unwrap().unwrap());

        stop(daemon);
        let waiting = ask_for_slow_names(&mount, 8);
        std::thread::sleep(Duration::from_millis(50));
        drop(mount.crash());
        for thread in waiting {
            let answer = thread.join().unwrap();
            let gone = [Errno::NOENT, Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED];
            assert!(answer.is_ok() || answer.is_err_and(|errno| gone.contains(&errno)), "{answer:?}");
        }
    }

    /// Root aborts the connection: the driver removes the dead mount and ends.
    fn aborted(driver) {
        assert_eq!(driver, Driver::Stratafs);
        let layers = Stack::new().lower("file f \"x\"").stratafs_option("transport=ring").build();
        let device = || sys::lstat(&layers.point).map(|stat| stat.st_dev);
        let before = device();
        let Some(switch) = Switch::set(true) else { return };
        start(&mut Command::new(env!("CARGO_BIN_EXE_stratafs")), &layers);
        drop(switch);
        let connections = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&OsStr]| {
            assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
        };
        run("mount", &["-t".as_ref(), "fusectl".as_ref(), "none".as_ref(), connections.path().as_ref()]);
        let connection = rustix::fs::minor(device().unwrap());
        std::fs::write(connections.path().join(format!("{connection}/abort")), "1").unwrap();
        run("umount", &[connections.path().as_ref()]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while device() != before {
            assert!(Instant::now() < deadline, "the mount is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Without rings, `auto` uses the device and says nothing, and `ring` refuses in one line.
    fn where_there_are_none(driver) {
        let stack = || Stack::new().lower("file f \"x\"");
        let Some(mount) = mount_with(stack().stratafs_option("transport=auto").build(), false, driver) else { return };
        assert_eq!(stats(&mount)["transport"], "device");
        assert_eq!((sys::text(&mount.at("f")), mount.log()), ("x".to_owned(), String::new()));
        drop(mount);
        let Some(_switch) = Switch::set(false) else { return };
        let (refusal, _) = stack().stratafs_option("transport=ring").build().try_mount(driver).err().unwrap();
        let told = "transport=ring: the kernel has none, or 'N' in /sys/module/fuse/parameters/enable_uring";
        assert!(refusal.trim_end().ends_with(told), "{refusal}");
        let few = stack().stratafs_option("transport=ring").stratafs_option("threads=1");
        let (refusal, _) = few.build().try_mount(driver).err().unwrap();
        assert!(refusal.contains("transport=ring: threads=1, and rings need "), "{refusal}");
    }

    /// Rings count as locked memory, for all mounts of a user together. If they exceed the limit, the device is used.
    fn with_little_locked_memory(driver) {
        assert_eq!(driver, Driver::Stratafs);
        for limit in [0, 8192, 16384, 32768] {
            let layers = Stack::new().lower("file f \"x\"").build();
            let Some(switch) = Switch::set(true) else { return };
            let mut command = Command::new("prlimit");
            start(command.args([&format!("--memlock={limit}:{limit}"), env!("CARGO_BIN_EXE_stratafs")]), &layers);
            drop(switch);
            assert_eq!(sys::text(&layers.point.join("f")), "x", "{limit}");
            let value = sys::getxattr(&layers.point, STATS).unwrap();
            let stats: serde_json::Value = serde_json::from_slice(&value).unwrap();
            assert!(stats["transport"] == "ring" || stats["transport"] == "device", "{stats}");
            assert!(Command::new("umount").arg(&layers.point).status().unwrap().success());
        }
    }

    /// A checkpoint and a rollback of a mount whose requests come through rings.
    fn rolled_back_through_rings(driver) {
        for option in ["volatile", "writeback", "passthrough=off,writeback"] {
            let Some(mount) = on_rings(Stack::new().lower(checkpoint::LOWER).stratafs_option(option), driver) else { return };
            drop(checkpoint::roll_back(mount).unmount());
        }
    }

    /// Each mount has threads and rings of its own. `STRATAFS_SOAK=1`: 64 of them.
    fn many_mounts(driver) {
        let many = if std::env::var_os("STRATAFS_SOAK").is_some() { 64 } else { 8 };
        let mut mounts = Vec::new();
        for _ in 0..many {
            let Some(mount) = on_rings(Stack::new().lower("file f \"x\""), driver) else { return };
            assert_eq!(sys::text(&mount.at("f")), "x");
            mounts.push(mount);
        }
        let threads = stats(&mounts[0])["threads"].as_u64().unwrap();
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
        let processors = possible.trim().rsplit(['-', ',']).next().unwrap().parse::<u64>().unwrap() + 1;
        assert!(threads <= 4 + 16.max(4 * processors), "{threads} threads on {processors} processors");
        mounts.into_iter().for_each(|mount| drop(mount.unmount()));
    }
}
