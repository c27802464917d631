//! Idmapped mounts of a mount (Linux 6.12), which kernel overlayfs does not have.

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Mount, Stack};
use crate::on_stratafs;

const FIRST: u32 = 100_000;

fn owner(path: &std::path::Path) -> (u32, u32) {
    let stat = sys::lstat(path).unwrap();
    (stat.st_uid, stat.st_gid)
}

/// The directory where `mount` is seen once more, with ids from [`FIRST`] on. `None`: the kernel is too old.
fn mapped(mount: &Mount) -> Option<std::path::PathBuf> {
    let point = mount.layers().directory.path().join("mapped");
    sys::mkdir(&point, 0o755).unwrap();
    match sys::bind_idmapped(mount.root(), &point, FIRST) {
        Ok(()) => Some(point),
        Err(error) => {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
            let version = (numbers.next().unwrap(), numbers.next().unwrap());
            assert!(version < (6, 12), "{error} on Linux {release}");
            None
        }
    }
}

on_stratafs! {
    /// Owners are shown and stored shifted; created files belong to their maker; permissions are checked accordingly.
    fn owners_on_an_idmapped_mount(driver) {
        let mount = Stack::new().lower("file f \"f\" uid=5 gid=6 mode=640\ndir d uid=7 gid=7\ndir open mode=777").mount(driver);
        let Some(at) = mapped(&mount) else { return };
        assert_eq!((owner(&at.join("f")), owner(&at.join("d"))), ((FIRST + 5, FIRST + 6), (FIRST + 7, FIRST + 7)));
        sys::chown(&at.join("f"), Some(FIRST + 8), Some(FIRST + 9)).unwrap();
        assert_eq!((owner(&mount.at("f")), owner(&mount.upper("f"))), ((8, 9), (8, 9)));
        sys::as_user(FIRST + 7, FIRST + 7, || {
            sys::create(&at.join("d/new"), b"new").unwrap();
            sys::mkdir(&at.join("d/sub"), 0o755).unwrap();
            sys::symlink("x", &at.join("d/link")).unwrap();
            sys::mknod(&at.join("d/fifo"), libc::S_IFIFO | 0o600, (0, 0)).unwrap();
            drop(sys::open(&at.join("d"), OFlags::TMPFILE | OFlags::RDWR, 0o600).unwrap());
            assert_eq!(sys::append(&at.join("f"), b"+"), Err(Errno::ACCESS));
        });
        for name in ["d/new", "d/sub", "d/link", "d/fifo"] {
            assert_eq!((owner(&at.join(name)), owner(&mount.upper(name))), ((FIRST + 7, FIRST + 7), (7, 7)), "{name}");
        }
        // An id outside the map cannot create anything; on the mount itself it can.
        assert_eq!(sys::as_user(3, 3, || sys::create(&at.join("open/new"), b"")), Err(Errno::OVERFLOW));
        sys::as_user(3, 3, || sys::create(&mount.at("open/new"), b"").unwrap());
        assert_eq!(owner(&at.join("open/new")), (FIRST + 3, FIRST + 3));
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

on_stratafs! {
    /// Storage of podman 4.3 makes idmapped mounts of the layers and passes the same mapping to the driver: ids are mapped once.
    fn idmapped_lowers_are_mapped_once(driver) {
        let stack = Stack::new().lower("file f \"f\" uid=5 gid=6\nfile g uid=1 gid=1\ndir d/sub uid=7 gid=7");
        let map = format!("0:{FIRST}:65536");
        let mut layers = stack.stratafs_option(&format!("uidmapping={map},gidmapping={map}")).build();
        let point = layers.directory.path().join("mapped");
        sys::mkdir(&point, 0o755).unwrap();
        sys::bind_idmapped(&layers.lowers[0], &point, FIRST).unwrap();
        layers.lowers[0] = point.clone();
        layers.originals.clear();
        let mount = layers.mount(driver);
        for (path, id) in [("f", (5, 6)), ("g", (1, 1)), ("d/sub", (7, 7))] {
            assert_eq!(owner(&mount.at(path)), (FIRST + id.0, FIRST + id.1), "{path}");
        }
        sys::append(&mount.at("f"), b"+").unwrap();
        assert_eq!((owner(&mount.at("f")), owner(&mount.upper("f"))), ((FIRST + 5, FIRST + 6), (5, 6)));
        // The driver has its own way to the layer.
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(owner(&mount.at("g")), (FIRST + 1, FIRST + 1));
        drop(mount);
    }
}
