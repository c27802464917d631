//! The effects of mount options on a mount. Tests of their syntax are beside the parser.

use rustix::fs::{OFlags, StatVfsMountFlags};

use crate::common::sys;
use crate::common::{Driver, Errno, Mount, Stack};
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
    /// `mount -o remount,ro` fails while a file is open for writing; files open for reading stay open.
    fn remounted_read_only(driver) {
        use rustix::mount::{MountFlags, mount_remount};
        let mount = Stack::new().lower("file low \"low\"").upper("file up \"up\"").mount(driver);
        let remount = |flags| mount_remount(mount.root(), flags, c"");
        let early = sys::open(&mount.at("low"), rustix::fs::OFlags::RDONLY, 0).unwrap();
        let writer = sys::open(&mount.at("up"), rustix::fs::OFlags::RDWR, 0).unwrap();
        assert_eq!(remount(MountFlags::RDONLY), Err(Errno::BUSY), "a file is open for writing");
        sys::pwrite(&writer, b"UP", 0).unwrap();
        drop(writer);
        let gone = sys::open(&mount.at("gone"), rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE, 0o644).unwrap();
        sys::unlink(&mount.at("gone")).unwrap();
        assert_eq!(remount(MountFlags::RDONLY), Err(Errno::BUSY), "an unlinked file is open");
        drop(gone);
        // FUSE closes files on its own time.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(50);
        while let Err(error) = remount(MountFlags::RDONLY) {
            assert!(error == Errno::BUSY && std::time::Instant::now() < deadline, "{error}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(sys::append(&mount.at("low"), b"+"), Err(Errno::ROFS));
        assert_eq!(sys::create(&mount.at("n"), b""), Err(Errno::ROFS));
        assert_eq!(sys::unlink(&mount.at("up")), Err(Errno::ROFS));
        assert_eq!(sys::rename(&mount.at("up"), &mount.at("n")), Err(Errno::ROFS));
        assert_eq!(sys::chmod(&mount.at("low"), 0o600), Err(Errno::ROFS));
        assert_eq!(sys::read_file(&early).unwrap(), b"low");
        mount.assert_tree("file low \"low\"\nfile up \"UP\"");
        remount(MountFlags::empty()).unwrap();
        sys::append(&mount.at("low"), b"+").unwrap();
        mount.assert_upper("file low \"low+\"\nfile up \"UP\"");
    }

    /// A volatile mount works, and its mark exists only while it is mounted.
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
        let mount = Stack::new().lower("file d/x \"x\"\nfile e/y").upper("dir e user.overlay.opaque=y").option("userxattr").mount(driver);
        assert_eq!(sys::names(&mount.at("e")), Vec::<String>::new());
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::mkdir(&mount.at("d"), 0o755).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("d"), "user.overlay.opaque").unwrap(), b"y");
        assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), Vec::<String>::new());
    }

    /// Marks in `user.*` have the same meaning for both drivers. Redirects are left out: the kernel has none with `userxattr`.
    fn userxattr_interchange(driver) {
        let layers = Stack::new()
            .lower("file f \"f\" user.k=v\nfile gone\nfile d/x \"x\"\nfile e/y \"y\"\nfile r \"r\"")
            .option("userxattr")
            .stratafs_option("redirect_dir=off")
            .build();
        let mount = layers.mount(driver);
        let inos = ["f", "e/y"].map(|name| sys::ino(&mount.at(name)));
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::append(&mount.at("e/y"), b"+").unwrap();
        sys::unlink(&mount.at("gone")).unwrap();
        std::fs::remove_dir_all(mount.at("d")).unwrap();
        sys::mkdir(&mount.at("d"), 0o700).unwrap();
        sys::rename(&mount.at("r"), &mount.at("e/r")).unwrap();
        assert_eq!(sys::rename(&mount.at("e"), &mount.at("e2")), Err(Errno::XDEV));
        let shown = "file f \"f+\" user.k=v\ndir d mode=700\nfile e/y \"y+\"\nfile e/r \"r\"";
        mount.assert_tree(shown);
        for path in ["", "d", "f", "e", "e/y"] {
            let names = sys::listxattr(&mount.upper(path)).unwrap();
            assert!(names.iter().all(|name| name.starts_with("user.")), "{path}: {names:?}");
        }
        let mut mount = mount;
        for next in [Driver::Overlayfs, driver] {
            mount = mount.remount(next);
            mount.assert_tree(shown);
            assert_eq!(["f", "e/y"].map(|name| sys::ino(&mount.at(name))), inos);
            assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), Vec::<String>::new());
        }
    }

    /// Whiteouts that are attributes, as the kernel writes them for layers inside layers.
    fn xattr_whiteouts(driver) {
        for (option, space) in [("xino=auto", "trusted.overlay"), ("userxattr", "user.overlay")] {
            let mount = Stack::new()
                .lower(&format!(
                    "dir d {space}.opaque=x\nfile d/gone {space}.whiteout=y\nfile d/full \"full\" {space}.whiteout=y\nfile d/empty
                     file gone2 {space}.whiteout=y\nfile d/dir {space}.whiteout=y"
                ))
                .lower("file d/gone \"below\"\nfile d/full \"below\"\nfile d/stays \"s\"\nfile gone2 \"below\"\nfile d/dir/x")
                .option(option)
                .mount(driver);
            // With content, it is not a whiteout.
            assert_eq!(sys::names(&mount.at("d")), ["empty", "full", "stays"], "{space}");
            assert_eq!(sys::text(&mount.at("d/full")), "full");
            // Only in a directory marked for them; elsewhere the kernel lists what it then cannot find.
            assert_eq!(sys::names(mount.root()), ["d", "gone2"]);
            assert_eq!(sys::exists(&mount.at("gone2")), driver == Driver::Stratafs);
            assert_eq!(sys::read(&mount.at("d/gone")), Err(Errno::NOENT));
            sys::create(&mount.at("d/gone"), b"new").unwrap();
            sys::mkdir(&mount.at("d/dir"), 0o755).unwrap();
            let mount = mount.remount(Driver::Overlayfs);
            assert_eq!(sys::text(&mount.at("d/gone")), "new");
            assert_eq!(sys::names(&mount.at("d/dir")), Vec::<String>::new());
        }
    }

    /// Two file systems: one number for each file, the same over copy-up and remount, and in listings.
    fn xino_on_two_file_systems(driver) {
        for xino in ["on", "auto"] {
            let mut layers = Stack::new().lower("").lower("file deep \"d\"\nfile d/b \"b\"").option(&format!("xino={xino}")).build();
            let other = layers.lowers[0].clone();
            rustix::mount::mount("none", &other, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"mode=755")).unwrap();
            crate::common::tree::build(&other, "file a \"a\"\nfile d/c \"c\"\nfile e/x \"x\"");
            layers.originals.clear();
            let mut mount = layers.mount(driver);
            let names = ["a", "deep", "d", "d/b", "d/c", "e", "e/x", "own"];
            sys::create(&mount.at("own"), b"").unwrap();
            let identities = |mount: &Mount| names.map(|name| sys::lstat(&mount.at(name)).map(|stat| (stat.st_dev, stat.st_ino)).unwrap());
            let before = identities(&mount);
            let distinct: std::collections::BTreeSet<_> = before.iter().collect();
            assert_eq!(distinct.len(), names.len(), "{before:?}");
            assert!(before.iter().all(|(device, _)| *device == before[0].0), "one device: {before:?}");
            for name in ["a", "deep", "d/b", "d/c"] {
                sys::append(&mount.at(name), b"+").unwrap();
            }
            let inos = |identities: &[(u64, u64)]| identities.iter().map(|(_, ino)| *ino).collect::<Vec<_>>();
            for _ in 0..2 {
                assert_eq!(inos(&identities(&mount)), inos(&before));
                for directory in ["", "d", "e"] {
                    for entry in sys::readdir(&mount.at(directory)).unwrap() {
                        assert_eq!(entry.ino, sys::ino(&mount.at(directory).join(&entry.name)), "{:?}", entry.name);
                    }
                }
                mount = mount.remount(driver);
            }
            drop(mount);
        }
    }
}

