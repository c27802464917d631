//! `passthrough=programs` and `passthrough=all`: the kernel reads lower files of a writable mount itself.
//!
//! An inode of the kernel has one backing file, so a file that is copied up while it has readers gets another inode
//! (`src/driver/passthrough.rs`). These tests prove that.

use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::fs::{FlockOperation, OFlags};

use crate::common::stack::Layers;
use crate::common::sys::{self, Mapping};
use crate::common::tree::{pattern, snapshot};
use crate::common::{Driver, Errno, Mount, Stack};
use crate::on_stratafs;

fn passing_all(lower: &str) -> Stack {
    Stack::new().lower(lower).stratafs_option("passthrough=all")
}

fn reader(mount: &Mount, path: &str) -> std::fs::File {
    sys::open(&mount.at(path), OFlags::RDONLY, 0).unwrap()
}

/// The stack with copies of files of this machine in its lower layer.
fn with_programs(stack: Stack, programs: &[(&str, &str)]) -> Layers {
    let mut layers = stack.build();
    for (from, to) in programs {
        std::fs::copy(from, layers.lowers[0].join(to)).unwrap();
    }
    layers.originals = layers.lowers.iter().map(|path| snapshot(path, true)).collect();
    layers
}

/// The C library of this machine.
fn library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.contains("/libc.so.6"));
    path.expect("this program uses the C library").to_owned()
}

/// Pages of a file of the mount that are in memory before anything has read it there.
fn resident(mount: &Mount, path: &str) -> usize {
    let size = sys::lstat(&mount.at(path)).unwrap().st_size as usize;
    Mapping::new(&reader(mount, path), size, false).resident_pages()
}

