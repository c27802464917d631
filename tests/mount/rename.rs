//! Renames of entries in every layer, and what they leave in the upper.

use rustix::fs::OFlags;

use crate::common::sys::{self, RenameFlags};
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn lower_file(driver) {
        let mount = Stack::new().lower("file a \"low\" mode=640 uid=5 user.k=v mtime=1000\ndir d").mount(driver);
        let ino = sys::ino(&mount.at("a"));
        sys::rename(&mount.at("a"), &mount.at("d/b")).unwrap();
        assert_eq!((sys::ino(&mount.at("d/b")), sys::mtime(&mount.at("d/b"))), (ino, (1000, 0)));
        assert_eq!(sys::lstat(&mount.at("a")).err(), Some(Errno::NOENT));
        mount.assert_upper("whiteout a\nfile d/b \"low\" mode=640 uid=5 user.k=v");
        mount.assert_tree_everywhere("file d/b \"low\" mode=640 uid=5 user.k=v");
    }

    fn every_kind_of_lower_entry(driver) {
        let mount = Stack::new().lower("link l -> t uid=4\nfifo p mode=600\nchar c 1:3 gid=2\nblock b 7:9\nfile f \"f\"").mount(driver);
        for name in ["l", "p", "c", "b", "f"] {
            sys::rename(&mount.at(name), &mount.at(&format!("{name}2"))).unwrap();
        }
        mount.assert_tree_everywhere("link l2 -> t uid=4\nfifo p2 mode=600\nchar c2 1:3 gid=2\nblock b2 7:9\nfile f2 \"f\"");
    }

    fn upper_file(driver) {
        let mount = Stack::new().lower("dir d").upper("file u \"u\"").mount(driver);
        sys::rename(&mount.at("u"), &mount.at("d/v")).unwrap();
        mount.assert_upper("file d/v \"u\"");
        sys::rename(&mount.at("d/v"), &mount.at("d/w")).unwrap();
        mount.assert_upper("file d/w \"u\"");
    }

    /// `rm a; touch a; mv a b` must not bring the lower `a` back.
    fn new_file_over_a_whiteout_away_again(driver) {
        let mount = Stack::new().lower("file a \"lower a\"\nfile d/x \"lower\"").mount(driver);
        sys::unlink(&mount.at("a")).unwrap();
        sys::create(&mount.at("a"), b"new").unwrap();
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        assert_eq!(sys::lstat(&mount.at("a")).err(), Some(Errno::NOENT));
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::mkdir(&mount.at("d"), 0o755).unwrap();
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        mount.assert_upper("whiteout a\nfile b \"new\"\nwhiteout d\ndir e");
        mount.assert_tree_everywhere("file b \"new\"\ndir e");
    }

    fn over_existing(driver) {
        let mount = Stack::new()
            .lower("file a \"a\"\nfile b \"b\"\nfile c \"c\"\nlink l -> x\nfile e \"e\"")
            .upper("file u \"u\"\nfile v \"v\"")
            .mount(driver);
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        sys::rename(&mount.at("u"), &mount.at("c")).unwrap();
        sys::rename(&mount.at("v"), &mount.at("l")).unwrap();
        sys::rename(&mount.at("e"), &mount.at("c")).unwrap();
        mount.assert_upper("whiteout a\nfile b \"a\"\nfile c \"e\"\nfile l \"v\"\nwhiteout e");
        mount.assert_tree_everywhere("file b \"a\"\nfile c \"e\"\nfile l \"v\"");
    }

    fn over_whiteout(driver) {
        let mount = Stack::new().lower("file a \"a\"\nfile b \"b\"\nfile d/x").upper("file u \"u\"\ndir ud").mount(driver);
        sys::unlink(&mount.at("b")).unwrap();
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        sys::unlink(&mount.at("b")).unwrap();
        sys::rename(&mount.at("u"), &mount.at("b")).unwrap();
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::rename(&mount.at("ud"), &mount.at("d")).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("d"), "trusted.overlay.opaque").unwrap(), b"y");
        mount.assert_upper("whiteout a\nfile b \"u\"\ndir d");
        mount.assert_tree_everywhere("file b \"u\"\ndir d");
    }

    fn errors(driver) {
        let mount = Stack::new()
            .lower("file f\nfile g\ndir d\nfile d/x\ndir e\nfile e/y")
            .lower("file m/low")
            .upper("file u\nfile ud/z\nwhiteout gone")
            .mount(driver);
        let rename = |from: &str, to: &str| sys::rename(&mount.at(from), &mount.at(to));
        for (from, to, expected) in [
            ("none", "x", Errno::NOENT),
            ("gone", "x", Errno::NOENT),
            ("f", "d", Errno::ISDIR),
            ("d", "f", Errno::NOTDIR),
            ("d", "e", Errno::NOTEMPTY),
            ("ud", "e", Errno::NOTEMPTY),
            ("e", "ud", Errno::NOTEMPTY),
            ("ud", "m", Errno::NOTEMPTY),
            ("d", "d/sub", Errno::INVAL),
            ("d/x", "d", Errno::NOTEMPTY),
            ("f", "none/x", Errno::NOENT),
            ("f", "g/x", Errno::NOTDIR),
            ("f/x", "g", Errno::NOTDIR),
        ] {
            assert_eq!(rename(from, to), Err(expected), "{from} to {to}");
        }
        let exclusive = |from: &str, to: &str| sys::rename_with(&mount.at(from), &mount.at(to), RenameFlags::NOREPLACE);
        for target in ["g", "d", "m", "u"] {
            assert_eq!(exclusive("f", target), Err(Errno::EXIST), "f to {target}");
        }
        let exchange = |from: &str, to: &str| sys::rename_with(&mount.at(from), &mount.at(to), RenameFlags::EXCHANGE);
        assert_eq!(exchange("f", "none"), Err(Errno::NOENT));
        assert_eq!(exchange("f", "gone"), Err(Errno::NOENT));
        assert_eq!(exchange("d", "d/x"), Err(Errno::INVAL));
        let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
        assert_eq!(sys::rename_with(&mount.at("f"), &mount.at("g"), both), Err(Errno::INVAL));
        mount.assert_tree("file f\nfile g\nfile d/x\nfile e/y\nfile m/low\nfile u\nfile ud/z");
    }

    fn onto_itself(driver) {
        let mount = Stack::new().lower("file f \"x\"\nfile d/x").upper("file u \"u\"\nhard u2 u").mount(driver);
        sys::rename(&mount.at("f"), &mount.at("f")).unwrap();
        sys::rename(&mount.at("d"), &mount.at("d")).unwrap();
        // Two names of one file: rename does nothing.
        sys::rename(&mount.at("u"), &mount.at("u2")).unwrap();
        mount.assert_tree("file f \"x\"\nfile d/x\nfile u \"u\"\nfile u2 \"u\"");
        mount.assert_upper("file u \"u\"\nfile u2 \"u\"");
    }

    fn noreplace(driver) {
        let mount = Stack::new().lower("file a \"a\"\nfile gone\ndir d").upper("file u \"u\"").mount(driver);
        let exclusive = |from: &str, to: &str| sys::rename_with(&mount.at(from), &mount.at(to), RenameFlags::NOREPLACE);
        sys::unlink(&mount.at("gone")).unwrap();
        exclusive("a", "gone").unwrap();
        exclusive("u", "d/u").unwrap();
        exclusive("d", "e").unwrap();
        mount.assert_tree_everywhere("file gone \"a\"\nfile e/u \"u\"");
    }

    fn exchange(driver) {
        let mount = Stack::new()
            .lower("file a \"a\"\nfile b \"b\"\nfile d/x \"dx\"\nfile e/y \"ey\"\nlink l -> t")
            .upper("file u \"u\"\nfile ud/z \"udz\"")
            .mount(driver);
        let exchange = |from: &str, to: &str| sys::rename_with(&mount.at(from), &mount.at(to), RenameFlags::EXCHANGE);
        exchange("a", "b").unwrap();
        exchange("u", "l").unwrap();
        exchange("d", "e").unwrap();
        exchange("ud", "a").unwrap();
        let tree = "file ud \"b\"\nfile a/z \"udz\"\nfile b \"a\"\nfile e/x \"dx\"\nfile d/y \"ey\"\nfile l \"u\"\nlink u -> t";
        mount.assert_tree(tree);
        exchange("d/y", "b").unwrap();
        mount.assert_tree_everywhere("file ud \"b\"\nfile a/z \"udz\"\nfile d/y \"a\"\nfile e/x \"dx\"\nfile b \"ey\"\nlink u -> t\nfile l \"u\"");
    }

    fn lower_directory(driver) {
        let mount = Stack::new().lower("dir d mode=750 uid=3 mtime=1000\nfile d/x \"x\"\nfile d/s/y \"y\"\ndir into").mount(driver);
        let inos = ["d", "d/x", "d/s", "d/s/y"].map(|path| sys::ino(&mount.at(path)));
        sys::rename(&mount.at("d"), &mount.at("into/e")).unwrap();
        assert_eq!(["into/e", "into/e/x", "into/e/s", "into/e/s/y"].map(|path| sys::ino(&mount.at(path))), inos);
        assert_eq!(sys::lstat(&mount.at("d")).err(), Some(Errno::NOENT));
        mount.assert_upper("whiteout d\ndir into/e mode=750 uid=3 trusted.overlay.redirect=/d");
        let tree = "dir into/e mode=750 uid=3\nfile into/e/x \"x\"\nfile into/e/s/y \"y\"";
        mount.assert_tree(tree);
        let mount = mount.remount(driver);
        assert_eq!(["into/e", "into/e/x", "into/e/s", "into/e/s/y"].map(|path| sys::ino(&mount.at(path))), inos);
        mount.assert_tree_everywhere(tree);
    }

    /// Within one directory the redirect is relative.
    fn lower_directory_in_place(driver) {
        let mount = Stack::new().lower("file top/d/x \"x\"").mount(driver);
        sys::rename(&mount.at("top/d"), &mount.at("top/e")).unwrap();
        mount.assert_upper("whiteout top/d\ndir top/e trusted.overlay.redirect=d");
        mount.assert_tree_everywhere("file top/e/x \"x\"");
    }

    fn merged_directory(driver) {
        let mount = Stack::new()
            .lower("file d/a \"0\"\nfile d/gone \"0\"\nfile d/s/p \"0\"")
            .lower("file d/b \"1\"\nfile d/s/q \"1\"")
            .upper("file d/c \"up\"\nwhiteout d/gone\nfile d/s/r \"up\"")
            .mount(driver);
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        sys::rename(&mount.at("e/s"), &mount.at("s")).unwrap();
        sys::create(&mount.at("e/new"), b"new").unwrap();
        let tree = "file e/a \"0\"\nfile e/b \"1\"\nfile e/c \"up\"\nfile e/new \"new\"\nfile s/p \"0\"\nfile s/q \"1\"\nfile s/r \"up\"";
        mount.assert_tree(tree);
        mount.assert_tree_everywhere(tree);
    }

    /// Renamed away and back, twice, with changes inside.
    fn directory_there_and_back(driver) {
        let mount = Stack::new().lower("file d/x \"x\"\nfile d/y \"y\"\ndir o").mount(driver);
        sys::rename(&mount.at("d"), &mount.at("o/e")).unwrap();
        sys::unlink(&mount.at("o/e/x")).unwrap();
        sys::rename(&mount.at("o/e"), &mount.at("d")).unwrap();
        mount.assert_tree("file d/y \"y\"\ndir o");
        sys::rename(&mount.at("d"), &mount.at("f")).unwrap();
        sys::mkdir(&mount.at("d"), 0o700).unwrap();
        mount.assert_tree_everywhere("file f/y \"y\"\ndir o\ndir d mode=700");
    }

    fn directory_over_empty_directory(driver) {
        let mount = Stack::new()
            .lower("file d/x \"x\"\ndir empty\nfile emptied/y\nfile d2/z \"z\"\ndir empty2")
            .upper("dir ud\nfile ud/u \"u\"")
            .mount(driver);
        sys::unlink(&mount.at("emptied/y")).unwrap();
        sys::rename(&mount.at("d"), &mount.at("empty")).unwrap();
        sys::rename(&mount.at("d2"), &mount.at("emptied")).unwrap();
        sys::rename(&mount.at("ud"), &mount.at("empty2")).unwrap();
        mount.assert_tree_everywhere("file empty/x \"x\"\nfile emptied/z \"z\"\nfile empty2/u \"u\"");
    }

    /// A renamed directory whose old name is used again.
    fn new_directory_in_the_old_place(driver) {
        let mount = Stack::new().lower("file d/x \"old\"").mount(driver);
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        sys::mkdir(&mount.at("d"), 0o755).unwrap();
        sys::create(&mount.at("d/x"), b"new").unwrap();
        sys::rename(&mount.at("d"), &mount.at("f")).unwrap();
        sys::rename(&mount.at("e"), &mount.at("d")).unwrap();
        mount.assert_tree_everywhere("file d/x \"old\"\nfile f/x \"new\"");
    }

    /// Children of a renamed directory keep working: lookups, renames, removals, copy-ups below a redirect.
    fn below_a_redirect(driver) {
        let mount = Stack::new().lower("file d/s/x \"0\"\nfile d/t/y \"0\"\nfile d/z \"0\"").lower("file d/s/w \"1\"").mount(driver);
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        let mount = mount.remount(driver);
        sys::append(&mount.at("e/s/x"), b"+").unwrap();
        sys::unlink(&mount.at("e/s/w")).unwrap();
        sys::rename(&mount.at("e/t"), &mount.at("t")).unwrap();
        sys::rename(&mount.at("e/s"), &mount.at("t/s")).unwrap();
        let mount = mount.remount(driver);
        assert_eq!(sys::getxattr(&mount.upper("t"), "trusted.overlay.redirect").unwrap(), b"/d/t");
        assert_eq!(sys::getxattr(&mount.upper("t/s"), "trusted.overlay.redirect").unwrap(), b"/d/s");
        mount.assert_tree_everywhere("file e/z \"0\"\nfile t/y \"0\"\nfile t/s/x \"0+\"");
    }

    /// A path through an opaque directory of a lower layer ends there, unless an absolute redirect leads out of it again.
    /// Several redirects on one path add up.
    fn redirects_on_the_way(driver) {
        let mount = Stack::new()
            .lower("dir left trusted.overlay.redirect=/o/e\ndir below trusted.overlay.redirect=/o/e/g\ndir stays trusted.overlay.redirect=/o/h\ndir both trusted.overlay.redirect=/p/e/g")
            .lower("dir o trusted.overlay.opaque=y\ndir o/e trusted.overlay.redirect=/f\ndir o/h\nfile o/h/seen\ndir p trusted.overlay.redirect=q\ndir p/e trusted.overlay.redirect=r\ndir p/e/g")
            .lower("file f/x \"x\"\nfile f/g/y \"y\"\nfile o/h/hidden\nfile q/r/g/z \"z\"")
            .mount(driver);
        assert_eq!(sys::names(&mount.at("left")), ["g", "x"]);
        assert_eq!(sys::names(&mount.at("below")), ["y"]);
        assert_eq!(sys::names(&mount.at("stays")), ["seen"]);
        assert_eq!(sys::names(&mount.at("both")), ["z"]);
    }

    fn upper_directory(driver) {
        let mount = Stack::new().lower("dir d").upper("file ud/a/b \"x\"").mount(driver);
        sys::rename(&mount.at("ud"), &mount.at("d/ud")).unwrap();
        mount.assert_upper("file d/ud/a/b \"x\"");
        mount.assert_tree_everywhere("file d/ud/a/b \"x\"");
    }

    /// A pure upper directory that lands where a lower one shows must not merge with it.
    fn upper_directory_does_not_merge_where_it_lands(driver) {
        let mount = Stack::new().lower("file d/low").upper("file ud/up \"u\"").mount(driver);
        sys::unlink(&mount.at("d/low")).unwrap();
        sys::rename(&mount.at("ud"), &mount.at("d")).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("d"), "trusted.overlay.opaque").unwrap(), b"y");
        mount.assert_tree_everywhere("file d/up \"u\"");
    }

    /// Files open during renames keep their content and follow neither name nor successor.
    fn open_files_follow_the_file(driver) {
        let mount = Stack::new().lower("file a \"aaa\"\nfile b \"bbb\"").mount(driver);
        let a = sys::open(&mount.at("a"), OFlags::RDWR, 0).unwrap();
        let b = sys::open(&mount.at("b"), OFlags::RDWR, 0).unwrap();
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        sys::pwrite(&a, b"A", 0).unwrap();
        sys::pwrite(&b, b"B", 0).unwrap();
        assert_eq!(sys::text(&mount.at("b")), "Aaa");
        assert_eq!(sys::read_file(&b).unwrap(), b"Bbb");
        let stat = rustix::fs::fstat(&b).unwrap();
        assert_eq!((stat.st_nlink, stat.st_size), (0, 3));
        rustix::fs::ftruncate(&b, 1).unwrap();
        assert_eq!(sys::read_file(&b).unwrap(), b"B");
        assert_eq!(rustix::fs::fstat(&a).unwrap().st_ino, sys::ino(&mount.at("b")));
        drop((a, b));
        mount.assert_tree_everywhere("file b \"Aaa\"");
    }

    /// What editors and package managers do: write beside, sync, rename over.
    fn atomic_replacement(driver) {
        let mount = Stack::new().lower("file etc/config \"version 0\" mode=640 uid=2").mount(driver);
        for version in 1..10 {
            let content = format!("version {version}");
            sys::create(&mount.at("etc/config.new"), content.as_bytes()).unwrap();
            let file = sys::open(&mount.at("etc/config.new"), OFlags::WRONLY, 0).unwrap();
            rustix::fs::fsync(&file).unwrap();
            sys::rename(&mount.at("etc/config.new"), &mount.at("etc/config")).unwrap();
            assert_eq!(sys::text(&mount.at("etc/config")), content);
        }
        mount.assert_upper("file etc/config \"version 9\"");
    }

    fn redirect_off_gives_exdev(driver) {
        let mount = Stack::new().lower("file d/x \"x\"").upper("file ud/u").option("redirect_dir=off").mount(driver);
        assert_eq!(sys::rename(&mount.at("d"), &mount.at("e")), Err(Errno::XDEV));
        sys::rename(&mount.at("ud"), &mount.at("vd")).unwrap();
        mount.assert_tree("file d/x \"x\"\nfile vd/u");
        mount.assert_upper("file vd/u");
    }

    fn times(driver) {
        let mount = Stack::new().lower("dir a mtime=1000\nfile a/f mtime=2000\ndir b mtime=3000\ndir a/d mtime=4000").mount(driver);
        sys::rename(&mount.at("a/f"), &mount.at("b/f")).unwrap();
        sys::rename(&mount.at("a/d"), &mount.at("b/d")).unwrap();
        assert_eq!(sys::mtime(&mount.at("b/f")), (2000, 0));
        assert_eq!(sys::mtime(&mount.at("b/d")), (4000, 0));
        assert!(sys::mtime(&mount.at("a")).0 > 1000);
        assert!(sys::mtime(&mount.at("b")).0 > 3000);
    }
}
