//! Extended attributes: kept by copy-up, private marks hidden, names in the marks' name space escaped.

use rustix::fs::XattrFlags;

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn on_lower_entries(driver) {
        let mount = Stack::new().lower("file f \"x\" user.a=1 user.b=2 trusted.t=3\ndir d user.a=1").mount(driver);
        for name in ["f", "d"] {
            sys::setxattr(&mount.at(name), "user.new", b"n").unwrap();
            assert_eq!(sys::getxattr(&mount.at(name), "user.new").unwrap(), b"n");
            sys::removexattr(&mount.at(name), "user.a").unwrap();
            assert_eq!(sys::getxattr(&mount.at(name), "user.a"), Err(Errno::NODATA));
        }
        assert_eq!(sys::listxattr(&mount.at("f")).unwrap(), ["trusted.t", "user.b", "user.new"]);
        mount.assert_upper("file f \"x\" user.b=2 user.new=n trusted.t=3\ndir d user.new=n");
        mount.assert_tree_everywhere("file f \"x\" user.b=2 user.new=n trusted.t=3\ndir d user.new=n");
    }

    /// An attribute is read while it is missing, and then set, under every name of the file. Before that come more files
    /// with attributes than the driver inspects.
    fn asked_for_before_it_is_set(driver) {
        let many: String = (0..150).map(|number| format!("file many/f{number} user.a={number}\n")).collect();
        let mount = Stack::new().lower(&format!("{many}file f \"x\"\nfile g \"x\"\ndir d")).mount(driver);
        sys::create(&mount.at("new"), b"n").unwrap();
        sys::link(&mount.at("new"), &mount.at("linked")).unwrap();
        let none = |name: &str| {
            for key in ["user.a", "user.b", "security.capability", "system.posix_acl_access"] {
                assert_eq!(sys::getxattr(&mount.at(name), key), Err(Errno::NODATA), "{name} {key}");
            }
        };
        for name in ["f", "d", "new", "linked"] {
            none(name);
            none(name);
            sys::chmod(&mount.at(name), 0o750).unwrap();
            none(name);
        }
        for (set, asked) in [("f", "f"), ("d", "d"), ("new", "linked")] {
            sys::setxattr(&mount.at(set), "user.b", b"set").unwrap();
            assert_eq!(sys::getxattr(&mount.at(asked), "user.b").unwrap(), b"set", "{asked}");
            sys::removexattr(&mount.at(asked), "user.b").unwrap();
            none(set);
            sys::setxattr(&mount.at(asked), "user.a", b"again").unwrap();
            assert_eq!(sys::getxattr(&mount.at(set), "user.a").unwrap(), b"again", "{set}");
        }
        for number in 0..150 {
            let value = sys::getxattr(&mount.at(&format!("many/f{number}")), "user.a").unwrap();
            assert_eq!(value, number.to_string().as_bytes());
        }
        none("g");
        sys::setxattr(&mount.at("g"), "user.a", b"g").unwrap();
        assert_eq!(sys::getxattr(&mount.at("g"), "user.a").unwrap(), b"g");
    }

    fn reading_copies_nothing(driver) {
        let mount = Stack::new().lower("file f \"x\" user.a=1").mount(driver);
        assert_eq!(sys::getxattr(&mount.at("f"), "user.a").unwrap(), b"1");
        assert_eq!(sys::listxattr(&mount.at("f")).unwrap(), ["user.a"]);
        assert_eq!(sys::removexattr(&mount.at("f"), "user.none"), Err(Errno::NODATA));
        mount.assert_upper("");
    }

    fn flags_and_errors(driver) {
        let mount = Stack::new().lower("file f \"x\" user.a=1\nlink l -> f\nfifo p").mount(driver);
        let set = |path: &str, name: &str, flags| rustix::fs::lsetxattr(mount.at(path), name, b"v", flags);
        assert_eq!(set("f", "user.a", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(set("f", "user.none", XattrFlags::REPLACE), Err(Errno::NODATA));
        set("f", "user.new", XattrFlags::CREATE).unwrap();
        set("f", "user.new", XattrFlags::REPLACE).unwrap();
        assert_eq!(set("l", "user.x", XattrFlags::empty()), Err(Errno::PERM));
        assert_eq!(set("p", "user.x", XattrFlags::empty()), Err(Errno::PERM));
        assert_eq!(set("f", "nonsense", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
        assert_eq!(set("f", &format!("user.{}", "n".repeat(251)), XattrFlags::empty()), Err(Errno::RANGE));
        assert_eq!(sys::getxattr(&mount.at("f"), "user.none"), Err(Errno::NODATA));
        assert_eq!(sys::getxattr(&mount.at("none"), "user.a"), Err(Errno::NOENT));
        let mut small = [0; 1];
        sys::setxattr(&mount.at("f"), "user.a", b"12345").unwrap();
        assert_eq!(rustix::fs::lgetxattr(mount.at("f"), "user.a", &mut small[..]), Err(Errno::RANGE));
        assert_eq!(rustix::fs::llistxattr(mount.at("f"), &mut small[..]), Err(Errno::RANGE));
        assert_eq!(rustix::fs::lgetxattr_query(mount.at("f"), "user.a").unwrap(), 5);
        let trusted = sys::as_user(1000, 1000, || sys::listxattr(&mount.at("f")).unwrap());
        assert_eq!(trusted, ["user.a", "user.new"]);
    }

    fn symlinks_and_devices_keep_trusted_ones(driver) {
        let mount = Stack::new().lower("link l -> t trusted.k=v\nfifo p trusted.k=v").mount(driver);
        sys::setxattr(&mount.at("l"), "trusted.new", b"1").unwrap();
        sys::setxattr(&mount.at("p"), "trusted.new", b"1").unwrap();
        mount.assert_upper("link l -> t trusted.k=v trusted.new=1\nfifo p trusted.k=v trusted.new=1");
    }

    fn values(driver) {
        let mount = Stack::new().lower("file f").mount(driver);
        for value in [&b""[..], b"\0\x01\xff", &[7; 3000]] {
            sys::setxattr(&mount.at("f"), "user.v", value).unwrap();
            assert_eq!(sys::getxattr(&mount.at("f"), "user.v").unwrap(), value);
        }
        let unsized_error = sys::setxattr(&mount.at("f"), "user.v", &vec![1; 65537]);
        assert_eq!(unsized_error, Err(Errno::TOOBIG));
        assert_eq!(sys::getxattr(&mount.at("f"), "user.v").unwrap(), [7; 3000]);
    }

    /// The driver's own marks are invisible, and nothing set through the mount becomes one.
    fn marks_are_private(driver) {
        let mount = Stack::new()
            .lower("file d/low\nfile f \"x\"")
            .upper("dir d trusted.overlay.opaque=y user.k=v\nfile up \"u\"")
            .mount(driver);
        sys::append(&mount.at("f"), b"y").unwrap();
        assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), ["user.k"]);
        assert_eq!(sys::listxattr(&mount.at("f")).unwrap(), Vec::<String>::new());
        assert_eq!(sys::getxattr(&mount.at("d"), "trusted.overlay.opaque"), Err(Errno::NODATA));
        assert_eq!(sys::getxattr(&mount.at("f"), "trusted.overlay.origin"), Err(Errno::NODATA));
        assert_eq!(sys::removexattr(&mount.at("d"), "trusted.overlay.opaque"), Err(Errno::NODATA));
        sys::setxattr(&mount.at("d"), "trusted.overlay.redirect", b"/f").unwrap();
        sys::setxattr(&mount.at("up"), "trusted.overlay.metacopy", b"").unwrap();
        assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), ["trusted.overlay.redirect", "user.k"]);
        assert_eq!(sys::getxattr(&mount.at("d"), "trusted.overlay.redirect").unwrap(), b"/f");
        mount.assert_upper(
            "dir d trusted.overlay.opaque=y trusted.overlay.overlay.redirect=/f user.k=v
             file f \"xy\"\nfile up \"u\" trusted.overlay.overlay.metacopy=",
        );
        let tree = "dir d trusted.overlay.redirect=/f user.k=v\nfile f \"xy\"\nfile up \"u\" trusted.overlay.metacopy=";
        let mount = mount.remount(driver);
        mount.assert_tree(tree);
        sys::removexattr(&mount.at("d"), "trusted.overlay.redirect").unwrap();
        mount.assert_upper("dir d trusted.overlay.opaque=y user.k=v\nfile f \"xy\"\nfile up \"u\" trusted.overlay.overlay.metacopy=");
    }

    /// The escape is undone whatever layer it stands in.
    fn escaped_names_in_lowers(driver) {
        let mount = Stack::new().lower("dir d trusted.overlay.overlay.opaque=y\nfile d/a").lower("file d/b").mount(driver);
        assert_eq!(sys::names(&mount.at("d")), ["a", "b"]);
        assert_eq!(sys::listxattr(&mount.at("d")).unwrap(), ["trusted.overlay.opaque"]);
        sys::chmod(&mount.at("d"), 0o700).unwrap();
        assert_eq!(sys::getxattr(&mount.at("d"), "trusted.overlay.opaque").unwrap(), b"y");
        assert_eq!(sys::names(&mount.at("d")), ["a", "b"]);
    }

    /// Copy-up keeps them also on empty files and on directories copied up only as parents.
    fn copy_up_keeps_them(driver) {
        let mount = Stack::new().lower("dir d user.parent=p\nfile d/empty user.a=1 security.other=x\nfile d/full fill=70000 user.b=2").mount(driver);
        let full = mount.at("d/full");
        sys::append(&mount.at("d/empty"), b"x").unwrap();
        sys::truncate(&full, 0).unwrap();
        assert_eq!(rustix::fs::lgetxattr_query(&full, "user.b").unwrap(), 1);
        assert_eq!(sys::getxattr(&mount.upper("d"), "user.parent").unwrap(), b"p");
        let empty = sys::listxattr(&mount.upper("d/empty")).unwrap();
        assert!(empty.contains(&"user.a".to_owned()) && empty.contains(&"security.other".to_owned()), "{empty:?}");
        assert!(sys::listxattr(&mount.upper("d/full")).unwrap().contains(&"user.b".to_owned()));
    }
}
