//! Removal: what it leaves in the upper layer, and that nothing reappears.

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn lower_entries_get_whiteouts(driver) {
        let mount = Stack::new()
            .lower("file f \"x\"\nlink l -> x\nfifo p\nchar c 1:3\ndir d\nfile sub/f \"y\"\nfile keep \"k\"")
            .mount(driver);
        for name in ["f", "l", "p", "c", "sub/f"] {
            sys::unlink(&mount.at(name)).unwrap();
            assert_eq!(sys::unlink(&mount.at(name)), Err(Errno::NOENT), "{name}");
        }
        sys::rmdir(&mount.at("d")).unwrap();
        mount.assert_upper("whiteout f\nwhiteout l\nwhiteout p\nwhiteout c\nwhiteout d\nwhiteout sub/f");
        mount.assert_tree_everywhere("dir sub\nfile keep \"k\"");
    }

    fn upper_entries_leave_nothing(driver) {
        let mount = Stack::new().lower("dir d").upper("file u \"x\"\nfile d/u \"y\"").mount(driver);
        sys::create(&mount.at("new"), b"").unwrap();
        sys::mkdir(&mount.at("newdir"), 0o755).unwrap();
        for name in ["u", "d/u", "new"] {
            sys::unlink(&mount.at(name)).unwrap();
        }
        sys::rmdir(&mount.at("newdir")).unwrap();
        mount.assert_upper("dir d");
        mount.assert_tree("dir d");
    }

    fn upper_over_lower_leaves_a_whiteout(driver) {
        let mount = Stack::new().lower("file f \"low\"\nfile g \"low\"\nfile d/x \"low\"").upper("file f \"up\"\ndir d").mount(driver);
        sys::append(&mount.at("g"), b"+").unwrap();
        sys::unlink(&mount.at("f")).unwrap();
        sys::unlink(&mount.at("g")).unwrap();
        sys::unlink(&mount.at("d/x")).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        mount.assert_upper("whiteout f\nwhiteout g\nwhiteout d");
        mount.assert_tree_everywhere("");
    }

    fn errors(driver) {
        let mount = Stack::new().lower("file f\nfile d/x\ndir e").lower("file e/second").upper("file u/x").mount(driver);
        assert_eq!(sys::unlink(&mount.at("d")), Err(Errno::ISDIR));
        assert_eq!(sys::rmdir(&mount.at("f")), Err(Errno::NOTDIR));
        for name in ["d", "e", "u"] {
            assert_eq!(sys::rmdir(&mount.at(name)), Err(Errno::NOTEMPTY), "{name}");
        }
        assert_eq!(sys::rmdir(&mount.at("d/.")), Err(Errno::INVAL));
        assert_eq!(sys::unlink(&mount.at("none")), Err(Errno::NOENT));
        assert_eq!(sys::rmdir(&mount.at("none")), Err(Errno::NOENT));
        assert_eq!(sys::unlink(&mount.at("f/x")), Err(Errno::NOTDIR));
        assert_eq!(sys::rmdir(mount.root()), Err(Errno::BUSY));
        mount.assert_upper("file u/x");
    }

    /// A merged directory that only looks empty because of whiteouts goes, with them.
    fn directory_of_whiteouts_is_empty(driver) {
        let mount = Stack::new()
            .lower("file d/a\nfile d/b\nfile only/a")
            .upper("whiteout d/a\nwhiteout d/b")
            .mount(driver);
        sys::rmdir(&mount.at("d")).unwrap();
        sys::unlink(&mount.at("only/a")).unwrap();
        sys::rmdir(&mount.at("only")).unwrap();
        mount.assert_upper("whiteout d\nwhiteout only");
        mount.assert_tree_everywhere("");
    }

    /// A removed directory that is made again stays empty: the mark is on disk, so every reader agrees.
    fn directory_made_again_is_empty(driver) {
        let mount = Stack::new().lower("file d/a \"0\"\nfile d/s/t \"0\"").lower("file d/b \"1\"").mount(driver);
        for path in ["d/a", "d/b", "d/s/t"] {
            sys::unlink(&mount.at(path)).unwrap();
        }
        sys::rmdir(&mount.at("d/s")).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        sys::mkdir(&mount.at("d"), 0o755).unwrap();
        assert_eq!(sys::names(&mount.at("d")), Vec::<String>::new());
        assert!(!sys::exists(&mount.at("d/a")));
        sys::mkdir(&mount.at("d/s"), 0o755).unwrap();
        assert!(!sys::exists(&mount.at("d/s/t")));
        assert_eq!(sys::getxattr(&mount.upper("d"), "trusted.overlay.opaque").unwrap(), b"y");
        mount.assert_tree_everywhere("dir d\ndir d/s");
    }

    fn recursively(driver) {
        let lower: String = (0..20).map(|n| format!("file top/d{}/e{}/f{n}\n", n % 3, n % 5)).collect();
        let mount = Stack::new().lower(&lower).lower(&lower.replace("/f", "/g")).upper("file top/d1/own").mount(driver);
        std::fs::remove_dir_all(mount.at("top")).unwrap();
        mount.assert_upper("whiteout top");
        mount.assert_tree_everywhere("");
    }

    /// The removed entry's parents are copied up with their attributes.
    fn parents_are_copied_up(driver) {
        let mount = Stack::new().lower("dir a mode=700 uid=7 mtime=1000\ndir a/b mode=711 gid=8\nfile a/b/f").mount(driver);
        sys::unlink(&mount.at("a/b/f")).unwrap();
        mount.assert_upper("dir a mode=700 uid=7\ndir a/b mode=711 gid=8\nwhiteout a/b/f");
        assert_eq!(sys::mtime(&mount.at("a")), (1000, 0));
    }

    fn unlink_copies_nothing(driver) {
        let mount = Stack::new().lower("file big size=50000000").mount(driver);
        let before = rustix::fs::statvfs(mount.upper("")).unwrap().f_bfree;
        sys::unlink(&mount.at("big")).unwrap();
        mount.assert_upper("whiteout big");
        let after = rustix::fs::statvfs(mount.upper("")).unwrap().f_bfree;
        assert!(before.saturating_sub(after) < 12_000, "blocks used: {}", before - after);
    }

    fn again_and_again(driver) {
        let mount = Stack::new().lower("file f \"low\"\nfile d/x \"low\"").mount(driver);
        for round in 0..20 {
            sys::unlink(&mount.at("f")).unwrap();
            sys::unlink(&mount.at("d/x")).unwrap();
            sys::rmdir(&mount.at("d")).unwrap();
            assert_eq!(sys::names(mount.root()), Vec::<String>::new(), "round {round}");
            sys::create(&mount.at("f"), format!("{round}").as_bytes()).unwrap();
            sys::mkdir(&mount.at("d"), 0o755).unwrap();
            sys::create(&mount.at("d/x"), b"again").unwrap();
        }
        mount.assert_tree_everywhere("file f \"19\"\nfile d/x \"again\"");
    }

    /// An open file keeps working after its name has gone.
    fn open_files_outlive_their_name(driver) {
        let mount = Stack::new().lower("file low \"low\" mode=640 uid=9").upper("file up \"up\"").mount(driver);
        for (name, size) in [("low", 3), ("up", 2)] {
            let file = sys::open(&mount.at(name), OFlags::RDWR, 0).unwrap();
            let before = rustix::fs::fstat(&file).unwrap();
            sys::unlink(&mount.at(name)).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            assert_eq!((stat.st_ino, stat.st_mode, stat.st_uid), (before.st_ino, before.st_mode, before.st_uid), "{name}");
            assert_eq!((stat.st_nlink, stat.st_size), (0, size), "{name}");
            assert_eq!(sys::read_file(&file).unwrap(), name.as_bytes());
            sys::pwrite(&file, b"more", 2).unwrap();
            rustix::fs::ftruncate(&file, 5).unwrap();
            assert_eq!(sys::read_file(&file).unwrap(), format!("{}mor", &name[..2]).as_bytes());
            rustix::fs::fchmod(&file, 0o600.into()).unwrap();
            rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(3)), None).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_size), (0o600, 3, 5), "{name}");
            rustix::fs::fsync(&file).unwrap();
            // The name is free, and its next user is another file.
            sys::create(&mount.at(name), b"new").unwrap();
            assert_eq!(sys::text(&mount.at(name)), "new");
            assert_eq!(sys::read_file(&file).unwrap().len(), 5);
        }
        mount.assert_tree("file low \"new\"\nfile up \"new\"");
    }

    /// A lower file that is open for reading only, never copied up, keeps its content after the unlink.
    fn read_only_handle_of_unlinked_lower(driver) {
        let mount = Stack::new().lower("file low \"low\"").mount(driver);
        let file = sys::open(&mount.at("low"), OFlags::RDONLY, 0).unwrap();
        sys::unlink(&mount.at("low")).unwrap();
        assert_eq!(sys::read_file(&file).unwrap(), b"low");
        // The kernel still shows the lower file's link count, 1.
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 3);
        mount.assert_upper("whiteout low");
    }

    fn sticky_directories(driver) {
        let mount = Stack::new().lower("dir t mode=1777\nfile t/low uid=1000").mount(driver);
        sys::create(&mount.at("t/root"), b"").unwrap();
        let removed = |uid, name: &str| sys::as_user(uid, uid, || sys::unlink(&mount.at(name)));
        assert_eq!(removed(1001, "t/low"), Err(Errno::PERM));
        assert_eq!(removed(1001, "t/root"), Err(Errno::PERM));
        assert_eq!(removed(1000, "t/low"), Ok(()));
        let renamed = sys::as_user(1001, 1001, || sys::rename(&mount.at("t/root"), &mount.at("t/mine")));
        assert_eq!(renamed, Err(Errno::PERM));
        mount.assert_upper("dir t mode=1777\nfile t/root\nwhiteout t/low");
    }
}