on_stratafs! {
    /// `-o remount` changes the flags of the mount that is there, and says so when it cannot.
    fn remount_by_the_program(driver) {
        let run = |mount: &crate::common::Mount, options: &str| {
            let program = std::process::Command::new(env!("CARGO_BIN_EXE_stratafs"))
                .args(["source", mount.root().to_str().unwrap(), "-o", options]).output().unwrap();
            (program.status.code(), String::from_utf8(program.stderr).unwrap())
        };
        let flags = |mount: &crate::common::Mount| rustix::fs::statvfs(mount.root()).unwrap().f_flag;
        let mount = Stack::new().lower("file f \"x\"").mount(driver);
        assert_eq!(run(&mount, "rw,user_id=0,lowerdir=/nowhere,remount,ro,nosuid"), (Some(0), String::new()));
        assert_eq!(sys::create(&mount.at("n"), b""), Err(Errno::ROFS));
        assert!(flags(&mount).contains(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID));
        assert_eq!(run(&mount, "remount,rw,noexec"), (Some(0), String::new()));
        sys::create(&mount.at("n"), b"").unwrap();
        assert!(flags(&mount).contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC));
        let busy = sys::open(&mount.at("f"), rustix::fs::OFlags::RDWR, 0).unwrap();
        let (code, message) = run(&mount, "remount,ro");
        assert!(code == Some(1) && message.contains("busy") && message.lines().count() == 1, "{message}");
        drop(busy);
        let mount = Stack::new().lower("file f \"x\"").read_only().mount(driver);
        let (code, message) = run(&mount, "remount,rw");
        assert!(code == Some(1) && message.contains("Read-only"), "{message}");
        assert!(flags(&mount).contains(StatVfsMountFlags::RDONLY));
        let (code, message) = run(&mount, "remount,suid,dev");
        assert_eq!((code, message.as_str()), (Some(0), ""));
        // Not a mount of ours.
        let elsewhere = mount.layers().directory.path().to_owned();
        let other = std::process::Command::new(env!("CARGO_BIN_EXE_stratafs")).arg(elsewhere).args(["-o", "remount,ro"]).output().unwrap();
        assert_eq!(other.status.code(), Some(1));
    }

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

    /// Squashed owners cannot be changed, and new files belong to the mounter.
    fn squash_to_root(driver) {
        let mount = Stack::new().lower("file f uid=5 gid=6 mode=666\ndir d uid=7 mode=777\nlink l -> t uid=8").stratafs_option("squash_to_root").mount(driver);
        sys::chown(&mount.at("f"), Some(9), Some(9)).unwrap();
        sys::as_user(1000, 1000, || sys::create(&mount.at("d/n"), b"").unwrap());
        mount.assert_tree("file f mode=666\ndir d mode=777\nfile d/n\nlink l -> t");
        mount.assert_upper("file f uid=5 gid=6 mode=666\ndir d uid=7 mode=777\nfile d/n");
    }

    /// An explicit id overrides root, in any order.
    fn squash_to_an_id_and_to_root(driver) {
        for options in ["squash_to_root,squash_to_uid=100", "squash_to_uid=100,squash_to_root"] {
            let mount = Stack::new().lower("file f uid=5 gid=6").stratafs_option(options).mount(driver);
            mount.assert_tree("dir . uid=100\nfile f uid=100");
        }
    }

    /// containers/storage writes a colon before each range.
    fn mappings_with_empty_fields(driver) {
        let mount = Stack::new()
            .lower("file f uid=5 gid=2005\nfile g uid=3000 gid=7")
            .stratafs_option("uidmapping=:0:1000:2000:3000:5000:1,gidmapping=:2000:0:10::0:100:10:")
            .mount(driver);
        mount.assert_tree("dir . uid=1000 gid=100\nfile f uid=1005 gid=5\nfile g uid=5000 gid=107");
    }

    /// Ids outside all ranges show as the overflow id.
    fn unmapped_owners(driver) {
        let mount = Stack::new().lower("file f uid=7 gid=200005").stratafs_option("uidmapping=1000:0:1:100000:1:10,gidmapping=200000:0:10").mount(driver);
        mount.assert_tree("dir . uid=65534 gid=65534\nfile f uid=65534 gid=5");
    }

    fn xino_off(driver) {
        let mount = Stack::new().lower("file f \"f\"\nfile d/g").option("xino=off").mount(driver);
        let inos = ["f", "d/g"].map(|name| sys::ino(&mount.at(name)));
        assert_eq!(inos, ["f", "d/g"].map(|name| sys::ino(&mount.lower(0, name))));
        sys::append(&mount.at("f"), b"+").unwrap();
        assert_eq!(["f", "d/g"].map(|name| sys::ino(&mount.at(name))), inos);
    }

    /// POSIX ACLs are neither shown, nor kept, nor obeyed.
    fn no_acl(driver) {
        // rw for the owner and for user 77, nothing else.
        let acl: Vec<u8> = [2_u32.to_le_bytes().to_vec()]
            .into_iter()
            .chain([(1_u16, 6_u16, u32::MAX), (2, 6, 77), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)].map(
                |(tag, permissions, id)| [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat(),
            ))
            .collect::<Vec<_>>()
            .concat();
        let mut layers = Stack::new().lower("file f \"f\"\ndir d").stratafs_option("noacl").build();
        sys::setxattr(&layers.lowers[0].join("f"), "system.posix_acl_access", &acl).unwrap();
        sys::setxattr(&layers.lowers[0].join("d"), "system.posix_acl_default", &acl).unwrap();
        layers.originals.clear();
        let mount = layers.mount(driver);
        for name in ["f", "d"] {
            assert_eq!(sys::listxattr(&mount.at(name)).unwrap(), Vec::<String>::new());
            // Only directories have a default one; the kernel refuses before it asks.
            let keys = ["system.posix_acl_access", "system.posix_acl_default"];
            for key in &keys[..if name == "d" { 2 } else { 1 }] {
                assert_eq!(sys::getxattr(&mount.at(name), key), Err(Errno::OPNOTSUPP), "{name} {key}");
                assert_eq!(sys::setxattr(&mount.at(name), key, &acl), Err(Errno::OPNOTSUPP), "{name} {key}");
            }
        }
        assert_eq!(sys::as_user(77, 77, || sys::append(&mount.at("f"), b"x")), Err(Errno::ACCESS));
        sys::chown(&mount.at("f"), Some(1), None).unwrap();
        sys::create(&mount.at("d/new"), b"").unwrap();
        assert_eq!(sys::mode(&mount.at("d/new")), 0o644);
        for name in ["f", "d", "d/new"] {
            assert_eq!(sys::getxattr(&mount.upper(name), "system.posix_acl_access"), Err(Errno::NODATA), "{name}");
        }
    }

    /// Attributes are neither shown nor kept; the marks work.
    fn no_xattrs_but_the_marks(driver) {
        let mount = Stack::new().lower("file f \"x\" user.k=v\nfile d/g\nlink l -> t trusted.k=v").stratafs_option("noxattrs").mount(driver);
        assert_eq!(sys::setxattr(&mount.at("f"), "user.n", b""), Err(Errno::OPNOTSUPP));
        assert_eq!(sys::removexattr(&mount.at("f"), "user.k"), Err(Errno::OPNOTSUPP));
        assert_eq!(sys::listxattr(&mount.at("f")).unwrap(), Vec::<String>::new());
        let ino = sys::ino(&mount.at("f"));
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("f"), "user.k"), Err(Errno::NODATA));
        let mount = mount.remount(driver);
        assert_eq!((sys::ino(&mount.at("f")), sys::names(&mount.at("e"))), (ino, vec!["g".to_owned()]));
    }

    /// With a timeout the kernel asks again, so changes by others become visible.
    fn timeout(driver) {
        let mount = Stack::new().lower("dir d").upper("file f \"f\" mode=644").stratafs_option("timeout=0").mount(driver);
        assert_eq!((sys::mode(&mount.at("f")), sys::exists(&mount.at("late"))), (0o644, false));
        sys::chmod(&mount.upper("f"), 0o600).unwrap();
        sys::create(&mount.upper("late"), b"late").unwrap();
        assert_eq!((sys::mode(&mount.at("f")), sys::text(&mount.at("late"))), (0o600, "late".to_owned()));
        let mount = Stack::new().upper("file f mode=644").stratafs_option("timeout=0.2").lower("").mount(driver);
        assert_eq!(sys::mode(&mount.at("f")), 0o644);
        sys::chmod(&mount.upper("f"), 0o600).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(sys::mode(&mount.at("f")), 0o600);
    }

    /// `.wh.NAME` as whiteout, in any layer, for files and directories; the name itself is never shown.
    fn named_whiteouts(driver) {
        let mount = Stack::new()
            .lower("file .wh.f\nfile d/.wh.g\nfile .wh.dir\nfile own \"o\"\nfile .wh.own")
            .lower("file f \"f\"\nfile d/g \"g\"\nfile d/h \"h\"\nfile dir/x\nfile own \"below\"\nfile up \"u\"")
            .upper("file .wh.up")
            .mount(driver);
        mount.assert_tree("file d/h \"h\"\nfile own \"o\"");
        for name in ["f", "d/g", "dir", "up", ".wh.f"] {
            assert_eq!(sys::lstat(&mount.at(name)).err(), Some(Errno::NOENT), "{name}");
        }
        sys::create(&mount.at("f"), b"new").unwrap();
        sys::create(&mount.at("up"), b"new").unwrap();
        sys::mkdir(&mount.at("dir"), 0o755).unwrap();
        assert_eq!(sys::create(&mount.at(".wh.up"), b""), Err(Errno::EXIST));
        assert_eq!(sys::rename(&mount.at("own"), &mount.at(".wh.up")), Err(Errno::PERM));
        let shown = "file d/h \"h\"\nfile own \"o\"\nfile f \"new\"\nfile up \"new\"\ndir dir";
        mount.assert_tree(shown);
        mount.remount(driver).assert_tree(shown);
    }

    /// `fsync` succeeds and nothing else changes.
    fn fsync_off(driver) {
        let mount = Stack::new().lower("file f \"low\"").stratafs_option("fsync=0").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&file, b"up!", 0).unwrap();
        rustix::fs::fsync(&file).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        rustix::fs::fsync(sys::open(mount.root(), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap()).unwrap();
        drop(file);
        mount.remount(driver).assert_tree("file f \"up!\"");
    }

    /// A label of SELinux, with its comma, is passed to the kernel if that has SELinux; otherwise a warning says that it has no
    /// effect.
    fn security_context(driver) {
        let label = r#"context="system_u:object_r:container_file_t:s0:c1,c2""#;
        if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            return;
        }
        let mount = Stack::new().lower("file f \"x\"").stratafs_option(label).mount(driver);
        mount.assert_tree("file f \"x\"");
        assert!(mount.log().contains("no SELinux here") && mount.log().contains("s0:c1,c2"), "{}", mount.log());
    }

    /// `.wh..wh..opq` hides what is below its directory, in lower layers and in the upper.
    fn named_opaque(driver) {
        let mount = Stack::new()
            .lower("file d/.wh..wh..opq\nfile d/own \"1\"\nfile d/s/own \"1\"")
            .lower("file d/below\nfile d/s/below\nfile e/below\nfile e/s/below")
            .upper("file e/.wh..wh..opq\nfile e/own \"u\"\ndir e/s")
            .mount(driver);
        let shown = "file d/own \"1\"\nfile d/s/own \"1\"\nfile e/own \"u\"\ndir e/s";
        mount.assert_tree(shown);
        sys::create(&mount.at("e/below"), b"new").unwrap();
        sys::unlink(&mount.at("d/own")).unwrap();
        let shown = "file d/s/own \"1\"\nfile e/own \"u\"\ndir e/s\nfile e/below \"new\"";
        mount.assert_tree(shown);
        mount.remount(driver).assert_tree(shown);
    }

    /// Marks that fuse-overlayfs writes as an ordinary user.
    fn marks_of_fuse_overlayfs(driver) {
        let mount = Stack::new()
            .lower("dir d user.fuseoverlayfs.opaque=y\nfile d/own \"o\" user.fuseoverlayfs.origin=/d/own")
            .lower("file d/below\nfile e/below")
            .upper("dir e user.fuseoverlayfs.opaque=y user.fuseoverlayfs.origin=/e")
            .mount(driver);
        let shown = "file d/own \"o\"\ndir e";
        mount.assert_tree(shown);
        mount.remount(driver).assert_tree(shown);
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

    /// With `noatime` reading leaves the access time alone, on disk too. (Not where the kernel itself reads the file: it
    /// opens it with the reader's flags.)
    fn noatime(driver) {
        for (options, moves) in [("noatime,passthrough=off", false), ("passthrough=off", true)] {
            let mount = Stack::new().lower("").upper("file up \"up\"").stratafs_option(options).mount(driver);
            sys::utimens(&mount.at("up"), (1000, 0), (2000, 0)).unwrap();
            assert_eq!(sys::text(&mount.at("up")), "up");
            for path in [mount.at("up"), mount.upper("up")] {
                // That it moves with the second options shows that the test can fail.
                assert_eq!(sys::lstat(&path).unwrap().st_atime > 1000, moves, "{options}: {}", path.display());
            }
        }
    }

    fn passthrough_modes(driver) {
        for mode in ["off", "upper", "programs", "all"] {
            let mount = Stack::new().lower("file f fill=100000").stratafs_option(&format!("passthrough={mode}")).mount(driver);
            let content = crate::common::tree::pattern(100_000);
            let reader = sys::open(&mount.at("f"), rustix::fs::OFlags::RDONLY, 0).unwrap();
            assert!(sys::read_file(&reader).unwrap() == content, "{mode}");
            sys::write_at(&mount.at("f"), 50_000, b"written").unwrap();
            // With `all`, the kernel goes on reading the lower file (docs/limits.md).
            let early: &[u8] = if mode == "all" { &content[50_000..50_007] } else { b"written" };
            assert_eq!(&sys::read_file(&reader).unwrap()[50_000..50_007], early, "{mode}: an early reader");
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
