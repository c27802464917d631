//! Mount options as they show on the mount. Their syntax has its tests beside the parser.

use crate::common::sys;
use crate::common::{Driver, Errno, Stack};
use crate::{on_both, on_stratafs};

/// The mount's line of `/proc/thread-self/mountinfo`: type, source, mount options.
fn mount_line(point: &std::path::Path) -> (String, String, String) {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = text.lines().find(|line| line.split(' ').nth(4) == point.to_str()).unwrap();
    let (before, after) = line.split_once(" - ").unwrap();
    let mut after = after.split(' ');
    let options = before.split(' ').nth(5).unwrap().to_owned();
    (after.next().unwrap().to_owned(), after.next().unwrap().to_owned(), options)
}

on_both! {
    /// A volatile mount works, and leaves its mark only while it lives.
    fn volatile(driver) {
        let mount = Stack::new().lower("file f \"x\"").option("volatile").mount(driver);
        sys::append(&mount.at("f"), b"y").unwrap();
        let file = sys::open(&mount.at("f"), rustix::fs::OFlags::RDWR, 0).unwrap();
        rustix::fs::fsync(&file).unwrap();
        drop(file);
        assert!(sys::exists(&mount.layers().work.as_ref().unwrap().join("work/incompat/volatile")));
        mount.assert_tree("file f \"xy\"");
    }

    fn userxattr(driver) {
        let options = if driver == Driver::Overlayfs { "userxattr,redirect_dir=nofollow" } else { "userxattr" };
        let stack = options.split(',').fold(Stack::new().lower("file d/x \"x\"\nfile e/y").upper("dir e user.overlay.opaque=y"), Stack::option);
        let layers = stack.build();
        let mount = match layers.try_mount(driver) {
            Ok(mount) => mount,
            // The kernel refuses the harness's redirect_dir=on beside it.
            Err((message, _)) if driver == Driver::Overlayfs => return assert!(message.contains("userxattr"), "{message}"),
            Err((message, _)) => panic!("{message}"),
        };
        assert_eq!(sys::names(&mount.at("e")), Vec::<String>::new());
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::mkdir(&mount.at("d"), 0o755).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("d"), "user.overlay.opaque").unwrap(), b"y");
        assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), Vec::<String>::new());
    }
}

