//! Problems that users met in other union file systems on FUSE, each by its name.

use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use crate::common::sys::{self, RenameFlags};
use crate::common::tree::pattern;
use crate::common::{Driver, Errno, Mount, Stack};
use crate::{on_both, on_stratafs};

/// How many requests for directory entries the daemon has answered; 0 where there is none.
fn listing_requests(mount: &Mount) -> u64 {
    let Some(daemon) = mount.daemon() else { return 0 };
    let summaries = || mount.log().matches("stratafs::requests").count();
    let before = summaries();
    sys::signal(daemon, rustix::process::Signal::USR1);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
    while summaries() == before {
        assert!(std::time::Instant::now() < deadline, "no counters in the log: {}", mount.log());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let log = mount.log();
    let line = log.lines().rfind(|line| line.contains("stratafs::requests")).unwrap();
    let counts = line.split_whitespace().filter_map(|word| word.split_once('='));
    counts.filter(|(name, _)| name.starts_with("READDIR")).map(|(_, count)| count.parse::<u64>().unwrap()).sum()
}

/// How long the daemon's threads have been on a processor.
fn processor_time(mount: &Mount) -> std::time::Duration {
    let Some(daemon) = mount.daemon() else { return std::time::Duration::ZERO };
    let threads = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    // A thread that has ended in the meantime is not counted.
    let times = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("schedstat")).ok());
    std::time::Duration::from_nanos(times.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
}

