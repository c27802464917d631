//! Fifos, sockets, devices.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Driver, Errno, Stack};
use crate::on_both;

on_both! {
    fn fifos_carry_data(driver) {
        let mount = Stack::new().lower("fifo low").mount(driver);
        sys::mknod(&mount.at("new"), libc::S_IFIFO | 0o600, (0, 0)).unwrap();
        for name in ["low", "new"] {
            let path = mount.at(name);
            let reader = std::thread::spawn(move || {
                let mut text = String::new();
                std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            });
            sys::open(&mount.at(name), OFlags::WRONLY, 0).unwrap().write_all(b"through").unwrap();
            assert_eq!(reader.join().unwrap(), "through");
        }
    }

    fn sockets(driver) {
        let mount = Stack::new().lower("dir run").mount(driver);
        let path = mount.at("run/s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            text
        });
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"hello").unwrap();
        drop(stream);
        assert_eq!(thread.join().unwrap(), "hello");
        assert_eq!(sys::lstat(&path).unwrap().st_mode & libc::S_IFMT, libc::S_IFSOCK);
        sys::rename(&path, &mount.at("run/t")).unwrap();
        sys::unlink(&mount.at("run/t")).unwrap();
        mount.assert_upper("dir run");
    }

    fn devices_work(driver) {
        let mount = Stack::new().lower("char null 1:3 mode=666\nchar zero 1:5 mode=666").mount(driver);
        let mut buffer = [1; 4];
        std::fs::File::open(mount.at("zero")).unwrap().read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, [0; 4]);
        std::fs::OpenOptions::new().write(true).open(mount.at("null")).unwrap().write_all(b"x").unwrap();
        mount.assert_upper("");
        sys::mknod(&mount.at("full"), libc::S_IFCHR | 0o666, (1, 7)).unwrap();
        let written = std::fs::OpenOptions::new().write(true).open(mount.at("full")).unwrap().write_all(b"x");
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    fn device_numbers(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        for (name, rdev) in [("small", (1, 3)), ("large", (259, 70_000)), ("minor", (8, 255)), ("blockish", (4095, 1))] {
            sys::mknod(&mount.at(name), libc::S_IFCHR | 0o600, rdev).unwrap();
            let stat = sys::lstat(&mount.at(name)).unwrap();
            assert_eq!((libc::major(stat.st_rdev), libc::minor(stat.st_rdev)), rdev, "{name}");
            let stat = sys::lstat(&mount.upper(name)).unwrap();
            assert_eq!((libc::major(stat.st_rdev), libc::minor(stat.st_rdev)), rdev, "{name} in the upper");
        }
    }

    /// A user's 0:0 character device would be a whiteout for the kernel, which refuses it (stratafs: `nested`).
    fn whiteouts_cannot_be_made(driver) {
        let mount = Stack::new().lower("file f").mount(driver);
        if driver == Driver::Overlayfs {
            assert_eq!(sys::mknod(&mount.at("w"), libc::S_IFCHR | 0o600, (0, 0)), Err(Errno::PERM));
        }
        mount.assert_upper("");
        // Only the character device is one.
        sys::mknod(&mount.at("b"), libc::S_IFBLK | 0o600, (0, 0)).unwrap();
        mount.assert_tree("file f\nblock b 0:0 mode=600");
    }

    /// Whiteouts that lie in the layers are never shown, wherever they are and whatever is asked of their names.
    fn whiteouts_cannot_be_seen(driver) {
        let stack = Stack::new().lower("whiteout d/low\nwhiteout alone");
        let stack = stack.lower("file d/low\nfile alone\nfile d2/w\nfile e/f\nfile up");
        let mount = stack.upper("whiteout d2/w\nwhiteout e/f\nwhiteout up").mount(driver);
        mount.assert_tree("dir d\ndir d2\ndir e");
        for name in ["d/low", "alone", "d2/w", "e/f", "up"] {
            let path = mount.at(name);
            assert_eq!(sys::lstat(&path).unwrap_err(), Errno::NOENT, "{name}");
            assert_eq!(sys::open(&path, OFlags::PATH | OFlags::NOFOLLOW, 0).unwrap_err(), Errno::NOENT, "{name}");
            assert_eq!(sys::unlink(&path), Err(Errno::NOENT), "{name}");
            assert_eq!(sys::rename(&path, &mount.at("taken")), Err(Errno::NOENT), "{name}");
            assert_eq!(sys::link(&path, &mount.at("taken")), Err(Errno::NOENT), "{name}");
            assert_eq!(sys::getxattr(&path, "trusted.overlay.whiteout"), Err(Errno::NOENT), "{name}");
            // Another device of the name is one.
            sys::mknod(&path, libc::S_IFCHR | 0o600, (1, 3)).unwrap();
        }
        mount.assert_tree_everywhere(
            "dir d\ndir d2\ndir e\nchar d/low 1:3 mode=600\nchar alone 1:3 mode=600\nchar d2/w 1:3 mode=600\n\
             char e/f 1:3 mode=600\nchar up 1:3 mode=600",
        );
    }

    fn copied_up(driver) {
        let mount = Stack::new().lower("fifo p mode=640 uid=3\nchar c 1:3 mode=600 gid=5\nblock b 7:0 mode=660").mount(driver);
        let inos = ["p", "c", "b"].map(|name| sys::ino(&mount.at(name)));
        for name in ["p", "c", "b"] {
            sys::chmod(&mount.at(name), 0o604).unwrap();
        }
        assert_eq!(["p", "c", "b"].map(|name| sys::ino(&mount.at(name))), inos);
        mount.assert_upper("fifo p mode=604 uid=3\nchar c 1:3 mode=604 gid=5\nblock b 7:0 mode=604");
    }

    fn only_root_makes_devices(driver) {
        let mount = Stack::new().lower("dir d mode=777").mount(driver);
        sys::as_user(1000, 1000, || {
            assert_eq!(sys::mknod(&mount.at("d/c"), libc::S_IFCHR | 0o600, (1, 3)), Err(Errno::PERM));
            sys::mknod(&mount.at("d/p"), libc::S_IFIFO | 0o600, (0, 0)).unwrap();
        });
        mount.assert_tree("dir d mode=777\nfifo d/p mode=600 uid=1000 gid=1000");
    }
}
