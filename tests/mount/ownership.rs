//! Owners and modes of created files, and the bits that a change clears.

use rustix::fs::OFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

/// A default or access ACL in its on-disk form: entries of tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// rwx for the owner, r-x for user 77, r-x for the group, nothing for others.
fn sample_acl() -> Vec<u8> {
    acl(&[(USER_OBJ, 7, NO_ID), (USER, 5, 77), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)])
}

on_both! {
    fn umask_applies(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        for (mask, file, directory) in [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o000, 0o666, 0o777), (0o027, 0o640, 0o750)] {
            sys::umask(mask);
            let name = |kind: &str| mount.at(&format!("d/{kind}{mask:o}"));
            sys::create(&name("file"), b"").unwrap();
            sys::mkdir(&name("dir"), 0o777).unwrap();
            sys::mknod(&name("fifo"), libc::S_IFIFO | 0o666, (0, 0)).unwrap();
            sys::mknod(&name("node"), libc::S_IFREG | 0o666, (0, 0)).unwrap();
            sys::umask(0o022);
            for (kind, mode) in [("file", file), ("dir", directory), ("fifo", file), ("node", file)] {
                assert_eq!(sys::mode(&name(kind)), mode, "{kind} with {mask:o}");
            }
        }
    }

    fn special_bits_at_creation(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        drop(sys::open(&mount.at("d/f"), OFlags::WRONLY | OFlags::CREATE, 0o7755).unwrap());
        sys::mkdir(&mount.at("d/d"), 0o1777).unwrap();
        sys::mknod(&mount.at("d/p"), libc::S_IFIFO | 0o4755, (0, 0)).unwrap();
        assert_eq!(["d/f", "d/d", "d/p"].map(|name| sys::mode(&mount.at(name))), [0o7755, 0o1755, 0o4755]);
    }

    fn creator_owns(driver) {
        let mount = Stack::new().lower("dir d mode=777\ndir d/whited\nfile d/gone").mount(driver);
        sys::unlink(&mount.at("d/gone")).unwrap();
        sys::rmdir(&mount.at("d/whited")).unwrap();
        sys::as_user_in(1000, 1001, &[], 0o027, || {
            sys::create(&mount.at("d/f"), b"").unwrap();
            sys::create(&mount.at("d/gone"), b"").unwrap();
            sys::mkdir(&mount.at("d/dir"), 0o777).unwrap();
            sys::mkdir(&mount.at("d/whited"), 0o777).unwrap();
            sys::symlink("t", &mount.at("d/l")).unwrap();
            sys::link(&mount.at("d/f"), &mount.at("d/h")).unwrap();
        });
        let tree = "dir d mode=777\nfile d/f mode=640 uid=1000 gid=1001\nfile d/gone mode=640 uid=1000 gid=1001
            dir d/dir mode=750 uid=1000 gid=1001\ndir d/whited mode=750 uid=1000 gid=1001\nlink d/l -> t uid=1000 gid=1001\nhard d/h d/f";
        mount.assert_tree(tree);
        mount.assert_upper(tree);
    }

    fn setgid_directories_pass_on_their_group(driver) {
        for layer in ["lower", "upper"] {
            let stack = Stack::new();
            let tree = "dir d mode=2777 gid=50";
            let stack = if layer == "lower" { stack.lower(tree) } else { stack.lower("").upper(tree) };
            let mount = stack.mount(driver);
            sys::as_user(1000, 1001, || {
                sys::create(&mount.at("d/f"), b"").unwrap();
                sys::mkdir(&mount.at("d/d"), 0o777).unwrap();
                sys::symlink("t", &mount.at("d/l")).unwrap();
                sys::mknod(&mount.at("d/p"), libc::S_IFIFO | 0o666, (0, 0)).unwrap();
                // A user outside the group does not get the bit on a file.
                drop(sys::open(&mount.at("d/s"), OFlags::WRONLY | OFlags::CREATE, 0o2755).unwrap());
            });
            mount.assert_tree(
                "dir d mode=2777 gid=50\nfile d/f uid=1000 gid=50\ndir d/d mode=2755 uid=1000 gid=50
                 link d/l -> t uid=1000 gid=50\nfifo d/p uid=1000 gid=50\nfile d/s mode=755 uid=1000 gid=50",
            );
        }
    }

    /// A write, truncation or change of owner by a process without the privilege clears suid and sgid.
    fn suid_is_cleared(driver) {
        let tree = "file w \"x\" mode=6777\nfile t \"x\" mode=6777\nfile o \"x\" mode=6777\nfile a \"x\" mode=6777\nfile n \"x\" mode=2767
            file r \"x\" mode=6777\nfile c \"x\" mode=6755 uid=1000 gid=1000";
        for layer in ["lower", "upper"] {
            let stack = if layer == "lower" { Stack::new().lower(tree) } else { Stack::new().lower("").upper(tree) };
            let mount = stack.mount(driver);
            sys::as_user(1000, 1000, || {
                sys::write_at(&mount.at("w"), 0, b"y").unwrap();
                sys::truncate(&mount.at("t"), 0).unwrap();
                sys::overwrite(&mount.at("o"), b"y").unwrap();
                sys::append(&mount.at("a"), b"y").unwrap();
                sys::append(&mount.at("n"), b"y").unwrap();
                sys::read(&mount.at("r")).unwrap();
                sys::chown(&mount.at("c"), None, Some(1000)).unwrap();
            });
            for (name, mode) in [("w", 0o777), ("t", 0o777), ("o", 0o777), ("a", 0o777), ("n", 0o767), ("r", 0o6777), ("c", 0o755)] {
                assert_eq!(format!("{:o}", sys::mode(&mount.at(name))), format!("{mode:o}"), "{name} in the {layer}");
            }
        }
    }

    fn root_keeps_suid_on_write_but_not_on_chown(driver) {
        let mount = Stack::new().lower("file w \"x\" mode=6755\nfile c \"x\" mode=6755\nfile m \"x\" mode=6755\ndir d mode=6755").mount(driver);
        sys::append(&mount.at("w"), b"y").unwrap();
        assert_eq!(sys::mode(&mount.at("w")), 0o6755);
        sys::chown(&mount.at("c"), Some(1), Some(1)).unwrap();
        assert_eq!(sys::mode(&mount.at("c")), 0o755);
        sys::chmod(&mount.at("m"), 0o4711).unwrap();
        assert_eq!(sys::mode(&mount.at("m")), 0o4711);
        sys::chown(&mount.at("d"), Some(1), Some(1)).unwrap();
        assert_eq!(sys::mode(&mount.at("d")), 0o6755);
    }

    /// Copy-up alone, by a change that is no write, keeps the bits.
    fn copy_up_keeps_suid(driver) {
        let mount = Stack::new().lower("file f \"x\" mode=6755 uid=1000 gid=1000").mount(driver);
        sys::as_user(1000, 1000, || sys::utimens(&mount.at("f"), (1, 0), (1, 0)).unwrap());
        sys::link(&mount.at("f"), &mount.at("g")).unwrap();
        mount.assert_upper("file f \"x\" mode=6755 uid=1000 gid=1000\nhard g f");
    }

    fn chmod_by_a_stranger_to_the_group_drops_sgid(driver) {
        let mount = Stack::new().lower("file f mode=755 uid=1000 gid=50").mount(driver);
        sys::as_user(1000, 1000, || sys::chmod(&mount.at("f"), 0o2755).unwrap());
        assert_eq!(sys::mode(&mount.at("f")), 0o755);
        sys::as_user_in(1000, 1000, &[50], 0o022, || sys::chmod(&mount.at("f"), 0o2755).unwrap());
        assert_eq!(sys::mode(&mount.at("f")), 0o2755);
    }

    /// A write drops file capabilities; copy-up itself keeps them.
    fn file_capabilities(driver) {
        let capability = "security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00";
        let mount = Stack::new().lower(&format!("file w \"x\" mode=755 {capability}\nfile c \"x\" mode=755 {capability}\nfile t \"x\" mode=755 {capability}\nfile o \"x\" mode=755 {capability}")).mount(driver);
        let has = |name: &str| sys::getxattr(&mount.at(name), "security.capability").is_ok();
        sys::chmod(&mount.at("c"), 0o700).unwrap();
        assert!(has("c"), "chmod copies up and keeps them");
        sys::append(&mount.at("w"), b"y").unwrap();
        sys::truncate(&mount.at("t"), 0).unwrap();
        sys::chown(&mount.at("o"), Some(1), None).unwrap();
        assert_eq!(["w", "t", "o"].map(has), [false, false, false]);
        assert_eq!(sys::getxattr(&mount.at("w"), "security.capability"), Err(Errno::NODATA));
        sys::setxattr(&mount.at("w"), "security.capability", &sys::getxattr(&mount.at("c"), "security.capability").unwrap()).unwrap();
        assert!(has("w"));
        sys::append(&mount.at("w"), b"z").unwrap();
        assert!(!has("w"));
    }

    /// A default ACL takes the umask's place, and children inherit it.
    fn default_acls(driver) {
        let layers = Stack::new().lower("dir d mode=755\ndir low mode=755").build();
        let mut layers = layers;
        sys::setxattr(&layers.lowers[0].join("low"), "system.posix_acl_default", &sample_acl()).unwrap();
        layers.settle();
        let mount = layers.mount(driver);
        sys::setxattr(&mount.at("d"), "system.posix_acl_default", &sample_acl()).unwrap();
        for directory in ["d", "low"] {
            sys::umask(0o077);
            sys::create(&mount.at(directory).join("f"), b"").unwrap();
            sys::mkdir(&mount.at(directory).join("sub"), 0o777).unwrap();
            sys::symlink("t", &mount.at(directory).join("l")).unwrap();
            sys::umask(0o022);
            assert_eq!(sys::mode(&mount.at(directory).join("f")), 0o640, "{directory}");
            assert_eq!(sys::mode(&mount.at(directory).join("sub")), 0o750, "{directory}");
            let inherited = sys::getxattr(&mount.at(directory).join("sub"), "system.posix_acl_default").unwrap();
            assert_eq!(inherited, sample_acl(), "{directory}");
            let access = sys::getxattr(&mount.at(directory).join("f"), "system.posix_acl_access").unwrap();
            let expected = acl(&[(USER_OBJ, 6, NO_ID), (USER, 5, 77), (GROUP_OBJ, 5, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID)]);
            assert_eq!(access, expected, "{directory}");
            sys::as_user(77, 77, || assert_eq!(sys::read(&mount.at(directory).join("f")), Ok(vec![])));
            let refused = sys::as_user(78, 78, || sys::read(&mount.at(directory).join("f")));
            assert_eq!(refused, Err(Errno::ACCESS), "{directory}");
        }
    }

    /// Files are made in the work directory; they must not inherit from that.
    fn acls_of_the_work_directory_are_not_inherited(driver) {
        let layers = Stack::new().lower("dir d mode=777\nfile d/low \"low\"").build();
        sys::setxattr(layers.work.as_ref().unwrap(), "system.posix_acl_default", &sample_acl()).unwrap();
        let mount = layers.mount(driver);
        sys::as_user(1000, 1000, || sys::create(&mount.at("d/new"), b"").unwrap());
        sys::append(&mount.at("d/low"), b"er").unwrap();
        sys::as_user(1000, 1000, || sys::mkdir(&mount.at("d/dir"), 0o755).unwrap());
        for name in ["d/new", "d/low", "d/dir"] {
            for key in ["system.posix_acl_access", "system.posix_acl_default"] {
                let kept = sys::getxattr(&mount.upper(name), key);
                assert!(matches!(kept, Err(Errno::NODATA)), "{name} {key}: {kept:?}");
            }
        }
        assert_eq!(["d/new", "d/low", "d/dir"].map(|name| sys::mode(&mount.at(name))), [0o644, 0o644, 0o755]);
    }

    /// Access ACLs decide, are kept by copy-up, and follow chmod.
    fn access_acls(driver) {
        let layers = Stack::new().lower("file f \"x\" mode=600").build();
        let mut layers = layers;
        sys::setxattr(&layers.lowers[0].join("f"), "system.posix_acl_access", &sample_acl()).unwrap();
        layers.settle();
        let mount = layers.mount(driver);
        sys::as_user(77, 77, || assert_eq!(sys::read(&mount.at("f")), Ok(b"x".to_vec())));
        assert_eq!(sys::as_user(78, 78, || sys::read(&mount.at("f"))), Err(Errno::ACCESS));
        sys::append(&mount.at("f"), b"y").unwrap();
        assert_eq!(sys::getxattr(&mount.at("f"), "system.posix_acl_access").unwrap(), sample_acl());
        assert_eq!(sys::getxattr(&mount.upper("f"), "system.posix_acl_access").unwrap(), sample_acl());
        sys::chmod(&mount.at("f"), 0o700).unwrap();
        assert_eq!(sys::as_user(77, 77, || sys::read(&mount.at("f"))), Err(Errno::ACCESS));
        // Setting one changes the mode.
        let new = acl(&[(USER_OBJ, 6, NO_ID), (USER, 6, 78), (GROUP_OBJ, 4, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)]);
        sys::setxattr(&mount.at("f"), "system.posix_acl_access", &new).unwrap();
        assert_eq!(sys::mode(&mount.at("f")), 0o660);
        sys::as_user(78, 78, || sys::append(&mount.at("f"), b"z").unwrap());
        sys::removexattr(&mount.at("f"), "system.posix_acl_access").unwrap();
        assert_eq!(sys::as_user(78, 78, || sys::append(&mount.at("f"), b"z")), Err(Errno::ACCESS));
    }

    /// Copying up on behalf of a user keeps the lower owner, and does nothing that the user may not do.
    fn copy_up_by_a_user(driver) {
        let mount = Stack::new().lower("dir d mode=755 uid=5\nfile d/shared \"x\" mode=666 uid=5 gid=6\nfile d/ro \"x\" mode=644 uid=5").mount(driver);
        sys::as_user(1000, 1000, || {
            sys::append(&mount.at("d/shared"), b"y").unwrap();
            assert_eq!(sys::append(&mount.at("d/ro"), b"y"), Err(Errno::ACCESS));
            assert_eq!(sys::chmod(&mount.at("d/shared"), 0o600), Err(Errno::PERM));
        });
        mount.assert_upper("dir d mode=755 uid=5\nfile d/shared \"xy\" mode=666 uid=5 gid=6");
    }
}
