//! Requirements of other drivers for a file system below their upper: devices 0:0, `RENAME_WHITEOUT`, names and
//! attributes of marks. A user's own files of this kind are never our marks.

use rustix::fs::OFlags;

use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Stack, Upper};
use crate::on_stratafs;

/// Type and permission bits, and the device number.
fn device(path: &std::path::Path) -> (u32, (u32, u32)) {
    let stat = sys::lstat(path).unwrap();
    (stat.st_mode, (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
}

/// Such a device in a tree: `mode=0`, like a whiteout. [`device`] tells its mode.
const ZERO: (u32, u32) = (0, 0);

/// The type in the directory's listing.
fn listed_type(path: &std::path::Path) -> std::fs::FileType {
    let name = path.file_name().unwrap();
    let mut entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(Result::unwrap);
    entries.find(|entry| entry.file_name() == name).unwrap().file_type().unwrap()
}

on_stratafs! {
    /// A user's device 0:0 is an ordinary device, before and after a remount, and deletes nothing.
    fn devices_of_users(driver) {
        use std::os::unix::fs::FileTypeExt;
        let mount = Stack::new().lower("file f \"f\"\nfile gone\ndir d").mount(driver);
        sys::unlink(&mount.at("gone")).unwrap();
        for name in ["new", "gone", "d/w"] {
            sys::mknod(&mount.at(name), libc::S_IFCHR | 0o640, ZERO).unwrap();
            assert_eq!(device(&mount.at(name)), (libc::S_IFCHR | 0o640, ZERO), "{name}");
            assert_eq!(device(&mount.upper(name)), (libc::S_IFCHR | 0o1640, ZERO), "{name}");
            assert!(listed_type(&mount.at(name)).is_char_device());
        }
        assert_eq!(sys::mknod(&mount.at("new"), libc::S_IFCHR, ZERO), Err(Errno::EXIST));
        assert_eq!(sys::open(&mount.at("new"), OFlags::RDONLY, 0).unwrap_err(), Errno::NXIO);
        sys::chmod(&mount.at("new"), 0o600).unwrap();
        sys::chown(&mount.at("new"), Some(7), Some(8)).unwrap();
        sys::link(&mount.at("new"), &mount.at("d/linked")).unwrap();
        sys::rename(&mount.at("new"), &mount.at("f")).unwrap();
        let expected = "char f 0:0 mode=0 uid=7 gid=8\nhard d/linked f\nchar d/w 0:0 mode=0\nchar gone 0:0 mode=0";
        mount.assert_tree(expected);
        let mount = mount.remount(driver);
        mount.assert_tree(expected);
        sys::unlink(&mount.at("d/w")).unwrap();
        sys::unlink(&mount.at("gone")).unwrap();
        assert_eq!(sys::lstat(&mount.at("gone")).unwrap_err(), Errno::NOENT);
        mount.remount(driver).assert_tree("char f 0:0 mode=0 uid=7 gid=8\nhard d/linked f");
    }

    /// A user's device 0:0 in a lower layer is copied up as an ordinary device.
    fn devices_of_users_are_copied_up(driver) {
        let layers = Stack::new().lower("dir d").build();
        sys::mknod(&layers.lowers[0].join("d/w"), libc::S_IFCHR | 0o1600, ZERO).unwrap();
        let mut layers = layers;
        layers.originals.clear();
        let mount = layers.mount(driver);
        assert_eq!(device(&mount.at("d/w")), (libc::S_IFCHR | 0o600, ZERO));
        sys::chown(&mount.at("d/w"), Some(5), None).unwrap();
        assert_eq!(device(&mount.upper("d/w")), (libc::S_IFCHR | 0o1600, ZERO));
        sys::rename(&mount.at("d/w"), &mount.at("w")).unwrap();
        mount.remount(driver).assert_tree("dir d\nchar w 0:0 mode=0 uid=5");
    }

    /// A device 0:0 takes the place of the moved file, even of a lower one.
    fn rename_whiteout(driver) {
        let mount = Stack::new().lower("file low \"low\"\ndir sub\nfile sub/x").upper("file up \"up\"\nfile over \"o\"").mount(driver);
        let moved = |from: &str, to: &str, flags| sys::rename_with(&mount.at(from), &mount.at(to), flags);
        sys::as_user(0, 0, || moved("up", "over", RenameFlags::WHITEOUT)).unwrap();
        moved("low", "sub/low", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE).unwrap();
        assert_eq!(moved("over", "sub/x", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE), Err(Errno::EXIST));
        assert_eq!(moved("over", "sub/x", RenameFlags::WHITEOUT | RenameFlags::EXCHANGE), Err(Errno::INVAL));
        moved("sub", "moved", RenameFlags::WHITEOUT).unwrap();
        let expected = "char up 0:0 mode=0\nfile over \"up\"\nchar low 0:0 mode=0\nchar sub 0:0 mode=0\nfile moved/low \"low\"\nfile moved/x";
        mount.assert_tree(expected);
        for name in ["up", "low", "sub"] {
            assert_eq!(device(&mount.upper(name)), (libc::S_IFCHR | 0o1000, ZERO), "{name}");
        }
        mount.remount(driver).assert_tree(expected);
    }

    /// Kernel overlayfs has its upper on the mount: deleted files stay deleted, for every reader of the layers.
    fn upper_of_kernel_overlayfs(driver) {
        let outer = Stack::new().lower("dir inner").mount(driver);
        let inner = Stack::new().lower("file f \"f\"\nfile g \"g\"\nfile d/x \"x\"\nfile e/y").build_in(&outer.at("inner"));
        let inner = inner.mount(Driver::Overlayfs);
        sys::unlink(&inner.at("f")).unwrap();
        sys::rename(&inner.at("g"), &inner.at("h")).unwrap();
        sys::rename(&inner.at("d"), &inner.at("moved")).unwrap();
        std::fs::remove_dir_all(inner.at("e")).unwrap();
        sys::mkdir(&inner.at("e"), 0o755).unwrap();
        let expected = "file h \"g\"\nfile moved/x \"x\"\ndir e";
        inner.assert_tree(expected);
        assert_eq!(device(&inner.upper("f")), (libc::S_IFCHR, ZERO));
        assert_eq!(sys::getxattr(&inner.upper("e"), "trusted.overlay.opaque").unwrap(), b"y");
        let inner = inner.remount(Driver::Overlayfs);
        inner.assert_tree(expected);
        // Our driver on our driver reads it the same way.
        inner.remount(Driver::Stratafs).assert_tree(expected);
    }

    /// A user's file may have the name of a whiteout, by any operation: it is an ordinary file, and deletes nothing.
    fn names_of_whiteouts(driver) {
        let lower = "file low \"l\"\nfile d/x\nfile victim \"v\"\nfile e/y\nlink s -> t";
        let mount = Stack::new().lower(lower).mount(driver);
        sys::create(&mount.at("own"), b"o").unwrap();
        sys::create(&mount.at(".wh.victim"), b"created").unwrap();
        sys::mkdir(&mount.at(".wh.low"), 0o755).unwrap();
        sys::create(&mount.at(".wh.low/in"), b"in").unwrap();
        sys::symlink("own", &mount.at(".wh.own")).unwrap();
        sys::mknod(&mount.at(".wh..wh.plnk"), libc::S_IFIFO | 0o600, (0, 0)).unwrap();
        sys::create(&mount.at("d/.wh..wh..opq"), b"").unwrap();
        sys::link(&mount.at("low"), &mount.at("d/.wh.x")).unwrap();
        sys::rename(&mount.at("own"), &mount.at(".wh.d")).unwrap();
        sys::rename(&mount.at("e"), &mount.at(".wh.e")).unwrap();
        sys::rename(&mount.at("s"), &mount.at(".wh.s")).unwrap();
        let file = sys::open(mount.root(), OFlags::TMPFILE | OFlags::RDWR, 0o644).unwrap();
        sys::write_all(&file, b"tmp").unwrap();
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let to = mount.at("d/.wh..wh.t");
        rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW).unwrap();
        drop(file);
        let shown = "file low \"l\"\nfile victim \"v\"\nfile .wh.victim \"created\"\nfile .wh.low/in \"in\"\nlink .wh.own -> own\n\
            fifo .wh..wh.plnk mode=600\nfile d/.wh..wh..opq\nhard d/.wh.x low\nfile d/x\nfile .wh.d \"o\"\nfile .wh.e/y\n\
            link .wh.s -> t\nfile d/.wh..wh.t \"tmp\"";
        mount.assert_tree_everywhere(shown);
    }

    /// Such files are ordinary: listed, looked up, written, moved, deleted, after a remount and in a lower layer too.
    fn names_of_whiteouts_in_a_lower_layer(driver) {
        let plain = "trusted.overlay.stratafs.plain";
        for upper_on in [Upper::Plain, Upper::XattrWhiteouts] {
            let lower = "file .wh.f \"plain\"\nfile f \"f\"\nfile .wh.g \"g\"\ndir .wh.d\nfile .wh.d/x\nfile d/x\nfile h/.wh.i\nfile h/i\nfile .wh.k";
            let mut layers = Stack::new().lower(lower).lower("file k").upper_on(upper_on).build();
            for name in [".wh.f", ".wh.g", ".wh.d", "h/.wh.i"] {
                sys::setxattr(&layers.lowers[0].join(name), plain, b"y").unwrap();
            }
            layers.originals.clear();
            let mount = layers.mount(driver);
            mount.assert_tree("file .wh.f \"plain\"\nfile f \"f\"\nfile .wh.g \"g\"\nfile .wh.d/x\nfile d/x\nfile h/.wh.i\nfile h/i");
            assert_eq!(sys::listxattr(&mount.at(".wh.f")).unwrap(), Vec::<String>::new());
            sys::append(&mount.at(".wh.f"), b"+").unwrap();
            sys::create(&mount.at(".wh.d/new"), b"").unwrap();
            sys::unlink(&mount.at(".wh.g")).unwrap();
            sys::unlink(&mount.at("h/.wh.i")).unwrap();
            sys::unlink(&mount.at("h/i")).unwrap();
            let left = "file .wh.f \"plain+\"\nfile f \"f\"\nfile .wh.d/x\nfile .wh.d/new\nfile d/x\ndir h";
            mount.assert_tree(left);
            let mount = mount.remount(driver);
            mount.assert_tree(left);
            sys::create(&mount.at(".wh.g"), b"again").unwrap();
            sys::rename(&mount.at(".wh.f"), &mount.at("plain")).unwrap();
            std::fs::remove_dir_all(mount.at(".wh.d")).unwrap();
            sys::unlink(&mount.at("f")).unwrap();
            sys::rmdir(&mount.at("h")).unwrap();
            mount.remount(driver).assert_tree("file .wh.g \"again\"\nfile plain \"plain+\"\nfile d/x");
        }
    }

    /// On uppers without `RENAME_WHITEOUT`, the driver hides a name during a change by a file `.wh.NAME`. A user's file
    /// of that name stays.
    fn names_of_whiteouts_on_uppers_that_can_do_less(driver) {
        let mount = Stack::new().lower("file f \"f\"\nfile d/x\nfile g \"g\"").upper_on(Upper::Bindfs).mount(driver);
        for name in [".wh.f", ".wh.d"] {
            sys::create(&mount.at(name), b"mine").unwrap();
        }
        sys::rename(&mount.at("f"), &mount.at("g")).unwrap();
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        let expected = "file .wh.f \"mine\"\nfile .wh.d \"mine\"\nfile g \"f\"";
        mount.assert_tree(expected);
        mount.remount(driver).assert_tree(expected);
    }

    /// A store of containers/storage on the mount, used with a mount program: it has whiteouts by name, and they are
    /// mounted.
    fn lower_of_named_whiteouts(driver) {
        let outer = Stack::new().lower("dir inner").mount(driver);
        let inner = Stack::new().lower("file .wh.f \"\"\nfile d/.wh..wh..opq \"\"\nfile d/new").lower("file f\nfile d/x");
        let inner = inner.build_in(&outer.at("inner")).mount(Driver::Stratafs);
        inner.assert_tree("file d/new");
        sys::unlink(&inner.at("d/new")).unwrap();
        inner.remount(Driver::Stratafs).assert_tree("dir d");
    }
}