on_both! {
    /// fuse-overlayfs 2.0: a write lands in the lower layer when the file was already open read-only.
    fn write_beside_a_reader_leaves_the_lower_alone(driver) {
        let mount = Stack::new().lower("file f \"lower\"\nfile g \"lower\"").mount(driver);
        for name in ["f", "g"] {
            let reader = sys::open(&mount.at(name), OFlags::RDONLY, 0).unwrap();
            sys::read_file(&reader).unwrap();
            let writer = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            sys::pwrite(&writer, b"WRITE", 0).unwrap();
            rustix::fs::fsync(&writer).unwrap();
            assert_eq!(sys::text(&mount.lower(0, name)), "lower");
            assert_eq!(sys::text(&mount.upper(name)), "WRITE");
        }
    }

    /// The same through a shared mapping.
    fn mapped_write_beside_a_reader_leaves_the_lower_alone(driver) {
        let mount = Stack::new().lower("file f fill=10000").mount(driver);
        let reader = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        let early = sys::Mapping::new(&reader, 10_000, false);
        assert!(early.bytes(0..10_000) == pattern(10_000));
        let writer = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        let map = sys::Mapping::new(&writer, 10_000, true);
        map.store(0, b"mapped");
        map.sync();
        drop((map, writer, early, reader));
        assert!(sys::read(&mount.lower(0, "f")).unwrap() == pattern(10_000));
        assert_eq!(&sys::read(&mount.at("f")).unwrap()[..6], b"mapped");
    }

    /// `rm a; touch a; mv a b` brings the lower `a` back.
    fn remove_create_rename_does_not_resurrect(driver) {
        let mount = Stack::new().lower("file a \"lower\"").mount(driver);
        sys::unlink(&mount.at("a")).unwrap();
        sys::create(&mount.at("a"), b"new").unwrap();
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        assert!(!sys::exists(&mount.at("a")));
        mount.assert_tree_everywhere("file b \"new\"");
    }

    /// A removed directory made again shows its old children, after some orders of access.
    fn directory_made_again_shows_nothing_old(driver) {
        for order in 0..4 {
            let mount = Stack::new().lower("file d/x \"x\"\nfile d/s/y \"y\"").mount(driver);
            if order & 1 != 0 {
                sys::names(&mount.at("d"));
                sys::text(&mount.at("d/x"));
            }
            std::fs::remove_dir_all(mount.at("d")).unwrap();
            if order & 2 != 0 {
                assert!(!sys::exists(&mount.at("d/x")));
            }
            sys::mkdir(&mount.at("d"), 0o755).unwrap();
            assert!(!sys::exists(&mount.at("d/x")), "order {order}");
            sys::mkdir(&mount.at("d/s"), 0o755).unwrap();
            assert!(!sys::exists(&mount.at("d/s/y")), "order {order}");
            assert_eq!(sys::names(&mount.at("d")), ["s"], "order {order}");
            mount.assert_tree_everywhere("dir d/s");
        }
    }

    /// umask and mknod modes are ignored.
    fn umask_and_mknod_modes(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        sys::umask(0o027);
        sys::mkdir(&mount.at("d/dir"), 0o777).unwrap();
        sys::create(&mount.at("d/file"), b"").unwrap();
        sys::mknod(&mount.at("d/node"), libc::S_IFREG | 0o666, (0, 0)).unwrap();
        sys::mknod(&mount.at("d/fifo"), libc::S_IFIFO | 0o622, (0, 0)).unwrap();
        mount.assert_tree("dir d/dir mode=750\nfile d/file mode=640\nfile d/node mode=640\nfifo d/fifo mode=600");
    }

    /// An unlinked open file fails fstat.
    fn fstat_of_an_unlinked_file(driver) {
        let mount = Stack::new().lower("file low \"low\"").upper("file up \"up\"").mount(driver);
        for name in ["low", "up"] {
            let file = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            sys::unlink(&mount.at(name)).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            assert_eq!((stat.st_nlink, stat.st_size), (0, name.len() as i64));
        }
    }

    /// suid survives a write.
    fn suid_does_not_survive_a_write(driver) {
        let mount = Stack::new().lower("file f \"x\" mode=6777").mount(driver);
        let file = sys::as_user(1000, 1000, || {
            let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
            assert_eq!(sys::mode(&mount.at("f")), 0o6777);
            sys::pwrite(&file, b"y", 0).unwrap();
            file
        });
        assert_eq!(sys::mode(&mount.at("f")), 0o777);
        drop(file);
        assert_eq!(sys::mode(&mount.upper("f")), 0o777);
    }

    /// setgid directories are not inherited.
    fn setgid_directories_are_inherited(driver) {
        let mount = Stack::new().lower("dir d mode=2777 gid=50").mount(driver);
        sys::as_user(1000, 1000, || {
            sys::mkdir(&mount.at("d/s"), 0o755).unwrap();
            sys::create(&mount.at("d/s/f"), b"").unwrap();
        });
        mount.assert_tree("dir d mode=2777 gid=50\ndir d/s mode=2755 uid=1000 gid=50\nfile d/s/f uid=1000 gid=50");
    }

    /// Names of 255 bytes are refused (`.wh.` and the name do not fit).
    fn longest_names_can_be_removed_and_made(driver) {
        let name = "x".repeat(255);
        let mount = Stack::new().lower(&format!("file {name} \"low\"\nfile d/{name} \"low\"")).mount(driver);
        sys::unlink(&mount.at(&name)).unwrap();
        assert!(!sys::exists(&mount.at(&name)));
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::create(&mount.at(&name), b"new").unwrap();
        mount.assert_tree_everywhere(&format!("file {name} \"new\""));
    }

    /// Sparse files inflate on copy-up.
    fn sparse_files_do_not_inflate(driver) {
        let mount = Stack::new().lower("file s size=100000000").mount(driver);
        sys::chmod(&mount.at("s"), 0o600).unwrap();
        assert!(sys::allocated(&mount.upper("s")) < 1 << 20);
    }

    /// Kernel redirects are ignored.
    fn kernel_redirects_are_followed(driver) {
        let mount = Stack::new().lower("file old/x \"x\"").upper("whiteout old\ndir new trusted.overlay.redirect=old").mount(driver);
        mount.assert_tree("file new/x \"x\"");
    }

    /// Renaming a directory with a lower part gives EXDEV.
    fn lower_directories_can_be_renamed(driver) {
        let mount = Stack::new().lower("file d/x \"x\"").mount(driver);
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        mount.assert_tree_everywhere("file e/x \"x\"");
    }

    /// RENAME_EXCHANGE fails.
    fn exchange_works(driver) {
        let mount = Stack::new().lower("file a \"a\"\nfile b \"b\"").mount(driver);
        sys::rename_with(&mount.at("a"), &mount.at("b"), RenameFlags::EXCHANGE).unwrap();
        mount.assert_tree_everywhere("file a \"b\"\nfile b \"a\"");
    }

    /// O_TMPFILE is not supported.
    fn tmpfile_works(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        let file = sys::open(&mount.at("d"), OFlags::RDWR | OFlags::TMPFILE, 0o600).unwrap();
        sys::write_all(&file, b"x").unwrap();
        assert_eq!(sys::read_file(&file).unwrap(), b"x");
        mount.assert_tree("dir d");
    }

    /// Inode numbers differ between readdir and stat, and change on copy-up.
    fn inode_numbers_are_constant(driver) {
        let mount = Stack::new().lower("file d/a \"a\"\nfile d/b \"b\"\nfile d/sub/c \"c\"\nlink d/l -> x").lower("file d/sub/e").mount(driver);
        let numbers = |mount: &crate::common::Mount| ["d", "d/a", "d/b", "d/sub", "d/sub/c", "d/l"].map(|path| sys::ino(&mount.at(path)));
        let before = numbers(&mount);
        let listed = |mount: &crate::common::Mount| {
            let mut list: Vec<_> = sys::readdir(&mount.at("d")).unwrap().into_iter().map(|e| (e.name, e.ino)).collect();
            list.sort();
            list
        };
        let listed_before = listed(&mount);
        assert_eq!(listed_before.iter().map(|(_, ino)| *ino).collect::<Vec<_>>(), [before[1], before[2], before[5], before[3]]);
        sys::append(&mount.at("d/a"), b"+").unwrap();
        sys::chmod(&mount.at("d/sub"), 0o700).unwrap();
        sys::chown(&mount.at("d/l"), Some(1), None).unwrap();
        assert_eq!((numbers(&mount), listed(&mount)), (before, listed_before.clone()), "after copy-up");
        let mount = mount.remount(driver);
        assert_eq!((numbers(&mount), listed(&mount)), (before, listed_before), "after a remount");
    }

    /// st_nlink changes with copy-up.
    fn link_counts_are_constant(driver) {
        let mount = Stack::new().lower("file a \"a\"").upper("file u \"u\"\nhard v u").mount(driver);
        assert_eq!((sys::nlink(&mount.at("a")), sys::nlink(&mount.at("u"))), (1, 2));
        sys::append(&mount.at("a"), b"+").unwrap();
        sys::append(&mount.at("u"), b"+").unwrap();
        assert_eq!((sys::nlink(&mount.at("a")), sys::nlink(&mount.at("u"))), (1, 2));
    }

    /// `tar: file changed as we read it`: reading must not move any attribute.
    fn reading_changes_nothing(driver) {
        let mount = Stack::new().lower("file d/f \"x\" mtime=1000").upper("file d/u \"u\" mtime=2000").mount(driver);
        let attributes = || {
            ["d", "d/f", "d/u"].map(|path| {
                let stat = sys::lstat(&mount.at(path)).unwrap();
                (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_size, stat.st_nlink)
            })
        };
        let before = attributes();
        sys::names(&mount.at("d"));
        sys::text(&mount.at("d/f"));
        sys::text(&mount.at("d/u"));
        assert_eq!(attributes(), before);
    }

    /// `chown -R` changes directory times.
    fn recursive_chown_keeps_times(driver) {
        let mount = Stack::new().lower("dir d mtime=1000\ndir d/s mtime=2000\nfile d/s/f mtime=3000\nfile d/g mtime=4000").mount(driver);
        for path in ["d", "d/s", "d/s/f", "d/g"] {
            sys::chown(&mount.at(path), Some(7), Some(8)).unwrap();
        }
        assert_eq!(["d", "d/s", "d/s/f", "d/g"].map(|path| sys::mtime(&mount.at(path)).0), [1000, 2000, 3000, 4000]);
        let mount = mount.remount(driver);
        assert_eq!(["d", "d/s", "d/s/f", "d/g"].map(|path| sys::mtime(&mount.at(path)).0), [1000, 2000, 3000, 4000]);
    }

    /// ENOSPC in a copy-up leaves garbage that makes the next one fail.
    fn full_disk_in_a_copy_up(driver) {
        let layers = Stack::new().lower("file big fill=3000000\nfile small \"s\"").build();
        let disk = layers.directory.path().join("disk");
        sys::mkdir(&disk, 0o755).unwrap();
        rustix::mount::mount("none", &disk, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=2m")).unwrap();
        let mut layers = layers;
        for (path, name) in [(&mut layers.upper, "upper"), (&mut layers.work, "work")] {
            sys::mkdir(&disk.join(name), 0o755).unwrap();
            *path = Some(disk.join(name));
        }
        let mount = layers.mount(driver);
        for _ in 0..3 {
            assert_eq!(sys::append(&mount.at("big"), b"+"), Err(Errno::NOSPC));
            assert_eq!(sys::read(&mount.at("big")).unwrap().len(), 3_000_000, "the lower stays visible");
        }
        sys::append(&mount.at("small"), b"+").unwrap();
        sys::unlink(&mount.at("big")).unwrap();
        sys::create(&mount.at("big"), b"new").unwrap();
        mount.assert_tree("file big \"new\"\nfile small \"s+\"");
        mount.assert_upper("file big \"new\"\nfile small \"s+\"");
        drop(mount.unmount());
    }

    /// 100 % CPU in directories of 10,000 files: here ten times as many, and neither listing them nor changing one of them
    /// is quadratic. The daemon's work is counted in requests and in its own processor time.
    fn large_directory(driver) {
        const SMALL: u64 = 10_000;
        const LARGE: u64 = 100_000;
        let mut layers = Stack::new().lower("").build();
        // In memory: making and removing so many files is not the subject of the test.
        let memory = layers.lowers[0].clone();
        rustix::mount::mount("none", &memory, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"mode=755")).unwrap();
        crate::common::tree::build(&memory, "dir small\ndir large");
        for (directory, count) in [("small", SMALL), ("large", LARGE)] {
            for number in 0..count {
                std::fs::File::create(memory.join(format!("{directory}/f{number}"))).unwrap();
            }
        }
        layers.originals.clear();
        let mount = layers.mount(driver);
        let list = |directory: &str, count: u64| {
            let (requests, time) = (listing_requests(&mount), processor_time(&mount));
            let entries = sys::readdir(&mount.at(directory)).unwrap();
            let distinct: std::collections::HashSet<_> = entries.iter().map(|entry| (&entry.name, entry.ino)).collect();
            assert_eq!((entries.len() as u64, distinct.len() as u64), (count, count), "{directory}");
            (listing_requests(&mount) - requests, processor_time(&mount) - time)
        };
        let change = |directory: &str| {
            let time = processor_time(&mount);
            for number in 0..500 {
                sys::create(&mount.at(&format!("{directory}/n{number}")), b"").unwrap();
                sys::unlink(&mount.at(&format!("{directory}/f{number}"))).unwrap();
            }
            processor_time(&mount) - time
        };
        let (small, large) = (list("small", SMALL), list("large", LARGE));
        let changed = (change("small"), change("large"));
        list("large", LARGE);
        if driver == Driver::Stratafs {
            // A page takes 25 entries with attributes; quadratic would be 100 times as much.
            assert!(large.0 <= LARGE / 20, "{} requests for {LARGE} entries", large.0);
            assert!(large.1 < small.1 * 40, "processor time of listings: {:?} and {:?}", small.1, large.1);
            assert!(changed.1 < changed.0 * 20, "processor time of 1,000 changes: {changed:?}");
        }
        drop(mount);
    }

    /// One slow reader must not stall the others.
    fn parallel_readers_and_writers(driver) {
        let lower: String = (0..8).map(|n| format!("file f{n} fill=1000000\n")).collect();
        let mount = Stack::new().lower(&lower).mount(driver);
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let path = mount.at(&format!("f{worker}"));
                scope.spawn(move || {
                    let file = sys::open(&path, OFlags::RDWR, 0).unwrap();
                    for round in 0..20_u64 {
                        file.write_all_at(&[round as u8; 1000], round * 40_000).unwrap();
                        assert_eq!(sys::read_file(&file).unwrap().len(), 1_000_000);
                    }
                });
            }
        });
    }
}

