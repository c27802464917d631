//! `xattr_permissions`: owner, mode and type kept beside the file.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::OFlags;

use crate::common::stack::Layers;
use crate::common::{Driver, Errno, Mount, Stack, sys, tree};
use crate::{on_both, on_stratafs};

const CONTAINERS: &str = "user.containers.override_stat";
const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";

/// Both ways of keeping: value of the option, name of the attribute.
const WAYS: [(&str, &str); 2] = [("xattr_permissions=2", CONTAINERS), ("xattr_permissions=1", PRIVILEGED)];

fn kept(mount: &Mount, name: &str, key: &str) -> String {
    String::from_utf8(sys::getxattr(&mount.upper(name), key).unwrap()).unwrap()
}

/// Type and permission bits and owner of the real file.
fn real(path: &Path) -> (u32, u32, u32) {
    let stat = sys::lstat(path).unwrap();
    (stat.st_mode, stat.st_uid, stat.st_gid)
}

/// Runs the shell script `script` as user 1000 in a user namespace with the maps `maps`, where that user is root. `ROOT` is
/// the directory of `layers`, which belong to the user, and `BIN` the program. `None`: no such namespaces here.
fn as_root_of_a_namespace(layers: &Layers, script: &str, maps: &str) -> Option<Output> {
    let root = layers.directory.path();
    let device = root.join("dev");
    sys::mkdir(&device, 0o755).unwrap();
    rustix::mount::mount("none", &device, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"mode=755")).unwrap();
    // The device is root's alone on some systems: this mount namespace gets one of its own.
    sys::mknod(&device.join("fuse"), libc::S_IFCHR | 0o666, (10, 229)).unwrap();
    sys::chmod(&device.join("fuse"), 0o666).unwrap();
    rustix::mount::mount_bind(device.join("fuse"), "/dev/fuse").unwrap();
    let own =
        [layers.lowers[0].as_path(), layers.upper.as_ref().unwrap(), layers.work.as_ref().unwrap(), &layers.point];
    for path in own {
        assert!(Command::new("chown").args(["-R", "--from=0:0", "1000:1000"]).arg(path).status().unwrap().success());
    }
    let binary = root.join("stratafs");
    std::fs::copy(env!("CARGO_BIN_EXE_stratafs"), &binary).unwrap();
    let started = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "-U", "sh", "-c"])
        .arg("read ready; exec unshare -m sh -c \"$SCRIPT\"")
        .env("SCRIPT", script)
        .env("ROOT", root)
        .env("BIN", &binary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.ok()?;
    let process = format!("/proc/{}", child.id());
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    while std::fs::read_link(format!("{process}/ns/user")).is_ok_and(|theirs| theirs == own) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("{process}/{map}"), maps).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"ready\n").unwrap();
    let output = child.wait_with_output().unwrap();
    rustix::mount::unmount("/dev/fuse", rustix::mount::UnmountFlags::DETACH).unwrap();
    Some(output)
}

/// The kernel denies even the permission to write some of them. A copy would belong to the overflow user and keep its set-user-id
/// bit. Both drivers refuse it (CVE-2023-0386), whether or not the namespace has a user `nobody` of its own.
fn owners_without_a_number_are_not_copied_up(driver: Driver) {
    const LOWER: &str = "file mapped \"x\" mode=644 uid=100005 gid=100005\nfile nobody \"x\" mode=644 uid=165533 gid=165533
        file user \"x\" mode=6757 uid=7 gid=1000\nfile group \"x\" mode=6755 uid=100005 gid=7\nfile d/x uid=1000 gid=1000\ndir d uid=7 gid=7";
    for (maps, nobody) in [("0 1000 1\n1 100000 65536\n", "done"), ("0 1000 1\n1 100000 65000\n", "refused")] {
        let layers = Stack::new().lower(LOWER).build();
        let mount = match driver {
            Driver::Overlayfs => "mount -t overlay -o \"$O,userxattr\" none merged",
            Driver::Stratafs => "\"$BIN\" -o \"$O\" merged",
        };
        let script = format!(
            "cd \"$ROOT\"; O=lowerdir=lower0,upperdir=writable/upper,workdir=writable/work; E=writable/work/errors; {mount} || exit 1
             for f in mapped nobody user group d/x; do
                 if touch merged/$f 2>$E; then echo $f done
                 elif grep -q 'Value too large\\|Permission denied' $E; then echo $f refused
                 else echo $f \"$(cat $E)\"; fi
             done
             umount merged"
        );
        let Some(output) = as_root_of_a_namespace(&layers, &script, maps) else {
            return crate::common::skip("permissions::owners_without_a_number", "no setpriv and unshare");
        };
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let expected = format!("mapped done\nnobody {nobody}\nuser refused\ngroup refused\nd/x refused\n");
        assert_eq!(said, expected, "{maps}: {complained}");
    }
}

