//! `metacopy=on`: a change of attributes copies no content, the first write does. And data-only lower layers.

use std::collections::BTreeMap;

use rustix::fs::{Mode, OFlags};

use crate::common::sys::{self, Mapping};
use crate::common::tree::pattern;
use crate::common::{Driver, Errno, Mount, Stack};
use crate::{on_both, on_stratafs};

/// Bytes of the big file.
const SIZE: usize = 1 << 20;
/// More than any file system allocates for a file without content.
const LITTLE: u64 = 64 << 10;
const MARK: &str = "trusted.overlay.metacopy";

fn stack() -> Stack {
    Stack::new()
        .lower(&format!("file big fill={SIZE} user.k=v\nfile d/big2 fill={SIZE}\nfile empty"))
        .option("metacopy=on")
}

/// The upper's `name` has attributes only.
#[track_caller]
fn assert_meta(mount: &Mount, name: &str) {
    let path = mount.upper(name);
    assert!(sys::getxattr(&path, MARK).is_ok(), "{name} has no mark");
    assert!(sys::allocated(&path) < LITTLE, "{name} has {} bytes", sys::allocated(&path));
}

/// The upper's `name` has its content.
#[track_caller]
fn assert_full(mount: &Mount, name: &str) {
    assert_eq!(sys::getxattr(&mount.upper(name), MARK), Err(Errno::NODATA), "{name} has the mark");
}

#[track_caller]
fn assert_content(mount: &Mount, name: &str, expected: &[u8]) {
    assert!(sys::read(&mount.at(name)).unwrap() == expected, "content of {name}");
    assert_eq!(sys::lstat(&mount.at(name)).unwrap().st_size as usize, expected.len(), "size of {name}");
}