on_stratafs! {
    /// Stale work files leak into copied files; kill -9 in a copy-up leaves its stage for ever.
    fn stale_stages_are_removed_at_mount(driver) {
        let layers = Stack::new().lower("file f \"lower\"\nfile 1 \"one\"").build();
        let work = layers.work.clone().unwrap().join("work");
        sys::mkdir(&work, 0o755).unwrap();
        for name in ["1", "f", "#1", "0", "tmp"] {
            sys::create(&work.join(name), b"stale content that is longer").unwrap();
        }
        std::fs::create_dir_all(work.join("dir/sub")).unwrap();
        sys::create(&work.join("dir/sub/x"), b"").unwrap();
        let mount = layers.mount(driver);
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::append(&mount.at("1"), b"+").unwrap();
        assert_eq!((sys::text(&mount.at("f")), sys::text(&mount.at("1"))), ("lower+".to_owned(), "one+".to_owned()));
    }

    /// A crash loses nothing that was there, and the next mount is clean.
    fn kill_and_mount_again(driver) {
        let mount = Stack::new().lower("file f \"lower\"\nfile d/x \"x\"").mount(driver);
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::unlink(&mount.at("d/x")).unwrap();
        let mount = mount.crash().mount(driver);
        mount.assert_tree_everywhere("file f \"lower+\"\ndir d");
    }

    /// A name and its file descriptor disagree after fchmod of an unlinked lower file.
    fn fchmod_of_an_unlinked_lower_file(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDONLY, 0).unwrap();
        sys::unlink(&mount.at("f")).unwrap();
        rustix::fs::fchmod(&file, 0o600.into()).unwrap();
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_mode & 0o7777, 0o600);
        assert_eq!(sys::read_file(&file).unwrap(), b"x");
        mount.assert_upper("whiteout f");
    }

    /// Memory that grows with everything ever looked at.
    fn memory_is_given_back(driver) {
        let layers = Stack::new().lower("dir d").build();
        for number in 0..20_000 {
            std::fs::File::create(layers.lowers[0].join(format!("d/file-{number}"))).unwrap();
        }
        let mut layers = layers;
        layers.originals.clear();
        let mount = layers.mount(driver);
        let daemon = mount.daemon().unwrap();
        let resident = || {
            let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let mut sizes = vec![];
        for _ in 0..6 {
            // Some by a request of their own, all by listings with attributes.
            for number in 0..2_000 {
                sys::lstat(&mount.at(&format!("d/file-{number}"))).unwrap();
            }
            let looked_at = std::fs::read_dir(mount.at("d")).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
            assert_eq!(looked_at.count(), 20_000);
            sizes.push(resident());
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        // Other tests drop caches too, so a single size says little.
        let (early, late) = (sizes[..3].iter().max().unwrap(), sizes[3..].iter().min().unwrap());
        assert!(*late < early + 8192 && *early < 100_000, "KiB after each walk of 20,000 entries: {sizes:?}");
    }
}
