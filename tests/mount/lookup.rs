//! Which layer's entry is visible under a name.

use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::{on_both, on_stratafs};

on_both! {
    fn topmost_layer_wins(driver) {
        let mount = Stack::new()
            .lower("file a \"first\"\nfile only1 \"1\"")
            .lower("file a \"second\"\nfile only2 \"2\"")
            .upper("file up \"u\"\nfile only2 \"upper\"")
            .mount(driver);
        mount.assert_tree("file a \"first\"\nfile only1 \"1\"\nfile only2 \"upper\"\nfile up \"u\"");
    }

    fn directories_merge(driver) {
        let mount = Stack::new()
            .lower("dir d mode=700 uid=5 user.k=top\nfile d/x \"0\"\nfile d/sub/p \"0\"")
            .lower("dir d mode=755 uid=6 user.k=low user.other=hidden\nfile d/y \"1\"\nfile d/sub/q \"1\"")
            .lower("file d/x \"2\"\nfile d/z \"2\"\nfile d/sub/r \"2\"")
            .mount(driver);
        mount.assert_tree(
            "dir d mode=700 uid=5 user.k=top\nfile d/x \"0\"\nfile d/y \"1\"\nfile d/z \"2\"
             file d/sub/p \"0\"\nfile d/sub/q \"1\"\nfile d/sub/r \"2\"",
        );
    }

    /// A non-directory ends the search: what lies below it never shows through, not even below a directory above it.
    fn non_directory_stops_the_merge(driver) {
        for obstacle in ["file d \"x\"", "link d -> elsewhere", "fifo d", "whiteout d"] {
            let mount = Stack::new()
                .lower("file d/top \"0\"")
                .lower(obstacle)
                .lower("file d/bottom \"2\"")
                .mount(driver);
            mount.assert_tree("file d/top \"0\"");
        }
    }

    fn file_hides_directory(driver) {
        let mount = Stack::new().lower("file d \"file\"").lower("file d/x \"0\"").mount(driver);
        mount.assert_tree("file d \"file\"");
        assert_eq!(sys::lstat(&mount.at("d/x")).err(), Some(Errno::NOTDIR));
    }

    fn whiteouts_hide_what_is_below(driver) {
        let mount = Stack::new()
            .lower("whiteout a\nwhiteout d\nwhiteout e/x")
            .lower("file a \"1\"\nfile d/x \"1\"\nfile e/x \"1\"\nfile e/y \"1\"\nfile b \"1\"")
            .upper("whiteout b\nwhiteout nothing")
            .mount(driver);
        mount.assert_tree("file e/y \"1\"");
        assert_eq!(sys::lstat(&mount.at("a")).err(), Some(Errno::NOENT));
        assert_eq!(sys::lstat(&mount.at("b")).err(), Some(Errno::NOENT));
        assert_eq!(sys::lstat(&mount.at("d/x")).err(), Some(Errno::NOENT));
    }

    /// The kernel's xattr whiteouts, which unprivileged tools and nested mounts write.
    fn xattr_whiteouts_hide_what_is_below(driver) {
        let mount = Stack::new()
            .lower("dir d trusted.overlay.opaque=x\nfile d/a trusted.overlay.whiteout=y\nfile d/full \"k\" trusted.overlay.whiteout=y")
            .lower("file d/a \"1\"\nfile d/b \"1\"")
            .mount(driver);
        assert_eq!(sys::lstat(&mount.at("d/a")).err(), Some(Errno::NOENT));
        assert_eq!(sys::names(&mount.at("d")), ["b", "full"]);
    }

    fn errors(driver) {
        let mount = Stack::new().lower("file f \"x\"\ndir d\nlink loop -> loop\nlink dangling -> nowhere").mount(driver);
        let open = |path: &str, flags| sys::open(&mount.at(path), flags, 0o644).err();
        let long = "n".repeat(256);
        for (path, flags, expected) in [
            ("missing", OFlags::RDONLY, Errno::NOENT),
            ("missing/x", OFlags::RDONLY, Errno::NOENT),
            ("f/x", OFlags::RDONLY, Errno::NOTDIR),
            ("f", OFlags::RDONLY | OFlags::DIRECTORY, Errno::NOTDIR),
            ("d", OFlags::WRONLY, Errno::ISDIR),
            ("loop", OFlags::RDONLY, Errno::LOOP),
            ("dangling", OFlags::RDONLY, Errno::NOENT),
            ("dangling", OFlags::RDONLY | OFlags::NOFOLLOW, Errno::LOOP),
            (long.as_str(), OFlags::RDONLY, Errno::NAMETOOLONG),
            (long.as_str(), OFlags::WRONLY | OFlags::CREATE, Errno::NAMETOOLONG),
        ] {
            assert_eq!(open(path, flags), Some(expected), "{path} {flags:?}");
        }
    }

    fn names_are_bytes(driver) {
        let mount = Stack::new().lower("file \\xff\\xfe \"bytes\"\nfile \"a\\x20b\" \"space\"\nfile \\x0a \"newline\"").mount(driver);
        let odd = |bytes: &[u8]| mount.root().join(std::ffi::OsStr::from_bytes(bytes));
        assert_eq!(sys::text(&odd(b"\xff\xfe")), "bytes");
        assert_eq!(sys::text(&odd(b"\n")), "newline");
        assert_eq!(sys::text(&odd(b"a b")), "space");
        sys::create(&odd(b"\x01\x80:,\\"), b"new").unwrap();
        assert_eq!(sys::text(&odd(b"\x01\x80:,\\")), "new");
        sys::rename(&odd(b"\xff\xfe"), &odd(b"\xfe\xff")).unwrap();
        assert_eq!(sys::text(&odd(b"\xfe\xff")), "bytes");
        assert_eq!(sys::readdir(mount.root()).unwrap().len(), 4);
    }

    /// A missing name may be cached for ever, but not after it is created.
    fn negative_entries_end_with_creation(driver) {
        let mount = Stack::new().lower("file old \"old\"\ndir d").mount(driver);
        for name in ["file", "dir", "link", "renamed", "hard", "fifo", "d/file"] {
            assert!(!sys::exists(&mount.at(name)));
        }
        sys::create(&mount.at("file"), b"x").unwrap();
        sys::mkdir(&mount.at("dir"), 0o755).unwrap();
        sys::symlink("x", &mount.at("link")).unwrap();
        sys::link(&mount.at("old"), &mount.at("hard")).unwrap();
        sys::rename(&mount.at("old"), &mount.at("renamed")).unwrap();
        sys::mknod(&mount.at("fifo"), libc::S_IFIFO | 0o600, (0, 0)).unwrap();
        sys::create(&mount.at("d/file"), b"x").unwrap();
        for name in ["file", "dir", "link", "renamed", "hard", "fifo", "d/file"] {
            assert!(sys::exists(&mount.at(name)), "{name}");
        }
        assert!(!sys::exists(&mount.at("old")));
        sys::unlink(&mount.at("file")).unwrap();
        assert!(!sys::exists(&mount.at("file")));
        sys::create(&mount.at("file"), b"again").unwrap();
        assert_eq!(sys::text(&mount.at("file")), "again");
    }

    /// A symbolic link in a layer is the mount's to resolve, never the driver's.
    fn links_in_layers_stay_inside(driver) {
        let mount = Stack::new()
            .lower("link d -> /etc\nlink up -> ../../..\nfile real/x \"in\"")
            .lower("file d/passwd \"hidden\"\ndir up\nfile up/x \"hidden\"")
            .mount(driver);
        assert_eq!(sys::readlink(&mount.at("d")).unwrap(), "/etc");
        assert_eq!(sys::readlink(&mount.at("up")).unwrap(), "../../..");
        mount.assert_tree("link d -> /etc\nlink up -> ../../..\nfile real/x \"in\"");
    }

    fn read_only_stack(driver) {
        let mount = Stack::new().read_only().lower("file a \"top\"\nwhiteout gone").lower("file a \"low\"\nfile gone \"x\"\nfile d/b \"b\"").mount(driver);
        mount.assert_tree("file a \"top\"\nfile d/b \"b\"");
        assert_eq!(sys::create(&mount.at("new"), b""), Err(Errno::ROFS));
        assert_eq!(sys::mkdir(&mount.at("new"), 0o755), Err(Errno::ROFS));
        assert_eq!(sys::unlink(&mount.at("a")), Err(Errno::ROFS));
        assert_eq!(sys::append(&mount.at("a"), b"x"), Err(Errno::ROFS));
        assert_eq!(sys::chmod(&mount.at("a"), 0o600), Err(Errno::ROFS));
        assert_eq!(sys::rename(&mount.at("a"), &mount.at("b")), Err(Errno::ROFS));
        assert_eq!(sys::setxattr(&mount.at("a"), "user.k", b"v"), Err(Errno::ROFS));
    }

    fn many_layers(driver) {
        let mut stack = Stack::new();
        for layer in 0..60 {
            stack = stack.lower(&format!("file common \"{layer}\"\nfile d/own{layer} \"{layer}\"\nfile d/deep/own{layer} \"\""));
        }
        let mount = stack.mount(driver);
        assert_eq!(sys::text(&mount.at("common")), "0");
        assert_eq!(sys::names(&mount.at("d")).len(), 61);
        assert_eq!(sys::names(&mount.at("d/deep")).len(), 60);
        assert_eq!(sys::text(&mount.at("d/own59")), "59");
        sys::append(&mount.at("d/own59"), b"!").unwrap();
        assert_eq!(sys::text(&mount.at("d/own59")), "59!");
        mount.assert_upper("file d/own59 \"59!\"");
    }
}

on_stratafs! {
    /// AUFS and image-layer marks in lower layers.
    fn aufs_marks_are_read(driver) {
        let mount = Stack::new()
            .lower("file .wh.a\nfile d/.wh.x\nfile e/.wh..wh..opq\nfile e/own \"0\"\nfile .wh..wh.plnk \"\"")
            .lower("file a \"1\"\nfile d/x \"1\"\nfile d/y \"1\"\nfile e/z \"1\"")
            .mount(driver);
        mount.assert_tree("file d/y \"1\"\nfile e/own \"0\"");
        sys::create(&mount.at("a"), b"new").unwrap();
        mount.assert_tree("file a \"new\"\nfile d/y \"1\"\nfile e/own \"0\"");
    }

    /// Marks of every name space are read from any layer.
    fn marks_of_every_name_space_are_read(driver) {
        for prefix in ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."] {
            let mount = Stack::new()
                .lower(&format!("dir d {prefix}opaque=y\nfile d/top \"0\""))
                .lower("file d/bottom \"1\"")
                .mount(driver);
            assert_eq!(sys::names(&mount.at("d")), ["top"], "{prefix}");
        }
    }
}
