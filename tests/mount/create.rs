//! New entries: in copied-up parents, over whiteouts, over removed directories.

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn parents_are_copied_up_with_their_attributes(driver) {
        let mount = Stack::new()
            .lower("dir a mode=1771 uid=3 gid=4 user.k=v mtime=1000\ndir a/b mode=2750 uid=5 gid=6 mtime=2000")
            .mount(driver);
        sys::create(&mount.at("a/b/new"), b"n").unwrap();
        mount.assert_tree("dir a mode=1771 uid=3 gid=4 user.k=v\ndir a/b mode=2750 uid=5 gid=6\nfile a/b/new \"n\" gid=6");
        mount.assert_upper("dir a mode=1771 uid=3 gid=4 user.k=v\ndir a/b mode=2750 uid=5 gid=6\nfile a/b/new \"n\" gid=6");
        assert_eq!(sys::mtime(&mount.at("a")), (1000, 0));
        assert!(sys::mtime(&mount.at("a/b")).0 > 2000);
    }

    fn every_kind(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        sys::create(&mount.at("d/f"), b"x").unwrap();
        sys::mkdir(&mount.at("d/d"), 0o751).unwrap();
        sys::symlink("some/where", &mount.at("d/l")).unwrap();
        sys::mknod(&mount.at("d/p"), libc::S_IFIFO | 0o640, (0, 0)).unwrap();
        sys::mknod(&mount.at("d/c"), libc::S_IFCHR | 0o600, (1, 3)).unwrap();
        sys::mknod(&mount.at("d/b"), libc::S_IFBLK | 0o660, (7, 200)).unwrap();
        sys::mknod(&mount.at("d/r"), libc::S_IFREG | 0o604, (0, 0)).unwrap();
        let tree = "file d/f \"x\"\ndir d/d mode=751\nlink d/l -> some/where\nfifo d/p mode=640\nchar d/c 1:3 mode=600
            block d/b 7:200 mode=640\nfile d/r \"\" mode=604";
        mount.assert_upper(tree);
        mount.assert_tree_everywhere(tree);
    }

    fn existing_names_are_refused(driver) {
        let mount = Stack::new().lower("file f\ndir d\nlink l -> nowhere\nfifo p").upper("file u").mount(driver);
        for name in ["f", "d", "l", "p", "u"] {
            let path = mount.at(name);
            assert_eq!(sys::create(&path, b""), Err(Errno::EXIST), "{name}");
            assert_eq!(sys::mkdir(&path, 0o755), Err(Errno::EXIST), "{name}");
            assert_eq!(sys::symlink("x", &path), Err(Errno::EXIST), "{name}");
            assert_eq!(sys::mknod(&path, libc::S_IFIFO | 0o600, (0, 0)), Err(Errno::EXIST), "{name}");
            assert_eq!(sys::link(&mount.at("u"), &path), Err(Errno::EXIST), "{name}");
        }
        mount.assert_upper("file u");
    }

    fn over_whiteouts(driver) {
        let lower = "file f \"old\" mode=600 user.k=old\nfile d/old \"old\"\nfile m \"old\"\nfile l \"old\"\nfile h \"old\"";
        let mount = Stack::new().lower(lower).upper("file u \"u\"").mount(driver);
        for name in ["f", "m", "l", "h"] {
            sys::unlink(&mount.at(name)).unwrap();
        }
        sys::unlink(&mount.at("d/old")).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        mount.assert_upper("file u \"u\"\nwhiteout f\nwhiteout d\nwhiteout m\nwhiteout l\nwhiteout h");
        sys::create(&mount.at("f"), b"new").unwrap();
        sys::mkdir(&mount.at("d"), 0o700).unwrap();
        sys::mkdir(&mount.at("m"), 0o711).unwrap();
        sys::symlink("t", &mount.at("l")).unwrap();
        sys::link(&mount.at("u"), &mount.at("h")).unwrap();
        let tree = "file u \"u\"\nfile f \"new\"\ndir d mode=700\ndir m mode=711\nlink l -> t\nhard h u";
        mount.assert_tree(tree);
        assert_eq!(sys::nlink(&mount.at("u")), 2);
        // A directory over a whiteout is opaque: the lower one must not reappear, for any reader.
        assert_eq!(sys::getxattr(&mount.upper("d"), "trusted.overlay.opaque").unwrap(), b"y");
        mount.assert_tree_everywhere(tree);
    }

    fn directory_replaces_file_and_back(driver) {
        let mount = Stack::new().lower("file a \"x\"\nfile d/in \"x\"").mount(driver);
        sys::unlink(&mount.at("a")).unwrap();
        sys::mkdir(&mount.at("a"), 0o755).unwrap();
        sys::create(&mount.at("a/in"), b"new").unwrap();
        sys::unlink(&mount.at("d/in")).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        sys::create(&mount.at("d"), b"file").unwrap();
        mount.assert_tree("file a/in \"new\"\nfile d \"file\"");
        sys::unlink(&mount.at("a/in")).unwrap();
        sys::rmdir(&mount.at("a")).unwrap();
        sys::unlink(&mount.at("d")).unwrap();
        mount.assert_tree("");
        mount.assert_upper("whiteout a\nwhiteout d");
    }

    fn open_flags(driver) {
        let mount = Stack::new().lower("file f \"content\" mtime=1000\nfile t \"content\"\nlink l -> target").mount(driver);
        let f = mount.at("f");
        // O_CREAT of an existing file opens it.
        let file = sys::open(&f, OFlags::RDONLY | OFlags::CREATE, 0o600).unwrap();
        assert_eq!(sys::read_file(&file).unwrap(), b"content");
        assert!(!sys::exists(&mount.upper("f")), "opening for reading copies nothing up");
        drop(sys::open(&mount.at("t"), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, 0o600).unwrap());
        assert_eq!((sys::text(&mount.at("t")), sys::mode(&mount.at("t"))), (String::new(), 0o644));
        // Through a dangling link O_CREAT creates the target, and O_EXCL does not.
        assert_eq!(sys::create(&mount.at("l"), b""), Err(Errno::EXIST));
        drop(sys::open(&mount.at("l"), OFlags::WRONLY | OFlags::CREATE, 0o640).unwrap());
        assert_eq!(sys::mode(&mount.at("target")), 0o640);
        // A file created without write permission can be written by its creator.
        let file = sys::open(&mount.at("ro"), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o444).unwrap();
        sys::write_all(&file, b"written").unwrap();
        assert_eq!(sys::text(&mount.at("ro")), "written");
        mount.assert_upper("file t \"\"\nfile target \"\" mode=640\nfile ro \"written\" mode=444");
    }

    fn longest_names(driver) {
        let name = "n".repeat(255);
        let mount = Stack::new().lower(&format!("file {name} \"low\"\ndir d\nfile e/{name} \"low\"")).mount(driver);
        let inside = |directory: &str| mount.at(directory).join(&name);
        sys::append(&mount.at(&name), b"+up").unwrap();
        assert_eq!(sys::text(&mount.at(&name)), "low+up");
        sys::create(&inside("d"), b"new").unwrap();
        sys::rename(&inside("d"), &inside("e")).unwrap();
        assert_eq!(sys::text(&inside("e")), "new");
        sys::unlink(&inside("e")).unwrap();
        sys::mkdir(&inside("e"), 0o755).unwrap();
        sys::symlink("t", &inside("d")).unwrap();
        mount.assert_upper(&format!("file {name} \"low+up\"\nlink d/{name} -> t\ndir e/{name} trusted.overlay.opaque=y"));
        assert_eq!(sys::mkdir(&mount.at(&"n".repeat(256)), 0o755), Err(Errno::NAMETOOLONG));
    }

    fn in_a_removed_directory(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        let made = rustix::fs::openat(&directory, "x", OFlags::WRONLY | OFlags::CREATE, 0o644.into());
        assert_eq!(made.err(), Some(Errno::NOENT));
        let made = rustix::fs::mkdirat(&directory, "x", 0o755.into());
        assert_eq!(made.err(), Some(Errno::NOENT));
        mount.assert_upper("whiteout d");
    }

    fn deep_trees(driver) {
        let deep: Vec<String> = (0..40).map(|level| format!("level{level}")).collect();
        let deep = deep.join("/");
        let mount = Stack::new().lower(&format!("file {deep}/f \"x\"")).mount(driver);
        sys::append(&mount.at(&format!("{deep}/f")), b"y").unwrap();
        sys::create(&mount.at(&format!("{deep}/g")), b"g").unwrap();
        mount.assert_upper(&format!("file {deep}/f \"xy\"\nfile {deep}/g \"g\""));
    }

    /// Long symbolic link targets, and targets that are not UTF-8.
    fn symlink_targets(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        let target = "t/".repeat(2000) + "end";
        sys::symlink(&target, &mount.at("d/long")).unwrap();
        assert_eq!(sys::readlink(&mount.at("d/long")).unwrap(), target.as_str());
        assert_eq!(sys::lstat(&mount.at("d/long")).unwrap().st_size, target.len() as i64);
        assert_eq!(sys::symlink(&"x".repeat(4096), &mount.at("d/longer")), Err(Errno::NAMETOOLONG));
        assert_eq!(sys::symlink("", &mount.at("d/empty")), Err(Errno::NOENT));
    }
}
