//! What other drivers need of a file system below their upper: devices 0:0, `RENAME_WHITEOUT`, names and attributes of
//! marks. A user's own are never marks of ours.

use rustix::fs::OFlags;

use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Stack};
use crate::on_stratafs;

/// Type and permission bits, and the device number.
fn device(path: &std::path::Path) -> (u32, (u32, u32)) {
    let stat = sys::lstat(path).unwrap();
    (stat.st_mode, (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
}

/// What a tree says of such a device: `mode=0`, as of a whiteout. [`device`] tells its mode.
const ZERO: (u32, u32) = (0, 0);

/// The type in the directory's listing.
fn listed_type(path: &std::path::Path) -> std::fs::FileType {
    let name = path.file_name().unwrap();
    let mut entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(Result::unwrap);
    entries.find(|entry| entry.file_name() == name).unwrap().file_type().unwrap()
}

on_stratafs! {
    /// A user's device 0:0 is one, before and after a remount, and deletes nothing.
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

    /// Such a device of a lower layer is copied up as one.
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

    /// A device 0:0 takes the place of what moves away, also of a lower file.
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

    /// Kernel overlayfs has its upper on the mount: what it deletes stays deleted, whoever reads the layers.
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
}
