//! Damaged layers: the damaged entry gives an error or has a documented meaning, the log has a line, and nothing else is
//! affected.

use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::common::{Driver, Errno, Mount, Stack, sys, tree};
use crate::{on_both, on_stratafs};

/// The lower layer of most tests: must stay readable beside the damage.
const LOWER: &str =
    "file ok \"ok\"\nfile d/x \"x\"\nfile f \"low\"\nfile a/deep/y \"y\"\nlink esc -> /etc\nlink up -> ..";

#[track_caller]
fn assert_unharmed(mount: &Mount) {
    assert_eq!(sys::text(&mount.at("ok")), "ok");
    assert_eq!(sys::text(&mount.at("a/deep/y")), "y");
    sys::create(&mount.at("new"), b"new").unwrap();
    assert_eq!(sys::text(&mount.at("new")), "new");
    sys::unlink(&mount.at("new")).unwrap();
    assert!(sys::names(mount.root()).contains(&"ok".to_owned()));
}

/// Lines of the daemon's log that report at `WARN` or `ERROR` that `place`, the end of a path in a layer, is damaged.
fn told(mount: &Mount, place: &str) -> usize {
    let names = |line: &&str| {
        let level = line.split_whitespace().nth(1).unwrap_or_default();
        ["WARN", "ERROR"].contains(&level) && line.contains(&format!("/{place}\""))
    };
    mount.log().lines().filter(names).count()
}

/// Asserts that stratafs has reported the damage of `place`, and none for other places, which are undamaged.
#[track_caller]
fn assert_told(mount: &Mount, place: &str) {
    if mount.driver() == Driver::Stratafs {
        let log = mount.log();
        assert!(told(mount, place) > 0, "nothing of {place} in the log: {log}");
        for sound in ["lower0/ok", "a/deep", "a/deep/y", "new", "lower0/d/x"] {
            assert!(place == sound || told(mount, sound) == 0, "{sound} in the log: {log}");
        }
    }
}

