//! The kernel may cache answers for ever, so no cached answer may be wrong.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Driver, Errno, Mount, Stack};
use crate::{on_both, on_stratafs};

on_both! {
    fn attributes_follow_every_change(driver) {
        let mount = Stack::new().lower("file f \"lower\"\ndir d\nfile h \"h\"").mount(driver);
        let size = |path: &str| sys::lstat(&mount.at(path)).unwrap().st_size;
        assert_eq!(size("f"), 5);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        for length in [6_u64, 3, 0, 100_000] {
            rustix::fs::ftruncate(&file, length).unwrap();
            assert_eq!(size("f"), length.cast_signed());
        }
        sys::pwrite(&file, b"x", 200_000).unwrap();
        assert_eq!(size("f"), 200_001);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 300_000).unwrap();
        assert_eq!(size("f"), 300_000);
        sys::link(&mount.at("h"), &mount.at("d/h2")).unwrap();
        assert_eq!((sys::nlink(&mount.at("h")), sys::nlink(&mount.at("d/h2"))), (2, 2));
        sys::unlink(&mount.at("h")).unwrap();
        assert_eq!(sys::nlink(&mount.at("d/h2")), 1);
        sys::chmod(&mount.at("d/h2"), 0o600).unwrap();
        assert_eq!(sys::mode(&mount.at("d/h2")), 0o600);
    }

    /// A copy by copy_file_range bypasses the destination's cached pages and attributes.
    fn copied_ranges_are_seen(driver) {
        let mount = Stack::new().lower("file from fill=50000\nfile to fill=50000").mount(driver);
        let from = sys::open(&mount.at("from"), OFlags::RDONLY, 0).unwrap();
        let to = sys::open(&mount.at("to"), OFlags::RDWR, 0).unwrap();
        sys::read_file(&to).unwrap();
        let (mut source, mut target) = (1000, 45_000);
        while target < 65_000 {
            let left = usize::try_from(65_000 - target).unwrap();
            rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left).unwrap();
        }
        assert_eq!(rustix::fs::fstat(&to).unwrap().st_size, 65_000);
        let content = sys::read_file(&to).unwrap();
        assert!(content[45_000..] == crate::common::tree::pattern(50_000)[1000..21_000]);
    }

    fn pages_follow_writes_through_other_handles(driver) {
        let mount = Stack::new().lower("file f fill=20000").mount(driver);
        let mut reader = std::fs::File::open(mount.at("f")).unwrap();
        let mut buffer = vec![];
        reader.read_to_end(&mut buffer).unwrap();
        drop(reader);
        sys::write_at(&mount.at("f"), 10_000, b"changed").unwrap();
        let mut reader = std::fs::File::open(mount.at("f")).unwrap();
        reader.seek(std::io::SeekFrom::Start(10_000)).unwrap();
        let mut seven = [0; 7];
        reader.read_exact(&mut seven).unwrap();
        assert_eq!(&seven, b"changed");
        sys::overwrite(&mount.at("f"), b"short").unwrap();
        assert_eq!(sys::text(&mount.at("f")), "short");
        reader.seek(std::io::SeekFrom::Start(0)).unwrap();
        buffer.clear();
        reader.read_to_end(&mut buffer).unwrap();
        assert_eq!(buffer, b"short");
    }

    fn symlinks_are_replaced(driver) {
        let mount = Stack::new().lower("link l -> old\nfile old \"old\"\nfile new \"new\"").mount(driver);
        assert_eq!(sys::readlink(&mount.at("l")).unwrap(), "old");
        assert_eq!(std::fs::read(mount.at("l")).unwrap(), b"old");
        sys::symlink("new", &mount.at("l2")).unwrap();
        sys::rename(&mount.at("l2"), &mount.at("l")).unwrap();
        assert_eq!(sys::readlink(&mount.at("l")).unwrap(), "new");
        assert_eq!(std::fs::read(mount.at("l")).unwrap(), b"new");
    }

    /// After the kernel has dropped its caches, everything is found again unchanged.
    fn dropped_caches(driver) {
        let mount = Stack::new().lower("file d/a \"a\"\nfile d/s/b \"b\"\nfile gone \"g\"\nfile h1 \"h\"\nhard h2 h1").mount(driver);
        sys::append(&mount.at("d/a"), b"+").unwrap();
        sys::unlink(&mount.at("gone")).unwrap();
        sys::rename(&mount.at("d/s"), &mount.at("t")).unwrap();
        sys::link(&mount.at("d/a"), &mount.at("la")).unwrap();
        let numbers = || ["d", "d/a", "t", "t/b", "la"].map(|path| sys::ino(&mount.at(path)));
        let before = numbers();
        let held = sys::open(&mount.at("d/a"), OFlags::RDWR, 0).unwrap();
        for _ in 0..3 {
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            assert_eq!(numbers(), before);
            mount.assert_tree("file d/a \"a+\"\nfile t/b \"b\"\nfile la \"a+\"\nfile h1 \"h\"\nfile h2 \"h\"");
            assert_eq!(sys::nlink(&mount.at("la")), 2);
        }
        sys::pwrite(&held, b"A", 0).unwrap();
        assert_eq!(sys::text(&mount.at("la")), "A+");
    }

    /// A working directory and open directories that have been renamed or removed.
    fn directories_in_use(driver) {
        let mount = Stack::new().lower("file d/s/x \"x\"").mount(driver);
        let inside = sys::open(&mount.at("d/s"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        let file = rustix::fs::openat(&inside, "new", OFlags::WRONLY | OFlags::CREATE, 0o644.into()).unwrap();
        rustix::io::write(&file, b"n").unwrap();
        drop(file);
        assert_eq!(sys::text(&mount.at("e/s/new")), "n");
        std::fs::remove_dir_all(mount.at("e")).unwrap();
        let gone = rustix::fs::statat(&inside, "x", rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        assert_eq!(gone.err(), Some(Errno::NOENT));
        assert_eq!(rustix::fs::fstat(&inside).unwrap().st_mode & libc::S_IFMT, libc::S_IFDIR);
    }
}

on_both! {
    /// The driver opens a known lower file only at the first read: many changes are possible before.
    fn a_file_opened_again_is_read_whatever_became_of_it(driver) {
        type Fate = fn(&Mount, usize);
        let fates: [Fate; 7] = [
            |mount, n| sys::unlink(&file_of(mount, n)).unwrap(),
            |mount, n| sys::rename(&file_of(mount, n), &mount.at("moved")).unwrap(),
            |mount, n| sys::chmod(&file_of(mount, n), 0o600).unwrap(),
            |mount, n| sys::rename(&mount.at(&format!("other{n}")), &file_of(mount, n)).unwrap(),
            |mount, n| std::fs::remove_dir_all(mount.at(&format!("d{n}"))).unwrap(),
            |mount, n| sys::rename(&mount.at(&format!("d{n}")), &mount.at("away")).unwrap(),
            |mount, n| {
                sys::rename(&mount.at(&format!("d{n}")), &mount.at("gone")).unwrap();
                std::fs::remove_dir_all(mount.at("gone")).unwrap();
            },
        ];
        let mut lower: String = (0..fates.len()).map(|n| format!("file d{n}/f \"content\"\nfile other{n}\n")).collect();
        lower += &OTHERS.map(|n| format!("file e/{n}\n")).collect::<String>();
        let mount = Stack::new().lower(&lower).option("redirect_dir=on").descriptors(256).mount(driver);
        let paths: Vec<_> = (0..fates.len()).map(|n| file_of(&mount, n)).collect();
        // Keeps the kernel's inodes.
        let first: Vec<_> = paths.iter().map(|path| sys::open(path, OFlags::RDONLY, 0).unwrap()).collect();
        open_others(&mount);
        for (number, (fate, path)) in fates.into_iter().zip(&paths).enumerate() {
            let file = sys::open(path, OFlags::RDONLY, 0).unwrap();
            fate(&mount, number);
            assert_eq!(sys::read_file(&file).unwrap(), b"content", "fate {number}");
            assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 7, "fate {number}");
        }
        drop(first);
    }
}

fn file_of(mount: &Mount, number: usize) -> PathBuf {
    mount.at(&format!("d{number}/f"))
}

/// Files in `e`, several times as many as are kept open with 256 descriptors.
pub const OTHERS: std::ops::Range<u32> = 0..600;

/// Opens them all several times, so that the driver closes files that were opened before. Files that are opened once do
/// not displace others.
pub fn open_others(mount: &Mount) {
    for n in OTHERS {
        for _ in 0..3 {
            drop(sys::open(&mount.at(&format!("e/{n}")), OFlags::RDONLY, 0).unwrap());
        }
    }
}

/// Takes a file out of the page cache.
fn evict(path: &Path) {
    let file = sys::open(path, OFlags::RDONLY, 0).unwrap();
    rustix::fs::fsync(&file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn is_in_memory(path: &Path) -> bool {
    sys::Mapping::new(&sys::open(path, OFlags::RDONLY, 0).unwrap(), 4096, false).resident_pages() == 1
}

/// A mount with 200 files in `d`, and their names as it lists them.
fn files_in_order(driver: Driver) -> (Mount, Vec<String>) {
    let lower: String = (0..200).map(|n| format!("file d/f{n} fill=4096\n")).collect();
    let mount = Stack::new().lower(&lower).mount(driver);
    let listed = std::fs::read_dir(mount.at("d")).unwrap();
    let names = listed.map(|entry| format!("d/{}", entry.unwrap().file_name().into_string().unwrap())).collect();
    (mount, names)
}

/// Reads some of the files in order; those after them must then be in memory.
fn assert_read_ahead(mount: &Mount, names: &[String]) {
    // Other tests may drop all caches at any time, or the disk may be busy.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
    loop {
        for name in names {
            evict(&mount.at(name));
            evict(&mount.lower(0, name));
        }
        for name in &names[..8] {
            assert!(sys::read(&mount.at(name)).unwrap() == crate::common::tree::pattern(4096));
        }
        let evicted = !is_in_memory(&mount.lower(0, names.last().unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(100));
        if evicted && names[8..20].iter().all(|name| is_in_memory(&mount.lower(0, name))) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nothing was read ahead");
    }
}

on_stratafs! {
    /// If a process reads files in the order of the listing, the next ones are read from the disk.
    fn files_are_read_ahead(driver) {
        let (mount, names) = files_in_order(driver);
        assert_read_ahead(&mount, &names);
    }

    /// The same in the order of names.
    fn files_are_read_ahead_by_name(driver) {
        let (mount, mut names) = files_in_order(driver);
        names.sort();
        assert_read_ahead(&mount, &names);
    }

    /// If a process reads files in another order, none are read ahead.
    fn files_out_of_order_are_not_read_ahead(driver) {
        let (mount, names) = files_in_order(driver);
        let in_memory = || names.iter().filter(|name| is_in_memory(&mount.lower(0, name))).count();
        // Other activity may keep a page for a moment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
        while in_memory() > 0 {
            assert!(std::time::Instant::now() < deadline, "they stay in memory");
            names.iter().for_each(|name| evict(&mount.lower(0, name)));
        }
        let few: Vec<_> = names.iter().rev().step_by(20).collect();
        for name in &few {
            sys::read(&mount.at(name)).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(in_memory() <= few.len());
    }
}