on_both! {
    fn changes_of_attributes_copy_no_content(driver) {
        let changes: BTreeMap<&str, fn(&std::path::Path)> = BTreeMap::from([
            ("chmod", (|path| sys::chmod(path, 0o600).unwrap()) as fn(&std::path::Path)),
            ("chown", |path| sys::chown(path, Some(5), Some(6)).unwrap()),
            ("setxattr", |path| sys::setxattr(path, "user.n", b"n").unwrap()),
            ("removexattr", |path| sys::removexattr(path, "user.k").unwrap()),
            ("utimes", |path| sys::utimens(path, (1, 2), (3, 4)).unwrap()),
        ]);
        for (what, change) in changes {
            let mount = stack().mount(driver);
            let (ino, blocks) = (sys::ino(&mount.at("big")), sys::lstat(&mount.at("big")).unwrap().st_blocks);
            change(&mount.at("big"));
            assert_meta(&mount, "big");
            assert_content(&mount, "big", &pattern(SIZE));
            let described = crate::common::tree::describe(&mount.at("big"), what == "utimes");
            for driver in [driver, Driver::Overlayfs] {
                let mount = stack_again(&mount, driver);
                assert_eq!(crate::common::tree::describe(&mount.at("big"), what == "utimes"), described, "{what}");
                assert!(sys::lstat(&mount.at("big")).unwrap().st_blocks >= blocks, "{what}: shown blocks");
                assert!(!sys::listxattr(&mount.at("big")).unwrap().contains(&MARK.to_owned()));
            }
            assert_eq!(sys::ino(&mount.remount(Driver::Overlayfs).at("big")), ino, "{what}");
        }
    }

    fn an_empty_file(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("empty"), 0o600).unwrap();
        sys::append(&mount.at("empty"), b"x").unwrap();
        assert_full(&mount, "empty");
        assert_eq!(sys::text(&mount.at("empty")), "x");
    }

    fn the_first_write_copies(driver) {
        let mount = stack().mount(driver);
        let early = sys::open(&mount.at("big"), OFlags::RDONLY, 0).unwrap();
        sys::chmod(&mount.at("big"), 0o640).unwrap();
        let late = sys::open(&mount.at("big"), OFlags::RDONLY, 0).unwrap();
        let mapping = Mapping::new(&late, SIZE, false);
        let mut expected = pattern(SIZE);
        assert!(mapping.bytes(0..SIZE) == expected);
        assert_meta(&mount, "big");
        let before = sys::mtime(&mount.at("big"));
        let writer = sys::open(&mount.at("big"), OFlags::RDWR, 0).unwrap();
        assert_full(&mount, "big");
        if driver == Driver::Stratafs {
            assert_eq!(sys::mtime(&mount.at("big")), before, "opening is no change; the kernel makes it one");
        }
        sys::pwrite(&writer, b"written", 5000).unwrap();
        expected[5000..5007].copy_from_slice(b"written");
        for (what, file) in [("early", &early), ("late", &late), ("writer", &writer)] {
            assert!(sys::read_file(file).unwrap() == expected, "{what}");
        }
        assert_eq!(sys::mode(&mount.at("big")), 0o640);
        let fresh = sys::open(&mount.at("big"), OFlags::RDONLY, 0).unwrap();
        assert!(Mapping::new(&fresh, SIZE, false).bytes(0..SIZE) == expected);
        drop((early, late, writer, fresh, mapping));
        let mount = mount.remount(Driver::Overlayfs);
        assert_content(&mount, "big", &expected);
    }

    fn truncation(driver) {
        for (size, what) in [(10_usize, "shorter"), (0, "empty"), (SIZE + 10, "longer"), (SIZE, "as it is")] {
            let mount = stack().mount(driver);
            sys::chmod(&mount.at("big"), 0o600).unwrap();
            sys::truncate(&mount.at("big"), size as u64).unwrap();
            assert_full(&mount, "big");
            let mut expected = pattern(SIZE);
            expected.resize(size, 0);
            assert_content(&mount, "big", &expected);
            let mount = mount.remount(Driver::Overlayfs);
            assert!(sys::read(&mount.at("big")).unwrap() == expected, "{what}");
        }
    }

    fn opening_with_truncation(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        sys::overwrite(&mount.at("big"), b"new").unwrap();
        assert_full(&mount, "big");
        assert!(sys::allocated(&mount.upper("big")) < LITTLE);
        assert_eq!(sys::text(&mount.at("big")), "new");
        assert_eq!(sys::text(&mount.remount(Driver::Overlayfs).at("big")), "new");
    }

    fn renaming(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        sys::chmod(&mount.at("d/big2"), 0o600).unwrap();
        sys::rename(&mount.at("big"), &mount.at("d/moved")).unwrap();
        sys::rename(&mount.at("d"), &mount.at("e")).unwrap();
        for driver in [driver, Driver::Overlayfs] {
            let mount = stack_again(&mount, driver);
            assert_content(&mount, "e/moved", &pattern(SIZE));
            assert_content(&mount, "e/big2", &pattern(SIZE));
            mount.assert_tree(&format!("file e/moved fill={SIZE} mode=600 user.k=v\nfile e/big2 fill={SIZE} mode=600\nfile empty"));
        }
    }

    fn linking(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("big"));
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        sys::link(&mount.at("big"), &mount.at("d/link")).unwrap();
        for name in ["big", "d/link"] {
            assert_content(&mount, name, &pattern(SIZE));
            assert_eq!((sys::ino(&mount.at(name)), sys::nlink(&mount.at(name))), (ino, 2));
        }
        let mount = mount.remount(Driver::Overlayfs).remount(driver);
        sys::write_at(&mount.at("d/link"), 0, b"linked").unwrap();
        let mut expected = pattern(SIZE);
        expected[..6].copy_from_slice(b"linked");
        assert_content(&mount, "big", &expected);
        assert_content(&mount, "d/link", &expected);
    }

    fn unlinking_while_open(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        let reader = sys::open(&mount.at("big"), OFlags::RDONLY, 0).unwrap();
        sys::unlink(&mount.at("big")).unwrap();
        assert!(sys::read_file(&reader).unwrap() == pattern(SIZE));
        rustix::fs::fchmod(&reader, Mode::from_raw_mode(0o644)).unwrap();
        assert!(sys::read_file(&reader).unwrap() == pattern(SIZE));
        assert_eq!(rustix::fs::fstat(&reader).unwrap().st_nlink, 0);
        drop(reader);
        mount.assert_upper("whiteout big");
    }

    fn replacing(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        let reader = sys::open(&mount.at("big"), OFlags::RDONLY, 0).unwrap();
        sys::create(&mount.at("new"), b"new").unwrap();
        sys::rename(&mount.at("new"), &mount.at("big")).unwrap();
        assert!(sys::read_file(&reader).unwrap() == pattern(SIZE));
        assert_eq!(sys::text(&mount.at("big")), "new");
    }

    fn sparse_files_stay_sparse(driver) {
        let mount = Stack::new().lower("file s size=67108864").option("metacopy=on").mount(driver);
        sys::chmod(&mount.at("s"), 0o600).unwrap();
        assert_meta(&mount, "s");
        sys::write_at(&mount.at("s"), 33_000_000, b"x").unwrap();
        assert_full(&mount, "s");
        assert!(sys::allocated(&mount.upper("s")) < LITTLE, "{}", sys::allocated(&mount.upper("s")));
        assert_eq!(sys::lstat(&mount.at("s")).unwrap().st_size, 67_108_864);
    }

    fn capabilities(driver) {
        let capability = "security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00";
        let mount = Stack::new().lower(&format!("file c fill={SIZE} mode=755 {capability}")).option("metacopy=on").mount(driver);
        let has = |mount: &Mount| sys::getxattr(&mount.at("c"), "security.capability").is_ok();
        sys::chmod(&mount.at("c"), 0o700).unwrap();
        assert_meta(&mount, "c");
        assert!(has(&mount), "kept by the copy of attributes");
        drop(sys::open(&mount.at("c"), OFlags::WRONLY, 0).unwrap());
        assert_full(&mount, "c");
        assert!(has(&mount), "kept by the copy of content");
        assert!(sys::getxattr(&mount.upper("c"), "security.capability").is_ok());
        sys::append(&mount.at("c"), b"x").unwrap();
        assert!(!has(&mount), "dropped by a write");
    }

    /// Set-id bits survive the copy of content if the opener writes nothing.
    fn set_id_bits(driver) {
        let mount = Stack::new().lower(&format!("file c fill={SIZE} mode=6755")).option("metacopy=on").mount(driver);
        sys::chown(&mount.at("c"), Some(0), Some(0)).unwrap();
        sys::chmod(&mount.at("c"), 0o6711).unwrap();
        drop(sys::open(&mount.at("c"), OFlags::WRONLY, 0).unwrap());
        assert_eq!(sys::mode(&mount.at("c")), 0o6711);
    }

    /// Without the option, such a file cannot be looked up, and nothing else is affected.
    fn refused_without_the_option(driver) {
        let mount = stack().mount(Driver::Overlayfs);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        let mut layers = mount.unmount();
        layers.options = vec!["metacopy=off".to_owned()];
        let mount = layers.mount(driver);
        assert_eq!(sys::lstat(&mount.at("big")).err(), Some(Errno::PERM));
        assert_eq!(sys::read(&mount.at("big")).err(), Some(Errno::PERM));
        match driver {
            // The kernel omits from a listing what it cannot look up, or does not list at all.
            Driver::Overlayfs => match sys::readdir(mount.root()) {
                Ok(list) => {
                    let mut names: Vec<_> = list.into_iter().map(|listed| listed.name).collect();
                    names.sort();
                    assert_eq!(names, ["d", "empty"]);
                }
                Err(errno) => assert_eq!(errno, Errno::PERM),
            },
            Driver::Stratafs => assert_eq!(sys::names(mount.root()), ["big", "d", "empty"]),
        }
        assert_content(&mount, "d/big2", &pattern(SIZE));
    }

    /// A metacopy file in a middle layer, also one that was moved.
    fn in_a_lower_layer(driver) {
        let mount = stack().mount(Driver::Overlayfs);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        sys::chmod(&mount.at("d/big2"), 0o604).unwrap();
        sys::rename(&mount.at("d/big2"), &mount.at("moved")).unwrap();
        assert_meta(&mount, "moved");
        let mount = mount.unmount().restack().mount(driver);
        for (name, mode) in [("big", 0o600), ("moved", 0o604)] {
            assert_content(&mount, name, &pattern(SIZE));
            assert_eq!(sys::mode(&mount.at(name)), mode);
            // Once more, onto the metacopy file below.
            sys::chmod(&mount.at(name), 0o611).unwrap();
            assert_meta(&mount, name);
            assert_content(&mount, name, &pattern(SIZE));
        }
        let mount = mount.remount(Driver::Overlayfs);
        for name in ["big", "moved"] {
            assert_content(&mount, name, &pattern(SIZE));
        }
        let mount = mount.remount(driver);
        let mut expected = pattern(SIZE);
        expected[100] = b'!';
        for name in ["big", "moved"] {
            sys::write_at(&mount.at(name), 100, b"!").unwrap();
            assert_full(&mount, name);
            assert_content(&mount, name, &expected);
        }
    }

    /// With an index the names of a lower hard link share the attributes, and then the content.
    fn with_an_index(driver) {
        let mount = Stack::new().lower(&format!("file a fill={SIZE}\nhard b a\nhard d/c a")).option("metacopy=on").option("index=on").mount(driver);
        sys::chmod(&mount.at("a"), 0o600).unwrap();
        assert_meta(&mount, "a");
        for name in ["a", "b", "d/c"] {
            assert_content(&mount, name, &pattern(SIZE));
            assert_eq!((sys::mode(&mount.at(name)), sys::nlink(&mount.at(name))), (0o600, 3), "{name}");
        }
        let mount = mount.remount(Driver::Overlayfs).remount(driver);
        // The first name that is looked up is one that only the lower layer has.
        for name in ["d/c", "b", "a"] {
            assert_content(&mount, name, &pattern(SIZE));
        }
        sys::unlink(&mount.at("a")).unwrap();
        for name in ["b", "d/c"] {
            assert_content(&mount, name, &pattern(SIZE));
        }
        sys::write_at(&mount.at("b"), 0, b"B").unwrap();
        let mut expected = pattern(SIZE);
        expected[0] = b'B';
        assert_content(&mount, "d/c", &expected);
        let mount = mount.remount(Driver::Overlayfs).remount(driver);
        assert_content(&mount, "d/c", &expected);
        assert_eq!((sys::mode(&mount.at("b")), sys::nlink(&mount.at("d/c"))), (0o600, 2));
    }

    /// Without one they break, as they do for content.
    fn lower_hard_links_break(driver) {
        let mount = Stack::new().lower(&format!("file a fill={SIZE}\nhard b a")).option("metacopy=on").mount(driver);
        sys::chmod(&mount.at("a"), 0o600).unwrap();
        assert_eq!((sys::mode(&mount.at("a")), sys::mode(&mount.at("b"))), (0o600, 0o644));
        assert_content(&mount, "a", &pattern(SIZE));
        sys::write_at(&mount.at("a"), 0, b"A").unwrap();
        assert_content(&mount, "b", &pattern(SIZE));
    }

    fn from_many_threads(driver) {
        let mount = stack().mount(driver);
        let path = mount.at("big");
        std::thread::scope(|scope| {
            for number in 0_u8..8 {
                let path = &path;
                scope.spawn(move || {
                    sys::chmod(path, 0o600).unwrap();
                    sys::write_at(path, u64::from(number) * 1000, &[number; 10]).unwrap();
                    assert_eq!(sys::read(path).unwrap().len(), SIZE);
                });
            }
        });
        let mut expected = pattern(SIZE);
        for number in 0_u8..8 {
            let start = usize::from(number) * 1000;
            expected[start..start + 10].fill(number);
        }
        assert_content(&mount, "big", &expected);
    }

    /// The data of a lower metacopy file is found by its redirect in layers that show nothing themselves.
    fn data_only_layers(driver) {
        let mark = format!("{MARK}= trusted.overlay.redirect=");
        let mount = Stack::new()
            .lower(&format!("file f size=5 mode=640 {mark}/objects/1\nfile d/g size=6 {mark}/objects/2\nfile plain \"p\"\nfile gone size=1 {mark}/objects/none"))
            .data_only("file objects/1 \"first\"")
            .data_only("file objects/2 \"second\"\nfile objects/1 \"hidden\"\nfile other \"o\"")
            .option("metacopy=on")
            .mount(driver);
        assert_eq!(sys::names(mount.root()), ["d", "f", "gone", "plain"]);
        assert!(!sys::exists(&mount.at("objects")) && !sys::exists(&mount.at("other")));
        assert_eq!((sys::text(&mount.at("f")), sys::text(&mount.at("d/g"))), ("first".to_owned(), "second".to_owned()));
        assert_eq!(sys::mode(&mount.at("f")), 0o640);
        // Missing content: the attributes are there, the content is not.
        assert_eq!(sys::lstat(&mount.at("gone")).unwrap().st_size, 1);
        let missing = if driver == Driver::Overlayfs { Errno::NOENT } else { Errno::IO };
        assert_eq!(sys::read(&mount.at("gone")), Err(missing));
        assert_eq!(sys::append(&mount.at("gone"), b"x"), Err(missing));
        sys::chmod(&mount.at("d/g"), 0o600).unwrap();
        assert_meta(&mount, "d/g");
        assert_eq!(sys::text(&mount.at("d/g")), "second");
        sys::append(&mount.at("f"), b"+").unwrap();
        sys::append(&mount.at("d/g"), b"+").unwrap();
        for driver in [driver, Driver::Overlayfs] {
            let mount = stack_again(&mount, driver);
            assert_eq!((sys::text(&mount.at("f")), sys::text(&mount.at("d/g"))), ("first+".to_owned(), "second+".to_owned()));
        }
    }

    /// An upper file whose content is missing.
    fn missing_content(driver) {
        let mount = Stack::new().lower("file ok \"ok\"\ndir dir").upper(&format!("file gone size=7 {MARK}=\nfile dir2/f size=1 {MARK}= trusted.overlay.redirect=/none\ndir . trusted.overlay.impure=y\ndir dir2 trusted.overlay.impure=y")).option("metacopy=on").mount(driver);
        for name in ["gone", "dir2/f"] {
            assert_eq!(sys::lstat(&mount.at(name)).err(), Some(Errno::IO), "{name}");
        }
        assert_eq!(sys::text(&mount.at("ok")), "ok");
        if driver == Driver::Stratafs {
            assert_eq!(sys::names(mount.root()), ["dir", "dir2", "gone", "ok"]);
            assert!(mount.log().contains("upper/gone\"") && mount.log().contains("dir2/f\""), "{}", mount.log());
        }
    }
}