on_stratafs! {
    /// The early reader goes on reading the lower file; all other processes, and every later change, use the upper.
    fn writer_beside_an_early_reader(driver) {
        let mount = passing_all("file f \"lower\"").mount(driver);
        let early = reader(&mount, "f");
        assert_eq!(sys::read_file(&early).unwrap(), b"lower");
        let writer = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&writer, b"UP", 0).unwrap();
        sys::append(&mount.at("f"), b"+more").unwrap();
        assert_eq!(sys::text(&mount.at("f")), "UPwer+more");
        assert_eq!(sys::read_file(&writer).unwrap(), b"UPwer+more");
        assert_eq!(sys::read_file(&early).unwrap(), b"lower");
        assert_eq!(sys::text(&mount.lower(0, "f")), "lower");
        drop((early, writer));
        sys::append(&mount.at("f"), b"+last").unwrap();
        mount.assert_tree_everywhere("file f \"UPwer+more+last\"");
    }

    /// Every kind of open succeeds and gets the upper file.
    fn every_way_to_open(driver) {
        let ways = [
            OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR | OFlags::CREATE, OFlags::WRONLY | OFlags::APPEND,
            OFlags::WRONLY | OFlags::TRUNC, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC, OFlags::RDWR | OFlags::DIRECT,
        ];
        let lower: String = (0..ways.len()).map(|n| format!("file d/f{n} fill=8192\n")).collect();
        let mount = passing_all(&lower).mount(driver);
        for (number, way) in ways.into_iter().enumerate() {
            let path = format!("d/f{number}");
            let early = reader(&mount, &path);
            // Copied up without being opened.
            sys::truncate_by_name(&mount.at(&path), 4096).unwrap();
            let late = sys::open(&mount.at(&path), way, 0o644).unwrap_or_else(|error| panic!("{way:?}: {error}"));
            let expected = if way.contains(OFlags::TRUNC) { 0 } else { 4096 };
            assert_eq!(rustix::fs::fstat(&late).unwrap().st_size, expected, "{way:?}");
            assert_eq!(sys::read(&mount.at(&path)).unwrap(), pattern(8192)[..expected as usize], "{way:?}");
            assert!(sys::read_file(&early).unwrap() == pattern(8192), "{way:?}");
        }
    }

    /// Attributes agree on both inodes, whichever one changes them.
    fn attributes_are_those_of_one_file(driver) {
        let mount = passing_all("file f \"lower\" mode=644 mtime=1000").mount(driver);
        let early = reader(&mount, "f");
        let ino = sys::ino(&mount.at("f"));
        sys::append(&mount.at("f"), b"+more").unwrap();
        for round in 0..3_u32 {
            let seen = || {
                let (old, new) = (rustix::fs::fstat(&early).unwrap(), sys::lstat(&mount.at("f")).unwrap());
                assert_eq!((old.st_ino, new.st_ino), (ino, ino));
                let facts = |stat: &rustix::fs::Stat| (stat.st_mode & 0o7777, stat.st_size, stat.st_mtime, stat.st_nlink);
                assert_eq!(facts(&old), facts(&new));
                facts(&new)
            };
            let size = seen().1;
            sys::append(&mount.at("f"), b".").unwrap();
            assert_eq!(seen().1, size + 1);
            rustix::fs::fchmod(&early, (0o600 + round).into()).unwrap();
            assert_eq!(seen().0, 0o600 + round);
            sys::chmod(&mount.at("f"), 0o640 + round).unwrap();
            assert_eq!(seen().0, 0o640 + round);
            sys::utimens(&mount.at("f"), (5, 0), (6, 0)).unwrap();
            assert_eq!(seen().2, 6);
            rustix::fs::fsetxattr(&early, "user.k", &[b'0' + round as u8], rustix::fs::XattrFlags::empty()).unwrap();
            assert_eq!(sys::getxattr(&mount.at("f"), "user.k").unwrap(), [b'0' + round as u8]);
            sys::link(&mount.at("f"), &mount.at(&format!("l{round}"))).unwrap();
            assert_eq!(seen().3, u64::from(round) + 2);
        }
        sys::unlink(&mount.at("f")).unwrap();
        assert_eq!(rustix::fs::fstat(&early).unwrap().st_nlink, 3);
        assert_eq!(sys::text(&mount.at("l0")), "lower+more...");
    }

    /// Names can be moved as usual while a process holds the old inode.
    fn names_of_a_parted_file(driver) {
        let mount = passing_all("file d/f \"lower\"\nfile d/g \"other\"\ndir e").mount(driver);
        let early = reader(&mount, "d/f");
        sys::append(&mount.at("d/f"), b"+").unwrap();
        sys::rename(&mount.at("d/f"), &mount.at("e/f")).unwrap();
        sys::append(&mount.at("e/f"), b"+").unwrap();
        sys::rename(&mount.at("d/g"), &mount.at("e/f")).unwrap();
        assert_eq!(rustix::fs::fstat(&early).unwrap().st_nlink, 0);
        assert_eq!(sys::read_file(&early).unwrap(), b"lower");
        rustix::fs::fchmod(&early, 0o600.into()).unwrap();
        sys::create(&mount.at("d/f"), b"new").unwrap();
        drop(early);
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        mount.assert_tree("file d/f \"new\"\nfile e/f \"other\"");
        mount.assert_upper("file d/f \"new\"\nwhiteout d/g\nfile e/f \"other\"");
    }

    /// A name that the kernel remembers leads to the old inode, until it is opened.
    fn names_of_an_indexed_link(driver) {
        let mount = passing_all("file a \"lower\"\nhard b a").option("index=on").mount(driver);
        sys::lstat(&mount.at("b")).unwrap();
        let early = reader(&mount, "a");
        sys::append(&mount.at("a"), b"+a").unwrap();
        assert_eq!(sys::text(&mount.at("b")), "lower+a");
        sys::append(&mount.at("b"), b"+b").unwrap();
        assert_eq!(sys::text(&mount.at("a")), "lower+a+b");
        assert_eq!(sys::lstat(&mount.at("a")).unwrap().st_size, 9);
        assert_eq!(sys::read_file(&early).unwrap(), b"lower");
        assert_eq!(sys::nlink(&mount.at("b")), 2);
    }

    fn mappings(driver) {
        let mount = passing_all("file f fill=20000").mount(driver);
        let file = reader(&mount, "f");
        let early = Mapping::new(&file, 20_000, false);
        assert!(early.bytes(0..20_000) == pattern(20_000));
        let writer = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        let written = Mapping::new(&writer, 20_000, true);
        written.store(5000, b"mapped");
        let mut read = [0; 6];
        reader(&mount, "f").read_exact_at(&mut read, 5000).unwrap();
        assert_eq!(&read, b"mapped");
        let late = Mapping::new(&reader(&mount, "f"), 20_000, false);
        sys::write_at(&mount.at("f"), 100, b"written").unwrap();
        assert_eq!(late.bytes(100..107), b"written");
        assert_eq!(written.bytes(100..107), b"written");
        assert!(early.bytes(0..20_000) == pattern(20_000), "the early mapping is of the lower file");
    }

    /// A running program cannot be written to; after it, the next one runs what was written.
    fn programs(driver) {
        let mount = with_programs(passing_all(""), &[("/bin/sleep", "sleep")]).mount(driver);
        let mut running = Command::new(mount.at("sleep")).arg("1000").spawn().unwrap();
        let opened = sys::open(&mount.at("sleep"), OFlags::RDWR, 0);
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(opened.err(), Some(Errno::TXTBSY));
        let early = reader(&mount, "sleep");
        let content = sys::read_file(&early).unwrap();
        sys::overwrite(&mount.at("sleep"), b"#!/bin/sh\necho replaced\n").unwrap();
        assert_eq!(sys::run(&mount.at("sleep")).stdout, b"replaced\n");
        assert!(sys::read_file(&early).unwrap() == content);
    }

    /// Two mounts of one layer hold its files in the page cache once.
    fn page_cache_is_shared(driver) {
        let size = 4 << 20;
        let one = passing_all(&format!("file f fill={size}")).mount(driver);
        let mut layers = passing_all("").build();
        layers.lowers[0] = one.layers().lowers[0].clone();
        layers.originals.clear();
        let two = layers.mount(driver);
        let resident = |mount: &Mount| Mapping::new(&reader(mount, "f"), size, false).resident_pages();
        // Others may have all caches dropped at any time.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
        loop {
            assert_eq!(sys::read(&one.at("f")).unwrap().len(), size);
            let pages = resident(&two);
            if pages == size / 4096 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{pages} of {} pages before anything was read", size / 4096);
        }
        drop(two);
        // With the default each mount has its own.
        let mut layers = Stack::new().lower("").build();
        layers.lowers[0] = one.layers().lowers[0].clone();
        layers.originals.clear();
        let apart = layers.mount(driver);
        assert_eq!(resident(&apart), 0);
    }

    /// The documented price: a lock held by an early reader is not seen by processes that open the file after its copy-up.
    fn locks_of_early_readers(driver) {
        for (mode, sees_it) in [("upper", true), ("all", false)] {
            let mount = Stack::new().lower("file f \"x\"").stratafs_option(&format!("passthrough={mode}")).mount(driver);
            let early = reader(&mount, "f");
            rustix::fs::flock(&early, FlockOperation::NonBlockingLockExclusive).unwrap();
            let same = rustix::fs::flock(reader(&mount, "f"), FlockOperation::NonBlockingLockExclusive);
            assert_eq!(same, Err(Errno::WOULDBLOCK), "{mode}: before the copy-up");
            sys::append(&mount.at("f"), b"y").unwrap();
            let late = rustix::fs::flock(reader(&mount, "f"), FlockOperation::NonBlockingLockExclusive);
            assert_eq!(late.is_err(), sees_it, "{mode}: after it");
        }
    }

    /// Many readers come and go while many writers copy files up.
    fn readers_and_writers_at_once(driver) {
        let lower: String = (0..16).map(|n| format!("file f{n} fill=50000\n")).collect();
        let mount = passing_all(&lower).mount(driver);
        std::thread::scope(|scope| {
            for worker in 0..8_usize {
                let mount = &mount;
                scope.spawn(move || {
                    for step in 0..64 {
                        let path = mount.at(&format!("f{}", (step * 5 + worker) % 16));
                        let file = sys::open(&path, OFlags::RDONLY, 0).unwrap();
                        assert_eq!(sys::read_file(&file).unwrap().len(), 50_000);
                        if step % 4 == worker % 4 {
                            sys::write_at(&path, (worker * 8) as u64, &[worker as u8; 8]).unwrap();
                            assert_eq!(sys::read(&path).unwrap()[worker * 8..][..8], [worker as u8; 8]);
                        }
                    }
                });
            }
        });
        let content = |mount: &Mount| (0..16).map(|n| sys::read(&mount.at(&format!("f{n}"))).unwrap()).collect::<Vec<_>>();
        let before = content(&mount);
        assert!(before.iter().all(|content| content.len() == 50_000 && content[64..] == pattern(50_000)[64..]));
        let mount = mount.remount(Driver::Stratafs);
        assert!(content(&mount) == before);
    }

    /// Without an option: programs and libraries are in memory once for all mounts of a layer, other files are not.
    fn programs_are_in_memory_once(driver) {
        let library = library();
        let one = with_programs(Stack::new().lower("file f fill=100000\nfile module.py fill=100000"), &[("/bin/sleep", "sleep"), (&library, "lib")]);
        std::fs::set_permissions(one.lowers[0].join("lib"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let lower = one.lowers[0].clone();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
        loop {
            for name in ["sleep", "lib", "module.py", "f"] {
                sys::read(&lower.join(name)).unwrap();
            }
            let mut layers = Stack::new().lower("").build();
            layers.lowers[0] = lower.clone();
            layers.originals.clear();
            let mount = layers.mount(driver);
            let pages = ["sleep", "lib", "module.py", "f"].map(|name| resident(&mount, name));
            // Another test may have all caches dropped at any time.
            if pages[..3].iter().all(|&pages| pages > 0) {
                assert_eq!(pages[3], 0, "an ordinary file");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{pages:?} pages");
        }
    }

    /// An ordinary file is read through the mount's own cache, so an early reader sees later writes.
    fn ordinary_files_stay_coherent(driver) {
        let mount = Stack::new().lower("file f \"lower\"\nfile script \"#!/bin/sh\\necho one\\n\" mode=755").mount(driver);
        for name in ["f", "script"] {
            let early = reader(&mount, name);
            assert!(!sys::read_file(&early).unwrap().is_empty());
            sys::append(&mount.at(name), b"echo two\n").unwrap();
            assert!(sys::read_file(&early).unwrap().ends_with(b"echo two\n"), "{name}");
        }
        assert_eq!(sys::run(&mount.at("script")).stdout, b"one\ntwo\n");
    }

    /// A library that a process has mapped is overwritten in place: the mapping shows the lower file (as with overlayfs),
    /// and later opens show the new content.
    fn a_mapped_library_is_written_in_place(driver) {
        let library = library();
        let mount = with_programs(Stack::new().lower(""), &[(&library, "lib")]).mount(driver);
        let size = sys::lstat(&mount.at("lib")).unwrap().st_size as usize;
        let early = Mapping::new(&reader(&mount, "lib"), size, false);
        let before = early.bytes(0..size).to_vec();
        sys::write_at(&mount.at("lib"), 4096, b"written in place").unwrap();
        assert!(early.bytes(0..size) == before);
        let late = Mapping::new(&reader(&mount, "lib"), size, false);
        assert_eq!(late.bytes(4096..4112), b"written in place");
        sys::write_at(&mount.at("lib"), 8192, b"and again").unwrap();
        assert_eq!(late.bytes(8192..8201), b"and again");
        assert!(early.bytes(0..size) == before);
    }

    /// What package managers, `strip` and `patchelf` do with a running program, and ETXTBSY.
    fn running_programs_are_replaced(driver) {
        let mount = with_programs(Stack::new().lower(""), &[("/bin/sleep", "sleep"), ("/bin/true", "true")]).mount(driver);
        let mut running = Command::new(mount.at("sleep")).arg("1000").spawn().unwrap();
        assert_eq!(sys::open(&mount.at("sleep"), OFlags::RDWR, 0).err(), Some(Errno::TXTBSY));
        assert_eq!(sys::open(&mount.at("sleep"), OFlags::WRONLY | OFlags::TRUNC, 0).err(), Some(Errno::TXTBSY));
        // dpkg: unpacked beside it, then renamed over it.
        std::fs::copy("/bin/true", mount.at("sleep.dpkg-new")).unwrap();
        sys::rename(&mount.at("sleep.dpkg-new"), &mount.at("sleep")).unwrap();
        assert_eq!(sys::run(&mount.at("sleep")).status.code(), Some(0));
        assert!(running.try_wait().unwrap().is_none(), "the old program goes on");
        let exe = format!("/proc/{}/exe", running.id());
        assert!(std::fs::read(&exe).unwrap() == std::fs::read("/bin/sleep").unwrap());
        running.kill().unwrap();
        running.wait().unwrap();
        // strip and patchelf: read, then written from the start.
        let early = reader(&mount, "true");
        let old = sys::read_file(&early).unwrap();
        let mut changed = old.clone();
        changed.extend_from_slice(b"appended to the program");
        sys::overwrite(&mount.at("true"), &changed).unwrap();
        assert!(sys::read(&mount.at("true")).unwrap() == changed);
        assert_eq!(sys::run(&mount.at("true")).status.code(), Some(0));
        drop(early);
        mount.remount(driver);
    }
}
