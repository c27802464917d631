//! Attributes: what each change copies up, and what it must not change.

use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    /// Each change of a lower entry copies it up with everything else as it was.
    fn changes_of_lower_entries(driver) {
        for (entry, change) in [
            ("file e \"content\" mode=640 uid=3 gid=4 user.k=v mtime=1000", "file"),
            ("dir e mode=750 uid=3 gid=4 user.k=v mtime=1000", "dir"),
            ("fifo e mode=640 uid=3 gid=4 mtime=1000", "fifo"),
            ("char e 1:3 mode=640 uid=3 gid=4 mtime=1000", "char"),
        ] {
            let mount = Stack::new().lower(&format!("dir d mode=711 uid=8 mtime=500\n{}", entry.replacen(" e", " d/e", 1))).mount(driver);
            let path = mount.at("d/e");
            let ino = sys::ino(&path);
            sys::chmod(&path, 0o705).unwrap();
            assert_eq!((sys::mode(&path), sys::mtime(&path), sys::ino(&path)), (0o705, (1000, 0), ino), "{change}");
            sys::chown(&path, Some(10), Some(11)).unwrap();
            sys::utimens(&path, (7, 8), (9, 10)).unwrap();
            let stat = sys::lstat(&path).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid, stat.st_ino), (10, 11, ino), "{change}");
            assert_eq!((stat.st_atime, stat.st_atime_nsec, stat.st_mtime, stat.st_mtime_nsec), (7, 8, 9, 10), "{change}");
            assert_eq!(sys::mtime(&mount.at("d")), (500, 0), "the parent's time, {change}");
            let changed = entry
                .replacen(" e", " d/e", 1)
                .replace("mode=640", "mode=705")
                .replace("mode=750", "mode=705")
                .replace("uid=3 gid=4", "uid=10 gid=11");
            mount.assert_upper(&format!("dir d mode=711 uid=8\n{changed}"));
            let mount = mount.remount(driver);
            assert_eq!((sys::ino(&mount.at("d/e")), sys::mtime(&mount.at("d/e"))), (ino, (9, 10)), "{change}");
        }
    }

    fn symlinks(driver) {
        let mount = Stack::new().lower("link l -> t uid=3 mtime=1000\nfile t \"t\" mode=600").mount(driver);
        let ino = sys::ino(&mount.at("l"));
        sys::chown(&mount.at("l"), Some(5), Some(6)).unwrap();
        sys::utimens(&mount.at("l"), (1, 2), (3, 4)).unwrap();
        assert_eq!((sys::ino(&mount.at("l")), sys::mtime(&mount.at("l"))), (ino, (3, 4)));
        // Through the link: the target.
        sys::chmod(&mount.at("l"), 0o640).unwrap();
        mount.assert_upper("link l -> t uid=5 gid=6\nfile t \"t\" mode=640");
    }

    fn truncate_of_lower_files(driver) {
        let mount = Stack::new().lower("file a fill=100000\nfile b fill=100000\nfile c fill=100000\nfile d fill=100000").mount(driver);
        let content = crate::common::tree::pattern(100_000);
        sys::truncate(&mount.at("a"), 0).unwrap();
        sys::truncate(&mount.at("b"), 70_001).unwrap();
        sys::truncate(&mount.at("c"), 150_000).unwrap();
        rustix::fs::ftruncate(sys::open(&mount.at("d"), OFlags::RDWR, 0).unwrap(), 1).unwrap();
        assert_eq!(sys::read(&mount.at("a")).unwrap(), b"");
        assert_eq!(sys::read(&mount.at("b")).unwrap(), &content[..70_001]);
        let mut longer = content.clone();
        longer.resize(150_000, 0);
        assert_eq!(sys::read(&mount.at("c")).unwrap(), longer);
        assert_eq!(sys::read(&mount.at("d")).unwrap(), &content[..1]);
        assert!(sys::mtime(&mount.at("a")).0 > 1_000_000_000);
    }

    fn truncate_errors(driver) {
        let mount = Stack::new().lower("file f\ndir d\nfile ro mode=444 uid=1000").mount(driver);
        let truncate = |path: &str| std::fs::OpenOptions::new().write(true).open(mount.at(path)).map(|_| ()).map_err(|e| e.raw_os_error());
        assert_eq!(truncate("d"), Err(Some(libc::EISDIR)));
        let by_owner = sys::as_user(1000, 1000, || sys::truncate(&mount.at("ro"), 0));
        assert_eq!(by_owner, Err(Errno::ACCESS));
        let by_other = sys::as_user(1000, 1000, || sys::truncate(&mount.at("f"), 0));
        assert_eq!(by_other, Err(Errno::ACCESS));
        assert_eq!(sys::truncate(&mount.at("f"), u64::MAX >> 1), Err(Errno::FBIG));
        mount.assert_tree("file f\ndir d\nfile ro mode=444 uid=1000");
    }

    fn through_descriptors(driver) {
        let mount = Stack::new().lower("file low \"x\"\ndir d").upper("file up \"x\"").mount(driver);
        for name in ["low", "up", "d"] {
            let file = sys::open(&mount.at(name), OFlags::RDONLY, 0).unwrap();
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::fchown(&file, Some(Uid::from_raw(4)), Some(Gid::from_raw(5))).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o700, 4, 5), "{name}");
            assert_eq!(stat.st_ino, sys::ino(&mount.at(name)));
        }
        mount.assert_upper("file low \"x\" mode=700 uid=4 gid=5\nfile up \"x\" mode=700 uid=4 gid=5\ndir d mode=700 uid=4 gid=5");
    }

    fn root_directory(driver) {
        let mount = Stack::new().lower("dir . mode=711 uid=9\nfile f").upper("dir . mode=755").mount(driver);
        assert_eq!(sys::mode(mount.root()), 0o755);
        sys::chmod(mount.root(), 0o1777).unwrap();
        sys::chown(mount.root(), Some(3), None).unwrap();
        sys::utimens(mount.root(), (1, 0), (2, 0)).unwrap();
        sys::setxattr(mount.root(), "user.k", b"v").unwrap();
        let ino = sys::ino(mount.root());
        mount.assert_tree("dir . mode=1777 uid=3 user.k=v\nfile f");
        assert_eq!(sys::mtime(mount.root()), (2, 0));
        let mount = mount.remount(driver);
        assert_eq!(sys::ino(mount.root()), ino);
        mount.assert_tree("dir . mode=1777 uid=3 user.k=v\nfile f");
    }

    fn times_move(driver) {
        let mount = Stack::new().lower("dir d mtime=1000\nfile f \"x\" mtime=1000\nfile g \"x\" mtime=1000").mount(driver);
        let ctime = |path: &str| {
            let stat = sys::lstat(&mount.at(path)).unwrap();
            (stat.st_ctime, stat.st_ctime_nsec)
        };
        let before = ctime("f");
        std::thread::sleep(std::time::Duration::from_millis(20));
        sys::append(&mount.at("f"), b"y").unwrap();
        assert!(sys::mtime(&mount.at("f")).0 > 1000);
        assert!(ctime("f") > before);
        let before = ctime("g");
        std::thread::sleep(std::time::Duration::from_millis(20));
        sys::chmod(&mount.at("g"), 0o600).unwrap();
        assert_eq!(sys::mtime(&mount.at("g")), (1000, 0));
        assert!(ctime("g") > before);
        let before = ctime("g");
        std::thread::sleep(std::time::Duration::from_millis(20));
        sys::link(&mount.at("g"), &mount.at("h")).unwrap();
        assert!(ctime("g") > before, "link moves ctime");
        sys::create(&mount.at("d/new"), b"").unwrap();
        let made = sys::mtime(&mount.at("d"));
        assert!(made.0 > 1000);
        std::thread::sleep(std::time::Duration::from_millis(20));
        sys::unlink(&mount.at("d/new")).unwrap();
        assert!(sys::mtime(&mount.at("d")) > made);
    }

    /// Times far from now, with nanoseconds.
    fn time_range(driver) {
        let mount = Stack::new().lower("file f").mount(driver);
        for time in [(0, 0), (-1, 500_000_000), (-86_400, 0), (4_000_000_000, 123_456_789), (1, 999_999_999)] {
            sys::utimens(&mount.at("f"), time, time).unwrap();
            assert_eq!(sys::mtime(&mount.at("f")), time);
        }
        // Setting one of them leaves the other.
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        };
        rustix::fs::utimensat(rustix::fs::CWD, mount.at("f"), &times, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(sys::mtime(&mount.at("f")), (1, 999_999_999));
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_atime, 5);
    }

    fn statfs(driver) {
        let mount = Stack::new().lower("file f").mount(driver);
        let (union, upper) = (rustix::fs::statvfs(mount.root()).unwrap(), rustix::fs::statvfs(mount.upper("")).unwrap());
        assert_eq!((union.f_blocks, union.f_frsize, union.f_namemax, union.f_files), (upper.f_blocks, upper.f_frsize, 255, upper.f_files));
        let difference = union.f_bavail.abs_diff(upper.f_bavail);
        assert!(difference < upper.f_bavail / 50, "free blocks: {} and {}", union.f_bavail, upper.f_bavail);
    }

    fn sizes_and_blocks(driver) {
        let mount = Stack::new().lower("file empty\nfile small \"x\"\nfile big fill=1000000\nfile sparse size=1000000\nlink l -> four").mount(driver);
        let size = |path: &str| sys::lstat(&mount.at(path)).unwrap().st_size;
        assert_eq!(["empty", "small", "big", "sparse", "l"].map(size), [0, 1, 1_000_000, 1_000_000, 4]);
        assert_eq!(sys::allocated(&mount.at("sparse")), 0);
        assert!(sys::allocated(&mount.at("big")) >= 1_000_000);
        let device = sys::lstat(&mount.at("big")).unwrap();
        assert!(device.st_blksize >= 512);
    }

    /// Owners and modes decide about access, for every layer alike.
    fn permissions(driver) {
        let tree = "file secret \"s\" mode=600\nfile public \"p\" mode=644\nfile mine \"m\" mode=600 uid=1000\nfile group \"g\" mode=640 gid=77
            dir closed mode=700\nfile closed/f \"c\"\ndir search mode=711\nfile search/f \"s\" mode=644\nfile run \"#!/bin/true\" mode=744";
        for upper in [false, true] {
            let stack = if upper { Stack::new().lower("").upper(tree) } else { Stack::new().lower(tree) };
            let mount = stack.mount(driver);
            sys::as_user_in(1000, 1000, &[77], 0o022, || {
                let read = |path: &str| sys::read(&mount.at(path)).map(|content| content.len());
                assert_eq!(read("secret"), Err(Errno::ACCESS));
                assert_eq!(read("public"), Ok(1));
                assert_eq!(read("mine"), Ok(1));
                assert_eq!(read("group"), Ok(1), "by a supplementary group");
                assert_eq!(read("closed/f"), Err(Errno::ACCESS));
                assert_eq!(read("search/f"), Ok(1));
                assert_eq!(sys::readdir(&mount.at("search")).err(), Some(Errno::ACCESS));
                assert_eq!(sys::append(&mount.at("public"), b"x"), Err(Errno::ACCESS));
                assert_eq!(sys::create(&mount.at("new"), b""), Err(Errno::ACCESS));
                assert_eq!(sys::unlink(&mount.at("mine")), Err(Errno::ACCESS));
                assert_eq!(sys::chmod(&mount.at("public"), 0o666), Err(Errno::PERM));
                assert_eq!(sys::chown(&mount.at("mine"), Some(0), None), Err(Errno::PERM));
                assert_eq!(sys::utimens(&mount.at("public"), (1, 0), (1, 0)), Err(Errno::PERM));
                let access = rustix::fs::access(mount.at("run"), rustix::fs::Access::EXEC_OK);
                assert_eq!(access, Err(Errno::ACCESS));
                sys::append(&mount.at("mine"), b"x").unwrap();
                sys::chmod(&mount.at("mine"), 0o644).unwrap();
            });
            assert_eq!(sys::text(&mount.at("mine")), "mx");
        }
    }
}