#[track_caller]
fn assert_silent(mount: &Mount) {
    let log = mount.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

on_both! {
    /// A redirect never leads out of the layer: not by `..`, not by a symlink.
    fn redirects_that_point_outside(driver) {
        for value in ["/../../etc", "../../etc", "/esc", "/esc/ssl", "/up", "/up/up/etc", "/a/../../etc", "/ok", "/ok/x", "", "/", "/none"] {
            let mount = Stack::new()
                .lower(LOWER)
                .upper(&format!("dir moved trusted.overlay.redirect={value}\nfile moved/own \"u\""))
                .mount(driver);
            assert_unharmed(&mount);
            match sys::readdir(&mount.at("moved")) {
                Ok(list) => assert_eq!(list.iter().map(|entry| entry.name.to_str().unwrap()).collect::<Vec<_>>(), ["own"], "{value:?}"),
                Err(error) => assert!([Errno::IO, Errno::INVAL, Errno::ACCESS].contains(&error), "{value:?}: {error}"),
            }
            assert_told(&mount, "upper/moved");
        }
    }

    /// The same for the content of a metacopy file.
    fn metacopy_redirects_that_point_outside(driver) {
        for value in ["/../../etc/passwd", "/esc/passwd", "/up/passwd", "passwd", "/d", "/esc", "/ok/x", ""] {
            let mount = Stack::new()
                .lower(LOWER)
                .upper(&format!("dir . trusted.overlay.impure=y\nfile moved size=3 trusted.overlay.metacopy= trusted.overlay.redirect={value}"))
                .option("metacopy=on")
                .mount(driver);
            assert!(sys::read(&mount.at("moved")).is_err(), "{value:?}");
            assert_unharmed(&mount);
            assert_told(&mount, "moved");
        }
    }

    /// A redirect in a lower layer that leads nowhere.
    fn redirects_of_lower_layers(driver) {
        for value in ["/esc", "/none", "none", "/ok", "/../etc"] {
            let mount = Stack::new().lower(&format!("dir a\ndir a/moved trusted.overlay.redirect={value}\nfile a/moved/own")).lower(LOWER).mount(driver);
            match sys::readdir(&mount.at("a/moved")) {
                Ok(list) => assert_eq!(list.iter().map(|entry| entry.name.to_str().unwrap()).collect::<Vec<_>>(), ["own"], "{value:?}"),
                Err(error) => assert!([Errno::IO, Errno::INVAL, Errno::ACCESS].contains(&error), "{value:?}: {error}"),
            }
            assert_unharmed(&mount);
            assert_told(&mount, "lower0/a/moved");
        }
    }

    fn data_only_redirects_that_point_outside(driver) {
        for value in ["/esc/passwd", "/dir", "/link", "/fifo"] {
            let mount = Stack::new()
                .lower(&format!("file ok \"ok\"\nfile a/deep/y \"y\"\nfile f size=3 trusted.overlay.metacopy= trusted.overlay.redirect={value}"))
                .data_only("link esc -> /etc\ndir dir\nlink link -> /etc/passwd\nfifo fifo")
                .option("metacopy=on")
                .mount(driver);
            let error = sys::read(&mount.at("f")).unwrap_err();
            assert!(driver == Driver::Overlayfs || error == Errno::IO, "{value:?}: {error}");
            assert_unharmed(&mount);
            assert_told(&mount, "f");
        }
    }

    /// A damaged origin only affects the inode number.
    fn origins(driver) {
        // Invalid origins, and those that another system may have written: the log says nothing about the latter.
        let damaged = ["x", "\\x00\\xfb", "\\x00\\xfb\\x1d\\x00\\x01"];
        let foreign = [
            "",
            "\\x00\\xfb\\x1d\\x00\\x01abcdefghijklmnop\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00",
            "\\x00\\xfb\\x1d\\x00\\xff\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00",
            "\\x01\\xfb\\x1d\\x00\\x01abcdefghijklmnop\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00",
        ];
        for value in damaged.iter().chain(&foreign) {
            let mount = Stack::new()
                .lower(LOWER)
                .upper(&format!("dir . trusted.overlay.impure=y\nfile f \"up\" trusted.overlay.origin={value}\ndir d trusted.overlay.origin={value}\nfile d/own"))
                .mount(driver);
            assert_eq!(sys::text(&mount.at("f")), "up", "{value:?}");
            assert_eq!(sys::names(&mount.at("d")), ["own", "x"], "{value:?}");
            sys::append(&mount.at("f"), b"+").unwrap();
            assert_unharmed(&mount);
            for entry in sys::readdir(mount.root()).unwrap() {
                assert_eq!(entry.ino, sys::ino(&mount.at(entry.name.to_str().unwrap())), "{value:?}: {:?}", entry.name);
            }
            if damaged.contains(value) {
                assert_told(&mount, "upper/f");
                assert_told(&mount, "upper/d");
            } else if driver == Driver::Stratafs {
                assert_silent(&mount);
            }
        }
    }

    /// A damaged mark for metacopy: the place of the content is unknown.
    fn metacopy_marks(driver) {
        for (value, good) in [("", true), ("\\x00\\x04\\x00\\x00", true), ("x", false), ("\\x00\\x04\\x00", false)] {
            let mount = Stack::new()
                .lower(LOWER)
                .upper(&format!("dir . trusted.overlay.impure=y\nfile f size=3 trusted.overlay.metacopy={value}"))
                .option("metacopy=on")
                .mount(driver);
            match good {
                true => assert_eq!(sys::read(&mount.at("f")), Ok(b"low".to_vec()), "{value:?}"),
                false => assert_eq!(sys::read(&mount.at("f")), Err(Errno::IO), "{value:?}"),
            }
            assert_unharmed(&mount);
            match good {
                true => assert_eq!(told(&mount, "f"), 0, "{}", mount.log()),
                false => assert_told(&mount, "upper/f"),
            }
        }
    }

    /// An invalid link count mark: the real count is shown.
    fn link_counts(driver) {
        for value in ["", "U", "X+1", "U+99999999999999999999", "garbage"] {
            let mount = Stack::new().lower("file a \"a\"\nhard b a\nfile ok \"ok\"\nfile a/deep/y \"y\"".replace("a/deep", "q/deep").as_str()).option("index=on").mount(driver);
            sys::append(&mount.at("a"), b"+").unwrap();
            let layers = mount.unmount();
            sys::setxattr(&layers.upper.as_ref().unwrap().join("a"), "trusted.overlay.nlink", value.as_bytes()).unwrap();
            let mount = layers.mount(driver);
            assert_eq!((sys::text(&mount.at("a")), sys::text(&mount.at("b"))), ("a+".to_owned(), "a+".to_owned()), "{value:?}");
            assert_eq!(sys::nlink(&mount.at("a")), 2, "{value:?}");
            assert!(driver == Driver::Overlayfs || mount.log().contains("trusted.overlay.nlink"), "{value:?}: {}", mount.log());
            sys::unlink(&mount.at("a")).unwrap();
            assert_eq!(sys::text(&mount.at("b")), "a+");
            sys::unlink(&mount.at("b")).unwrap();
            assert_eq!(sys::text(&mount.at("ok")), "ok");
        }
    }

    /// Marks and attributes of 64 KiB, the maximum.
    fn attributes_of_64_kib(driver) {
        let mut layers = Stack::new().lower("").build();
        let place = layers.directory.path().join("tmpfs");
        on_tmpfs(&place, |root| {
            tree::build(root, "dir lower\ndir upper\ndir work");
            tree::build(&root.join("lower"), LOWER);
            let huge = vec![b'h'; 65_536];
            sys::setxattr(&root.join("lower/f"), "user.huge", &huge).unwrap();
            tree::build(&root.join("upper"), "file moved/own \"u\"\nfile g \"g\"\nfile ok2 \"ok\"\ndir o\ndir . trusted.overlay.impure=y");
            for (name, mark) in [("moved", "redirect"), ("g", "origin"), ("o", "opaque"), ("o", "impure")] {
                sys::setxattr(&root.join("upper").join(name), &format!("trusted.overlay.{mark}"), &huge).unwrap();
            }
            layers.lowers[0] = root.join("lower");
            layers.originals.clear();
            (layers.upper, layers.work) = (Some(root.join("upper")), Some(root.join("work")));
            let mount = layers.mount(driver);
            assert_eq!(sys::getxattr(&mount.at("f"), "user.huge").unwrap(), huge);
            sys::append(&mount.at("f"), b"+").unwrap();
            assert_eq!(sys::getxattr(&mount.upper("f"), "user.huge").unwrap(), huge);
            sys::setxattr(&mount.at("ok2"), "user.other", &huge).unwrap();
            assert_eq!(sys::getxattr(&mount.at("ok2"), "user.other").unwrap(), huge);
            assert_eq!(sys::text(&mount.at("g")), "g");
            assert_eq!(sys::names(&mount.at("o")), Vec::<String>::new());
            match sys::readdir(&mount.at("moved")) {
                Ok(list) => assert_eq!(list.len(), 1),
                Err(error) => assert!([Errno::IO, Errno::INVAL, Errno::RANGE].contains(&error), "{error}"),
            }
            assert_unharmed(&mount);
            for name in ["moved", "g", "o"] {
                assert_told(&mount, &format!("upper/{name}"));
            }
            // The lines in the log are short, whatever a mark contains.
            assert!(mount.log().lines().all(|line| line.len() < 1000), "{}", mount.log());
        });
    }

    /// An opaque mark, or an impure mark, with an invalid value.
    fn opaque_values(driver) {
        for value in ["z", "yy", "Y", "", "\\x00"] {
            let mount = Stack::new()
                .upper(&format!("dir d trusted.overlay.opaque={value}\nfile d/own"))
                .lower(&format!("dir a\ndir a/deep trusted.overlay.opaque={value}\nfile a/deep/more"))
                .lower(LOWER)
                .mount(driver);
            assert_eq!(sys::names(&mount.at("d")), ["own", "x"], "{value:?}");
            assert_eq!(sys::names(&mount.at("a/deep")), ["more", "y"], "{value:?}");
            assert_unharmed(&mount);
            assert!(driver == Driver::Overlayfs || told(&mount, "upper/d") + told(&mount, "lower0/a/deep") >= 2, "{value:?}: {}", mount.log());
        }
    }

    /// The log reports damage when the entry is read, not each time that it is used.
    fn told_once(driver) {
        let mount = Stack::new()
            .lower(LOWER)
            .upper("dir . trusted.overlay.impure=y\ndir d trusted.overlay.opaque=z\nfile f \"up\" trusted.overlay.origin=x")
            .mount(driver);
        for _ in 0..100 {
            assert_eq!(sys::names(&mount.at("d")), ["x"]);
            assert_eq!(sys::text(&mount.at("f")), "up");
            assert!(sys::exists(&mount.at("d/x")) && !sys::exists(&mount.at("d/y")));
            sys::append(&mount.at("f"), b"").unwrap();
        }
        if driver == Driver::Stratafs {
            assert!((1..5).contains(&told(&mount, "upper/d")), "{}", mount.log());
            assert!((1..5).contains(&told(&mount, "upper/f")), "{}", mount.log());
        }
    }

    /// Undamaged entries are not reported.
    fn sound_layers_are_silent(driver) {
        let mount = Stack::new()
            .upper("dir d trusted.overlay.opaque=y\ndir moved trusted.overlay.redirect=/a\nwhiteout a\nwhiteout f")
            .lower(LOWER)
            .mount(driver);
        assert_eq!(sys::names(&mount.at("d")), Vec::<String>::new());
        assert_eq!(sys::text(&mount.at("moved/deep/y")), "y");
        sys::append(&mount.at("ok"), b"+").unwrap();
        sys::rename(&mount.at("moved"), &mount.at("again")).unwrap();
        let mount = mount.remount(driver);
        assert_eq!(sys::text(&mount.at("again/deep/y")), "y");
        assert_eq!(sys::text(&mount.at("ok")), "ok+");
        assert_silent(&mount);
    }

    /// Hundreds of attributes on one file, marks among them.
    fn many_attributes(driver) {
        let many: String = (0..60).map(|number| format!(" user.attribute-with-a-long-name-{number}=v")).collect();
        let mount = Stack::new().lower(&format!("{LOWER}\ndir old\nfile old/z \"z\"")).upper(&format!("dir m{many} trusted.overlay.redirect=/old\nwhiteout old")).mount(driver);
        assert_eq!(sys::names(&mount.at("m")), ["z"]);
        assert_eq!(sys::listxattr(&mount.at("m")).unwrap().len(), 60);
        assert_unharmed(&mount);
    }

    /// A whiteout by attribute with content is an ordinary file.
    fn whiteouts_with_content(driver) {
        let mount = Stack::new()
            .lower("dir d trusted.overlay.opaque=x\nfile d/empty trusted.overlay.whiteout=y\nfile d/full \"up\" trusted.overlay.whiteout=y")
            .lower(&format!("{LOWER}\nfile d/empty \"low\"\nfile d/full \"low\""))
            .mount(driver);
        assert_eq!(sys::names(&mount.at("d")), ["full", "x"]);
        assert_eq!(sys::text(&mount.at("d/full")), "up");
        sys::append(&mount.at("d/full"), b"+").unwrap();
        assert_eq!(sys::text(&mount.at("d/full")), "up+");
        assert_unharmed(&mount);
        assert_told(&mount, "lower0/d/full");
        assert_eq!(told(&mount, "d/empty"), 0, "{}", mount.log());
    }

    /// Two directories that redirect to one another, or to themselves.
    fn redirects_in_a_circle(driver) {
        let mount = Stack::new()
            .lower("dir p trusted.overlay.redirect=/q\nfile p/one\ndir q trusted.overlay.redirect=/p\ndir s trusted.overlay.redirect=/s\nfile ok \"ok\"\nfile a/deep/y \"y\"")
            .lower("dir p trusted.overlay.redirect=/q\nfile p/two\ndir q trusted.overlay.redirect=/p\nfile q/three\nfile s/four")
            .upper("dir p trusted.overlay.redirect=/p\ndir t trusted.overlay.redirect=t")
            .mount(driver);
        assert_eq!(sys::names(&mount.at("p")), ["one", "three"]);
        assert_eq!(sys::names(&mount.at("s")), ["four"]);
        assert_eq!(sys::names(&mount.at("t")), Vec::<String>::new());
        assert_unharmed(&mount);
    }
}

on_stratafs! {
    /// A lower layer is changed below the mount: errors for missing files, nothing else.
    fn lower_changes_underneath(driver) {
        let mut layers = Stack::new().lower(&format!("{LOWER}\nfile d/gone\nfile d/turned\nfile d/dir/z\nfile big fill=100000")).lower("file d/w").build();
        layers.originals.clear();
        let mount = layers.mount(driver);
        for _ in 0..3 {
            assert_eq!(sys::names(&mount.at("d")).len(), 5);
            assert_eq!(sys::lstat(&mount.at("d/none")).err(), Some(Errno::NOENT));
        }
        let big = sys::open(&mount.at("big"), rustix::fs::OFlags::RDONLY, 0).unwrap();
        sys::unlink(&mount.lower(0, "d/gone")).unwrap();
        sys::unlink(&mount.lower(0, "d/turned")).unwrap();
        sys::mkdir(&mount.lower(0, "d/turned"), 0o755).unwrap();
        std::fs::remove_dir_all(mount.lower(0, "d/dir")).unwrap();
        sys::unlink(&mount.lower(0, "big")).unwrap();
        for name in ["d/gone", "d/turned", "d/dir", "big"] {
            let path = mount.at(name);
            for outcome in [sys::read(&path).map(drop), sys::chmod(&path, 0o600), sys::rename(&path, &mount.at("moved")).and_then(|()| sys::rename(&mount.at("moved"), &path))] {
                let expected = [Err(Errno::IO), Err(Errno::STALE), Err(Errno::NOENT)];
                // A directory cannot be read then; open files can.
                let as_ever = [("d/dir", Err(Errno::ISDIR)), ("big", Ok(()))].contains(&(name, outcome));
                assert!(as_ever || expected.contains(&outcome), "{name}: {outcome:?}");
            }
        }
        assert!(sys::read_file(&big).unwrap() == tree::pattern(100_000));
        assert_unharmed(&mount);
        assert_told(&mount, "d/gone");
        assert_told(&mount, "d/turned");
        assert_told(&mount, "big");
    }

    /// A whiteout by attribute is only valid in a directory with a mark that allows it. Otherwise it is a file
    /// (the kernel lists it too, but does not find it).
    fn whiteouts_out_of_place(driver) {
        let mount = Stack::new()
            .lower("dir d\nfile d/empty trusted.overlay.whiteout=y\nfile d/x trusted.overlay.whiteout=y")
            .lower(&format!("{LOWER}\nfile d/empty \"low\""))
            .mount(driver);
        assert_eq!(sys::names(&mount.at("d")), ["empty", "x"]);
        assert_eq!((sys::text(&mount.at("d/empty")), sys::text(&mount.at("d/x"))), (String::new(), String::new()));
        assert_unharmed(&mount);
        // In the upper as well, whether it is listed first or looked up first.
        for list_first in [false, true] {
            let upper = "file d/empty trusted.overlay.whiteout=y\nfile d/x trusted.overlay.whiteout=y";
            let mount = Stack::new().lower(&format!("{LOWER}\nfile d/empty \"low\"")).upper(upper).mount(driver);
            let listed = || sys::names(&mount.at("d"));
            if list_first {
                assert_eq!(listed(), ["empty", "x"]);
            }
            assert_eq!((sys::text(&mount.at("d/empty")), sys::text(&mount.at("d/x"))), (String::new(), String::new()));
            assert_eq!(listed(), ["empty", "x"]);
            assert_eq!(sys::mkdir(&mount.at("d/x"), 0o755), Err(Errno::EXIST));
            sys::append(&mount.at("d/x"), b"more").unwrap();
            sys::unlink(&mount.at("d/empty")).unwrap();
            assert_eq!((listed(), sys::text(&mount.at("d/x"))), (vec!["x".to_owned()], "more".to_owned()));
        }
    }

    /// The work directory is emptied below the mount.
    fn work_directory_vanishes(driver) {
        let mount = Stack::new().lower(LOWER).mount(driver);
        sys::unlink(&mount.at("d/x")).unwrap();
        let work = mount.layers().work.clone().unwrap().join("work");
        for entry in sys::names(&work) {
            sys::unlink(&work.join(entry)).unwrap();
        }
        sys::unlink(&mount.at("f")).unwrap();
        sys::append(&mount.at("ok"), b"").unwrap();
        assert_unharmed(&mount);
    }

    /// `.wh.` names of every type, and without a target.
    fn odd_whiteout_names(driver) {
        let mount = Stack::new().lower("dir .wh.d\nlink .wh.f -> x\nfile .wh.\nfile .wh..\nfifo .wh.ok2").lower(&format!("{LOWER}\nfile ok2")).mount(driver);
        assert!(!sys::exists(&mount.at("d")) && !sys::exists(&mount.at("f")) && !sys::exists(&mount.at("ok2")));
        assert_unharmed(&mount);
    }
}

/// Calls `body` with a tmpfs at `place`, which is made.
fn on_tmpfs(place: &Path, body: impl FnOnce(&Path)) {
    sys::mkdir(place, 0o755).unwrap();
    mount("none", place, "tmpfs", MountFlags::empty(), Some(c"mode=755")).unwrap();
    body(place);
}
