//! Hard links: new ones keep one inode, those of a lower layer break at copy-up as in the kernel without an index.

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn to_upper_and_lower_files(driver) {
        let mount = Stack::new().lower("file low \"low\" mode=640 user.k=v\ndir d").upper("file up \"up\"").mount(driver);
        for name in ["low", "up"] {
            let ino = sys::ino(&mount.at(name));
            let other = format!("d/{name}2");
            sys::link(&mount.at(name), &mount.at(&other)).unwrap();
            assert_eq!((sys::ino(&mount.at(name)), sys::ino(&mount.at(&other))), (ino, ino), "{name}");
            assert_eq!((sys::nlink(&mount.at(name)), sys::nlink(&mount.at(&other))), (2, 2), "{name}");
            sys::append(&mount.at(&other), b"+").unwrap();
            assert_eq!(sys::text(&mount.at(name)), format!("{name}+"));
            sys::chmod(&mount.at(name), 0o600).unwrap();
            assert_eq!(sys::mode(&mount.at(&other)), 0o600);
        }
        sys::unlink(&mount.at("low")).unwrap();
        assert_eq!(sys::nlink(&mount.at("d/low2")), 1);
        mount.assert_upper("whiteout low\nfile d/low2 \"low+\" mode=600 user.k=v\nfile up \"up+\" mode=600\nfile d/up2 \"up+\" mode=600");
        mount.assert_tree_everywhere("file d/low2 \"low+\" mode=600 user.k=v\nfile up \"up+\" mode=600\nfile d/up2 \"up+\" mode=600");
    }

    fn links_survive_a_remount(driver) {
        let mount = Stack::new().lower("file low \"x\"").mount(driver);
        let ino = sys::ino(&mount.at("low"));
        sys::link(&mount.at("low"), &mount.at("two")).unwrap();
        sys::link(&mount.at("two"), &mount.at("three")).unwrap();
        let mount = mount.remount(driver);
        for name in ["low", "two", "three"] {
            assert_eq!((sys::ino(&mount.at(name)), sys::nlink(&mount.at(name))), (ino, 3), "{name}");
        }
        sys::append(&mount.at("two"), b"y").unwrap();
        assert_eq!(sys::text(&mount.at("three")), "xy");
    }

    fn every_kind(driver) {
        let mount = Stack::new().lower("link l -> t\nfifo p\nchar c 1:3").mount(driver);
        for name in ["l", "p", "c"] {
            let other = mount.at(&format!("{name}2"));
            sys::link(&mount.at(name), &other).unwrap();
            assert_eq!((sys::ino(&other), sys::nlink(&other)), (sys::ino(&mount.at(name)), 2), "{name}");
        }
        mount.assert_tree_everywhere("link l -> t\nlink l2 -> t\nfifo p\nfifo p2\nchar c 1:3\nchar c2 1:3");
    }

    fn errors(driver) {
        let mount = Stack::new().lower("file f\ndir d\nfile g").mount(driver);
        assert_eq!(sys::link(&mount.at("d"), &mount.at("x")), Err(Errno::PERM));
        assert_eq!(sys::link(&mount.at("f"), &mount.at("g")), Err(Errno::EXIST));
        assert_eq!(sys::link(&mount.at("f"), &mount.at("d")), Err(Errno::EXIST));
        assert_eq!(sys::link(&mount.at("none"), &mount.at("x")), Err(Errno::NOENT));
        assert_eq!(sys::link(&mount.at("f"), &mount.at("none/x")), Err(Errno::NOENT));
        assert_eq!(sys::link(&mount.at("f"), &mount.at("g/x")), Err(Errno::NOTDIR));
        assert_eq!(sys::link(&mount.at("f"), &mount.lower(0, "x")), Err(Errno::XDEV));
        mount.assert_tree("file f\ndir d\nfile g");
    }

    /// Without an index each name of a lower hard link is copied up on its own; the others stay as they are.
    fn lower_hard_links_break(driver) {
        let mount = Stack::new().lower("file a \"x\"\nhard b a\nhard d/c a").mount(driver);
        assert_eq!(sys::nlink(&mount.at("a")), 3);
        assert_eq!(sys::ino(&mount.at("a")), sys::ino(&mount.at("d/c")));
        sys::append(&mount.at("a"), b"+").unwrap();
        assert_eq!((sys::text(&mount.at("a")), sys::nlink(&mount.at("a"))), ("x+".to_owned(), 1));
        assert_eq!((sys::text(&mount.at("b")), sys::text(&mount.at("d/c"))), ("x".to_owned(), "x".to_owned()));
        assert_ne!(sys::ino(&mount.at("a")), sys::ino(&mount.at("b")));
        sys::unlink(&mount.at("b")).unwrap();
        sys::append(&mount.at("d/c"), b"-").unwrap();
        mount.assert_tree_everywhere("file a \"x+\"\nfile d/c \"x-\"");
    }

    /// What was cached of one name must not answer for the other.
    fn lower_hard_links_with_open_files(driver) {
        let mount = Stack::new().lower("file a \"x\"\nhard b a").mount(driver);
        let a = sys::open(&mount.at("a"), OFlags::RDONLY, 0).unwrap();
        let b = sys::open(&mount.at("b"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&b, b"B", 0).unwrap();
        assert_eq!(sys::read_file(&a).unwrap(), b"x");
        assert_eq!((sys::text(&mount.at("a")), sys::text(&mount.at("b"))), ("x".to_owned(), "B".to_owned()));
        sys::unlink(&mount.at("a")).unwrap();
        assert_eq!(sys::text(&mount.at("b")), "B");
        assert_eq!(sys::nlink(&mount.at("b")), 1);
    }

    fn over_whiteout_and_renamed(driver) {
        let mount = Stack::new().lower("file a \"a\"\nfile b \"b\"").mount(driver);
        sys::unlink(&mount.at("b")).unwrap();
        sys::link(&mount.at("a"), &mount.at("b")).unwrap();
        sys::rename(&mount.at("a"), &mount.at("c")).unwrap();
        sys::append(&mount.at("b"), b"+").unwrap();
        assert_eq!((sys::text(&mount.at("c")), sys::nlink(&mount.at("c"))), ("a+".to_owned(), 2));
        mount.assert_upper("whiteout a\nfile b \"a+\"\nfile c \"a+\"");
    }

    fn of_an_open_unlinked_file(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        let file = std::os::fd::OwnedFd::from(sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap());
        sys::unlink(&mount.at("f")).unwrap();
        let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        let linked = rustix::fs::linkat(rustix::fs::CWD, sys::fd_path(&file), rustix::fs::CWD, mount.at("g"), flags);
        assert_eq!(linked, Err(Errno::NOENT));
    }

    fn many_links(driver) {
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        for number in 0..50 {
            sys::link(&mount.at("f"), &mount.at(&format!("l{number}"))).unwrap();
        }
        assert_eq!(sys::nlink(&mount.at("f")), 51);
        for number in 0..25 {
            sys::unlink(&mount.at(&format!("l{number}"))).unwrap();
        }
        assert_eq!(sys::nlink(&mount.at("l30")), 26);
    }

    /// Opening for writing breaks it, written or not; attributes and listing say so at once.
    fn opening_for_writing_breaks_a_lower_link(driver) {
        let mount = Stack::new().lower("file a \"x\"\nhard b a\nhard c a").mount(driver);
        let listed = |name: &str| sys::readdir(mount.root()).unwrap().into_iter().find(|e| e.name == name).unwrap().ino;
        assert_eq!(listed("a"), sys::ino(&mount.at("a")));
        drop(sys::open(&mount.at("a"), OFlags::WRONLY, 0).unwrap());
        assert_eq!(sys::nlink(&mount.at("a")), 1);
        assert_ne!(sys::ino(&mount.at("a")), sys::ino(&mount.at("b")));
        assert_eq!(listed("a"), sys::ino(&mount.at("a")));
        sys::chmod(&mount.at("b"), 0o600).unwrap();
        assert_eq!(listed("b"), sys::ino(&mount.at("b")));
        assert_eq!((sys::nlink(&mount.at("b")), sys::nlink(&mount.at("c"))), (1, 3));
    }
}