on_stratafs! {
    fn type_and_source(driver) {
        let mount = Stack::new().lower("file f").stratafs_option("fsname=my-source").mount(driver);
        let (kind, source, _) = mount_line(mount.root());
        assert_eq!((kind.as_str(), source.as_str()), ("fuse.stratafs", "my-source"));
    }

    fn generic_options(driver) {
        for (option, shown) in [("nosuid", "nosuid"), ("nodev", "nodev"), ("noexec", "noexec"), ("ro", "ro"), ("noatime", "noatime")] {
            let mount = Stack::new().lower("file f").stratafs_option(option).mount(driver);
            let (_, _, options) = mount_line(mount.root());
            assert!(options.split(',').any(|word| word == shown), "{option}: {options}");
        }
    }

    fn read_only(driver) {
        let mount = Stack::new().lower("file f \"x\"").upper("file u \"u\"").stratafs_option("ro").mount(driver);
        mount.assert_tree("file f \"x\"\nfile u \"u\"");
        assert_eq!(sys::create(&mount.at("n"), b""), Err(Errno::ROFS));
        assert_eq!(sys::chmod(&mount.at("f"), 0o600), Err(Errno::ROFS));
        mount.assert_upper("file u \"u\"");
    }

    /// A volatile upper whose mount crashed is refused, as by the kernel.
    fn volatile_after_a_crash(driver) {
        let mount = Stack::new().lower("file f \"x\"").option("volatile").mount(driver);
        sys::append(&mount.at("f"), b"y").unwrap();
        let Err((message, layers)) = mount.crash().try_mount(driver) else { panic!("mounted") };
        assert!(message.contains("volatile"), "{message}");
        let Err((message, _)) = layers.try_mount(Driver::Overlayfs) else { panic!("mounted") };
        assert!(message.contains("volatile") || message.contains("Invalid"), "{message}");
    }

    fn squashed_owners(driver) {
        let mount = Stack::new().lower("file f uid=5 gid=6\ndir d uid=7").stratafs_option("squash_to_uid=100,squash_to_gid=200").mount(driver);
        mount.assert_tree("dir . uid=100 gid=200\nfile f uid=100 gid=200\ndir d uid=100 gid=200");
    }

    fn static_nlink(driver) {
        let mount = Stack::new().lower("file f\nhard g f\ndir d/s").stratafs_option("static_nlink").mount(driver);
        assert_eq!(["f", "g", "d"].map(|path| sys::nlink(&mount.at(path))), [1, 1, 1]);
    }

    fn no_xattrs(driver) {
        let mount = Stack::new().lower("file f \"x\" user.k=v").stratafs_option("noxattrs").mount(driver);
        assert_eq!(sys::getxattr(&mount.at("f"), "user.k"), Err(Errno::OPNOTSUPP));
    }

    /// Owners shown shifted, and stored back; on disk first, as in fuse-overlayfs.
    fn mapped_owners(driver) {
        let mount = Stack::new()
            .lower("file f uid=100005 gid=200006\ndir d uid=100000 gid=200000 mode=777")
            .stratafs_option("uidmapping=100000:0:65536,gidmapping=200000:0:65536")
            .mount(driver);
        let owner = |path: &std::path::Path| {
            let stat = sys::lstat(path).unwrap();
            (stat.st_uid, stat.st_gid)
        };
        assert_eq!((owner(&mount.at("f")), owner(&mount.at("d"))), ((5, 6), (0, 0)));
        sys::chown(&mount.at("f"), Some(8), Some(9)).unwrap();
        assert_eq!((owner(&mount.at("f")), owner(&mount.upper("f"))), ((8, 9), (100_008, 200_009)));
        sys::as_user(1000, 1000, || sys::create(&mount.at("d/n"), b"").unwrap());
        assert_eq!((owner(&mount.at("d/n")), owner(&mount.upper("d/n"))), ((1000, 1000), (101_000, 201_000)));
    }

    /// A mount with the writeback cache keeps sizes and times right.
    fn writeback(driver) {
        let mount = Stack::new().lower("file f \"lower\" mtime=1000").stratafs_option("writeback").mount(driver);
        sys::append(&mount.at("f"), b"+more").unwrap();
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_size, 10);
        assert!(sys::mtime(&mount.at("f")).0 > 1000);
        let file = sys::open(&mount.at("f"), rustix::fs::OFlags::RDWR, 0).unwrap();
        for block in 0..1000_u64 {
            sys::pwrite(&file, &[block as u8; 100], block * 100).unwrap();
        }
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_size, 100_000);
        rustix::fs::fsync(&file).unwrap();
        assert_eq!(sys::lstat(&mount.upper("f")).unwrap().st_size, 100_000);
        drop(file);
        sys::utimens(&mount.at("f"), (5, 0), (6, 0)).unwrap();
        assert_eq!(sys::mtime(&mount.at("f")), (6, 0));
        let mount = mount.remount(driver);
        assert_eq!(sys::mtime(&mount.at("f")), (6, 0));
        assert_eq!(sys::read(&mount.at("f")).unwrap()[99_900..], [231; 100]);
    }

    fn passthrough_modes(driver) {
        for mode in ["off", "upper", "all"] {
            let mount = Stack::new().lower("file f fill=100000").stratafs_option(&format!("passthrough={mode}")).mount(driver);
            let content = crate::common::tree::pattern(100_000);
            let reader = sys::open(&mount.at("f"), rustix::fs::OFlags::RDONLY, 0).unwrap();
            assert!(sys::read_file(&reader).unwrap() == content, "{mode}");
            sys::write_at(&mount.at("f"), 50_000, b"written").unwrap();
            assert_eq!(&sys::read_file(&reader).unwrap()[50_000..50_007], b"written", "{mode}: an early reader");
            assert_eq!(&sys::read(&mount.at("f")).unwrap()[50_000..50_007], b"written", "{mode}");
            let file = sys::open(&mount.at("new"), rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE, 0o644).unwrap();
            sys::write_all(&file, &content).unwrap();
            assert!(sys::read_file(&file).unwrap() == content, "{mode}");
            assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 100_000, "{mode}");
            let map = sys::Mapping::new(&file, 100_000, true);
            map.store(10, b"mapped");
            let mut six = [0; 6];
            rustix::io::pread(&file, &mut six[..], 10).unwrap();
            assert_eq!(&six, b"mapped", "{mode}");
        }
    }
}