on_stratafs! {
    /// A file that the kernel moved while it was a metacopy: an absolute redirect, or a relative one.
    fn moved_by_the_kernel(driver) {
        let mount = stack().mount(Driver::Overlayfs);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        sys::chmod(&mount.at("d/big2"), 0o601).unwrap();
        sys::rename(&mount.at("big"), &mount.at("d/far")).unwrap();
        sys::rename(&mount.at("d/big2"), &mount.at("d/near")).unwrap();
        sys::link(&mount.at("d/near"), &mount.at("link")).unwrap();
        let redirect = |name: &str| sys::getxattr(&mount.upper(name), "trusted.overlay.redirect").unwrap();
        assert_eq!(redirect("d/far"), b"/big");
        for name in ["d/far", "d/near"] {
            assert_meta(&mount, name);
        }
        let inos = ["d/far", "d/near", "link"].map(|name| sys::ino(&mount.at(name)));
        let mount = mount.remount(driver);
        assert_eq!(["d/far", "d/near", "link"].map(|name| sys::ino(&mount.at(name))), inos);
        for name in ["d/far", "d/near", "link"] {
            assert_content(&mount, name, &pattern(SIZE));
            assert_meta(&mount, name);
        }
        sys::write_at(&mount.at("d/far"), 0, b"F").unwrap();
        sys::rename(&mount.at("link"), &mount.at("link2")).unwrap();
        let mut expected = pattern(SIZE);
        let mount = mount.remount(Driver::Overlayfs);
        assert_content(&mount, "link2", &expected);
        assert_content(&mount, "d/near", &expected);
        expected[0] = b'F';
        assert_content(&mount, "d/far", &expected);
    }

    fn missing_data_is_logged(driver) {
        let mount = Stack::new()
            .lower(&format!("file gone size=1 {MARK}= trusted.overlay.redirect=/objects/none"))
            .data_only("file objects/1")
            .option("metacopy=on")
            .mount(driver);
        assert_eq!(sys::read(&mount.at("gone")), Err(Errno::IO));
        assert!(mount.log().contains("objects/none"), "{}", mount.log());
    }

    /// A crash between the copy of the content and the removal of the mark leaves the lower content in force.
    fn crash_before_the_mark_goes(driver) {
        let mount = stack().mount(driver);
        sys::chmod(&mount.at("big"), 0o600).unwrap();
        let layers = mount.unmount();
        sys::write_at(&layers.upper.as_ref().unwrap().join("big"), 0, b"half").unwrap();
        let mount = layers.mount(driver);
        assert_content(&mount, "big", &pattern(SIZE));
        sys::write_at(&mount.at("big"), 9, b"!").unwrap();
        let mut expected = pattern(SIZE);
        expected[9] = b'!';
        assert_content(&mount, "big", &expected);
    }
}

/// The layers of `mount` as `driver` shows them read-only, beside it.
fn stack_again(mount: &Mount, driver: Driver) -> Mount {
    let other = Stack::new().read_only().build();
    let layers = mount.layers();
    let lowers = std::iter::once(layers.upper.clone().unwrap()).chain(layers.lowers.iter().cloned()).collect();
    let options = layers.options.clone();
    crate::common::stack::Layers { lowers, data_only: layers.data_only.clone(), options, originals: vec![], ..other }
        .mount(driver)
}