on_stratafs! {
    fn attributes_of_a_lower_layer_are_shown(driver) {
        let mount = Stack::new()
            .lower(
                "dir d user.containers.override_stat=7:8:1777:dir\nfile d/f \"f\" user.containers.override_stat=5:6:4711
                 file null user.containers.override_stat=0:0:0666:char-1-3\nfile disk user.containers.override_stat=0:6:0660:block-7-1
                 file pipe user.containers.override_stat=0:0:0600:pipe\nfile sock user.containers.override_stat=9:9:0600:socket
                 file apple user.containers.override_stat=1:2:0100640\nfile plain \"p\" uid=3\nlink l -> t uid=4
                 file bad user.containers.override_stat=nonsense\nfile worse user.containers.override_stat=1:2",
            )
            .stratafs_option("xattr_permissions=2")
            .mount(driver);
        mount.assert_tree(
            "dir d uid=7 gid=8 mode=1777\nfile d/f \"f\" uid=5 gid=6 mode=4711\nchar null 1:3 mode=666\nblock disk 7:1 gid=6 mode=660
             fifo pipe mode=600\nfile apple uid=1 gid=2 mode=640\nfile plain \"p\" uid=3\nlink l -> t uid=4\nfile bad\nfile worse
             socket sock uid=9 gid=9 mode=600",
        );
        assert!(mount.log().contains("lower0/bad\"") && mount.log().contains("lower0/worse\""), "{}", mount.log());
        for entry in sys::readdir(mount.root()).unwrap() {
            let mode = sys::lstat(&mount.root().join(&entry.name)).unwrap().st_mode;
            assert_eq!(entry.kind, rustix::fs::FileType::from_raw_mode(mode), "{:?}", entry.name);
        }
    }

    /// Without the option it is an attribute like any other.
    fn off(driver) {
        let mount = Stack::new().lower("file f uid=1 user.containers.override_stat=5:6:4711").mount(driver);
        mount.assert_tree("file f uid=1 user.containers.override_stat=5:6:4711");
        sys::chmod(&mount.at("f"), 0o600).unwrap();
        mount.assert_upper("file f uid=1 mode=600 user.containers.override_stat=5:6:4711");
    }

    /// A layer whose root has the attribute switches it on, as in fuse-overlayfs.
    fn switched_on_by_a_layer(driver) {
        let mount = Stack::new().lower("dir . user.containers.override_stat=0:0:0755\nfile f user.containers.override_stat=5:6:4711").mount(driver);
        mount.assert_tree("file f uid=5 gid=6 mode=4711");
    }

    fn changes_are_kept(driver) {
        for (option, key) in WAYS {
            let mount = Stack::new().lower("file f \"f\" mode=640\ndir d/e").stratafs_option(option).mount(driver);
            sys::chown(&mount.at("f"), Some(5), Some(6)).unwrap();
            sys::chmod(&mount.at("f"), 0o4501).unwrap();
            assert_eq!(kept(&mount, "f", key), "5:6:4501:file");
            assert_eq!(real(&mount.upper("f")), (libc::S_IFREG | 0o701, 0, 0));
            sys::chown(&mount.at("d"), Some(7), None).unwrap();
            sys::chmod(&mount.at("d"), 0o3050).unwrap();
            assert_eq!(kept(&mount, "d", key), "7:0:3050:dir");
            assert_eq!(real(&mount.upper("d")), (libc::S_IFDIR | 0o750, 0, 0));
            let shown = "file f \"f\" uid=5 gid=6 mode=4501\ndir d uid=7 mode=3050\ndir d/e";
            mount.assert_tree(shown);
            let mount = mount.remount(driver);
            mount.assert_tree(shown);
            assert_eq!(sys::listxattr(&mount.at("f")).unwrap(), Vec::<String>::new());
            // As a lower layer of another mount.
            let mount = mount.unmount().restack().mount(driver);
            mount.assert_tree(shown);
            sys::append(&mount.at("f"), b"+").unwrap();
            assert_eq!(kept(&mount, "f", key), "5:6:4501:file");
            assert_eq!(real(&mount.upper("f")), (libc::S_IFREG | 0o701, 0, 0));
            mount.assert_tree("file f \"f+\" uid=5 gid=6 mode=4501\ndir d uid=7 mode=3050\ndir d/e");
        }
    }

    fn creation(driver) {
        for (option, key) in WAYS {
            let mount = Stack::new().lower("dir d mode=777\nfile d/gone\ndir d/gone2/x\ndir s mode=2777 gid=50").stratafs_option(option).mount(driver);
            sys::unlink(&mount.at("d/gone")).unwrap();
            std::fs::remove_dir_all(mount.at("d/gone2")).unwrap();
            sys::as_user_in(1000, 1001, &[], 0o027, || {
                sys::create(&mount.at("d/f"), b"f").unwrap();
                sys::create(&mount.at("d/gone"), b"g").unwrap();
                sys::mkdir(&mount.at("d/dir"), 0o777).unwrap();
                sys::mkdir(&mount.at("d/gone2"), 0o777).unwrap();
                sys::mknod(&mount.at("d/pipe"), libc::S_IFIFO | 0o666, (0, 0)).unwrap();
                sys::mknod(&mount.at("d/sock"), libc::S_IFSOCK | 0o666, (0, 0)).unwrap();
                sys::create(&mount.at("s/f"), b"").unwrap();
                sys::mkdir(&mount.at("s/sub"), 0o777).unwrap();
                sys::link(&mount.at("d/f"), &mount.at("d/h")).unwrap();
            });
            sys::mknod(&mount.at("null"), libc::S_IFCHR | 0o666, (1, 3)).unwrap();
            sys::mknod(&mount.at("disk"), libc::S_IFBLK | 0o660, (7, 200)).unwrap();
            let shown = "dir d mode=777\nfile d/f \"f\" uid=1000 gid=1001 mode=640\nhard d/h d/f\nfile d/gone \"g\" uid=1000 gid=1001 mode=640
                dir d/dir uid=1000 gid=1001 mode=750\ndir d/gone2 uid=1000 gid=1001 mode=750\nfifo d/pipe uid=1000 gid=1001 mode=640
                socket d/sock uid=1000 gid=1001 mode=640\ndir s mode=2777 gid=50\nfile s/f uid=1000 gid=50 mode=640\ndir s/sub uid=1000 gid=50 mode=2750
                char null 1:3 mode=644\nblock disk 7:200 mode=640";
            mount.assert_tree(shown);
            let mount = mount.remount(driver);
            mount.assert_tree(shown);
            assert_eq!(kept(&mount, "d/f", key), "1000:1001:0640:file");
            assert_eq!(kept(&mount, "null", key), "0:0:0644:char-1-3");
            assert_eq!(kept(&mount, "disk", key), "0:0:0640:block-7-200");
            assert_eq!(kept(&mount, "s/sub", key), "1000:50:2750:dir");
            for name in ["d/f", "d/gone", "d/pipe", "d/sock", "null", "disk"] {
                let (mode, uid, _) = real(&mount.upper(name));
                assert_eq!((mode & libc::S_IFMT, mode & 0o7600, uid), (libc::S_IFREG, 0o600, 0), "{name}");
            }
            let mount = mount.unmount().restack().mount(driver);
            mount.assert_tree(shown);
            // After copy-up, it has the same type as before.
            for name in ["d/pipe", "d/sock", "null", "disk"] {
                sys::chown(&mount.at(name), Some(9), Some(9)).unwrap();
            }
            let stat = sys::lstat(&mount.at("null")).unwrap();
            assert_eq!((stat.st_mode, stat.st_uid, stat.st_rdev), (libc::S_IFCHR | 0o644, 9, rustix::fs::makedev(1, 3)));
            assert_eq!(sys::lstat(&mount.at("d/pipe")).unwrap().st_mode, libc::S_IFIFO | 0o640);
        }
    }

    /// Real devices of a lower layer are copied up in the form that an ordinary user can have.
    fn copy_up_of_real_devices(driver) {
        let mount = Stack::new().lower("char c 1:3 mode=666\nfifo p mode=600 uid=5\nlink l -> t uid=3").stratafs_option("xattr_permissions=2").mount(driver);
        let inos = ["c", "p"].map(|name| sys::ino(&mount.at(name)));
        for name in ["c", "p", "l"] {
            sys::chown(&mount.at(name), Some(7), Some(7)).unwrap();
        }
        assert_eq!(["c", "p"].map(|name| sys::ino(&mount.at(name))), inos);
        let shown = "char c 1:3 mode=666 uid=7 gid=7\nfifo p mode=600 uid=7 gid=7\nlink l -> t uid=7 gid=7";
        mount.assert_tree(shown);
        let mount = mount.remount(driver);
        mount.assert_tree(shown);
        assert_eq!(["c", "p"].map(|name| sys::ino(&mount.at(name))), inos);
        assert_eq!(kept(&mount, "c", CONTAINERS), "7:7:0666:char-1-3");
    }

    /// The kernel obeys the attributes shown, not the real ones.
    fn permissions_are_enforced(driver) {
        let mount = Stack::new().lower("file secret \"s\" mode=644\ndir open mode=755").stratafs_option("xattr_permissions=2").mount(driver);
        sys::chmod(&mount.at("secret"), 0o600).unwrap();
        sys::chown(&mount.at("secret"), Some(1000), Some(1000)).unwrap();
        assert_eq!(sys::as_user(1001, 1001, || sys::read(&mount.at("secret"))), Err(Errno::ACCESS));
        assert_eq!(sys::as_user(1000, 1000, || sys::read(&mount.at("secret"))), Ok(b"s".to_vec()));
        assert_eq!(sys::as_user(1000, 1000, || sys::create(&mount.at("open/f"), b"")), Err(Errno::ACCESS));
        assert_eq!(sys::as_user(1001, 1001, || sys::chmod(&mount.at("secret"), 0o666)), Err(Errno::PERM));
        // Only the driver may set it.
        for key in [CONTAINERS, "user.containers.override_security.capability"] {
            assert_eq!(sys::setxattr(&mount.at("secret"), key, b"0:0:4755"), Err(Errno::PERM), "{key}");
            assert_eq!(sys::removexattr(&mount.at("secret"), key), Err(Errno::PERM), "{key}");
            assert_eq!(sys::getxattr(&mount.at("secret"), key), Err(Errno::NODATA), "{key}");
        }
    }

    fn set_id_bits_are_cleared(driver) {
        for (option, _) in WAYS {
            let mount = Stack::new().lower("dir d mode=777").stratafs_option(option).mount(driver);
            for name in ["w", "t", "o", "a", "r"] {
                sys::create(&mount.at(name), b"x").unwrap();
                sys::chmod(&mount.at(name), 0o6777).unwrap();
            }
            sys::as_user(1000, 1000, || {
                sys::write_at(&mount.at("w"), 0, b"y").unwrap();
                sys::truncate(&mount.at("t"), 0).unwrap();
                sys::overwrite(&mount.at("o"), b"y").unwrap();
                sys::append(&mount.at("a"), b"y").unwrap();
                sys::read(&mount.at("r")).unwrap();
            });
            let modes = ["w", "t", "o", "a", "r"].map(|name| sys::mode(&mount.at(name)));
            assert_eq!(modes, [0o777, 0o777, 0o777, 0o777, 0o6777], "{option}: {modes:?}");
            sys::chown(&mount.at("r"), Some(5), None).unwrap();
            assert_eq!(sys::mode(&mount.at("r")), 0o777);
        }
    }

    /// `security.*` needs a name that ordinary users can set; a change of the file drops capabilities.
    fn capabilities(driver) {
        let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        let key = "security.capability";
        let stored = "user.containers.override_security.capability";
        let mount = Stack::new()
            .lower("file low \"x\" mode=755 security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\nfile f \"x\" mode=755")
            .stratafs_option("xattr_permissions=2")
            .mount(driver);
        sys::setxattr(&mount.at("f"), key, capability).unwrap();
        assert_eq!(sys::getxattr(&mount.upper("f"), stored).unwrap(), capability);
        for name in ["f", "low"] {
            assert_eq!(sys::getxattr(&mount.at(name), key).unwrap(), capability, "{name}");
            assert_eq!(sys::listxattr(&mount.at(name)).unwrap(), [key], "{name}");
        }
        sys::chmod(&mount.at("low"), 0o700).unwrap();
        assert_eq!(sys::getxattr(&mount.at("low"), key).unwrap(), capability);
        assert_eq!(sys::listxattr(&mount.at("low")).unwrap(), [key]);
        sys::append(&mount.at("low"), b"y").unwrap();
        sys::chown(&mount.at("f"), Some(1), None).unwrap();
        for name in ["f", "low"] {
            assert_eq!(sys::getxattr(&mount.at(name), key), Err(Errno::NODATA), "{name}");
        }
    }

    /// An upper that cannot keep the attributes is refused at once.
    fn upper_without_attributes(driver) {
        let mut layers = Stack::new().lower("file f").stratafs_option("xattr_permissions=2").build();
        let place = layers.directory.path().join("ramfs");
        sys::mkdir(&place, 0o755).unwrap();
        rustix::mount::mount("none", &place, "ramfs", rustix::mount::MountFlags::empty(), None).unwrap();
        for name in ["upper", "work"] {
            sys::mkdir(&place.join(name), 0o755).unwrap();
        }
        (layers.upper, layers.work) = (Some(place.join("upper")), Some(place.join("work")));
        let Err((message, _)) = layers.try_mount(driver) else { panic!("mounted") };
        assert!(message.contains("xattr_permissions") && message.contains(CONTAINERS), "{message}");
    }

    fn open_and_nameless_files(driver) {
        let mount = Stack::new().lower("file f \"x\"").stratafs_option("xattr_permissions=2").mount(driver);
        let file = sys::open(&mount.at("f"), OFlags::RDWR, 0).unwrap();
        sys::unlink(&mount.at("f")).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o4711)).unwrap();
        rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(5)), None).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!((stat.st_mode, stat.st_uid), (libc::S_IFREG | 0o711, 5));
    }

    fn with_mapping_and_metacopy(driver) {
        let mount = Stack::new()
            .lower("file f \"x\" user.containers.override_stat=100005:100006:0644\nfile big fill=1000000")
            .option("metacopy=on")
            .stratafs_option("xattr_permissions=2,uidmapping=100000:0:65536,gidmapping=100000:0:65536")
            .mount(driver);
        assert_eq!({ let stat = sys::lstat(&mount.at("f")).unwrap(); (stat.st_uid, stat.st_gid) }, (5, 6));
        sys::chown(&mount.at("f"), Some(8), None).unwrap();
        assert_eq!(kept(&mount, "f", CONTAINERS), "100008:100006:0644:file");
        sys::chown(&mount.at("big"), Some(1), Some(1)).unwrap();
        assert!(sys::allocated(&mount.upper("big")) < 65_536);
        assert_eq!(sys::read(&mount.at("big")).unwrap(), tree::pattern(1_000_000));
        sys::append(&mount.at("big"), b"+").unwrap();
        assert_eq!(kept(&mount, "big", CONTAINERS), "100001:100001:0644:file");
    }

    /// An ordinary user's mount, in a user namespace where that user is root and has a range of further ids.
    fn as_an_ordinary_user(driver) {
        let layers = Stack::new().lower("file f \"f\" mode=644\ndir d/e\nfile d/gone").build();
        assert_eq!(driver, crate::common::Driver::Stratafs);
        let script = r#"
            set -eu
            cd "$ROOT"
            "$BIN" -o "lowerdir=lower0,upperdir=writable/upper,workdir=writable/work,xattr_permissions=2,allow_other" merged
            show() { stat -c '%n %F %a %u:%g' "$@"; }
            cd merged
            show f d
            chown 5:6 f; chmod 4711 f; mkfifo p; chown 7:8 p d; chmod 1770 d; rm d/gone; ln -s t l; chown -h 5:5 l
            rm -r d/e; mkdir d/e; echo g > d/g; chown 9 d/g
            show f p d d/e d/g
            cat f > /dev/null
            cd ..; umount merged
            "$BIN" -o "lowerdir=lower0,upperdir=writable/upper,workdir=writable/work,xattr_permissions=2" merged
            cd merged
            show f p d d/e d/g
            ls d
            cd ..; umount merged
        "#;
        let Some(output) = as_root_of_a_namespace(&layers, script, "0 1000 1\n1 100000 1000\n") else {
            return crate::common::skip("permissions::as_an_ordinary_user", "no setpriv and unshare");
        };
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{complained}");
        let changed = "f regular file 4711 5:6\np fifo 644 7:8\nd directory 1770 7:8\nd/e directory 755 0:0\nd/g regular file 644 9:0\n";
        assert_eq!(said, format!("f regular file 644 0:0\nd directory 755 0:0\n{changed}{changed}e\ng\n"), "{complained}");
        let upper = layers.upper.as_ref().unwrap();
        assert_eq!(real(&upper.join("f")), (libc::S_IFREG | 0o711, 1000, 1000));
        assert_eq!(real(&upper.join("p")), (libc::S_IFREG | 0o644, 1000, 1000));
        assert_eq!(sys::getxattr(&upper.join("f"), CONTAINERS).unwrap(), b"5:6:4711:file");
    }
}

on_both! {
    fn unmapped_owners_are_refused(driver) {
        owners_without_a_number_are_not_copied_up(driver);
    }
}
