//! `index=on`: the names of a lower hard link stay one file over copy-up, unlink, rename and remount.

use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::common::sys::{self, RenameFlags};
use crate::common::{Driver, Errno, Mount, Stack};
use crate::{on_both, on_stratafs};

/// Three names of one file, two of another, and one with a single name.
const LOWER: &str = "file a \"x\" mode=644 user.k=v\nhard b a\nhard d/c a\nfile p \"p\"\nhard e/q p\nfile single \"s\"";

fn stack() -> Stack {
    Stack::new().lower(LOWER).option("index=on")
}

fn index(mount: &Mount) -> PathBuf {
    mount.layers().work.as_ref().unwrap().join("index")
}

/// The index's entries. The kernel also stages there (`#…`).
fn entries(mount: &Mount) -> Vec<String> {
    sys::names(&index(mount)).into_iter().filter(|name| !name.starts_with('#')).collect()
}

/// `st_ino`, `st_nlink` and content of each name.
fn facts(mount: &Mount, names: &[&str]) -> Vec<(u64, u64, String)> {
    let fact = |name: &&str| {
        let path = mount.at(name);
        (sys::ino(&path), sys::nlink(&path), sys::text(&path))
    };
    names.iter().map(fact).collect()
}

fn at_round(path: &std::path::Path, round: u64) -> PathBuf {
    path.with_file_name(format!("round{round}"))
}

/// `d_ino` of every name equals its `st_ino`.
#[track_caller]
fn assert_listed(mount: &Mount) {
    for directory in ["", "d", "e"] {
        for entry in sys::readdir(&mount.at(directory)).unwrap() {
            let path = mount.at(directory).join(&entry.name);
            assert_eq!(entry.ino, sys::ino(&path), "d_ino of {}", path.display());
        }
    }
}

/// The driver for the mount in between: always the kernel, so that runs on it do not need stratafs.
const OTHER: Driver = Driver::Overlayfs;

on_both! {
    fn names_stay_one_file(driver) {
        let mount = stack().mount(driver);
        let names = ["a", "b", "d/c"];
        let before = facts(&mount, &names);
        assert!(before.iter().all(|fact| *fact == (before[0].0, 3, "x".to_owned())), "{before:?}");
        sys::chmod(&mount.at("b"), 0o600).unwrap();
        assert_eq!(facts(&mount, &names), before);
        assert_eq!(names.map(|name| sys::mode(&mount.at(name))), [0o600; 3]);
        sys::append(&mount.at("d/c"), b"+").unwrap();
        sys::setxattr(&mount.at("a"), "user.k", b"w").unwrap();
        let after: Vec<_> = before.iter().map(|(ino, nlink, _)| (*ino, *nlink, "x+".to_owned())).collect();
        assert_eq!(facts(&mount, &names), after);
        assert_eq!(names.map(|name| sys::getxattr(&mount.at(name), "user.k").unwrap()), [b"w"; 3]);
        assert_listed(&mount);
        let mut mount = mount.remount(driver);
        for driver in [driver, OTHER, driver] {
            assert_eq!(facts(&mount, &names), after, "{driver:?}");
            assert_listed(&mount);
            mount.assert_tree("file a \"x+\" mode=600 user.k=w\nhard b a\nhard d/c a\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
            assert_eq!(entries(&mount).len(), 1);
            mount = mount.remount(driver);
        }
    }

    /// Only the name that was used gets into the upper.
    fn only_used_names_are_in_the_upper(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        assert_eq!(sys::names(&mount.upper("")), ["a"]);
        assert_eq!(sys::text(&mount.at("d/c")), "x+");
        sys::chmod(&mount.at("d/c"), 0o600).unwrap();
        sys::append(&mount.at("single"), b"+").unwrap();
        assert_eq!(entries(&mount).len(), 1);
        assert_eq!(sys::nlink(&mount.at("single")), 1);
    }

    fn unlinking_one_name(driver) {
        for copied_up in [false, true] {
            let mount = stack().mount(driver);
            let ino = sys::ino(&mount.at("a"));
            if copied_up {
                sys::append(&mount.at("a"), b"").unwrap();
            }
            sys::unlink(&mount.at("a")).unwrap();
            let left = vec![(ino, 2, "x".to_owned()); 2];
            assert_eq!(facts(&mount, &["b", "d/c"]), left);
            let mount = mount.remount(OTHER).remount(driver);
            assert_eq!(facts(&mount, &["b", "d/c"]), left);
            sys::unlink(&mount.at("d/c")).unwrap();
            assert_eq!(facts(&mount, &["b"]), [(ino, 1, "x".to_owned())]);
            mount.assert_tree_everywhere("file b \"x\" user.k=v\ndir d\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
        }
    }

    /// Unlinking the last name removes the index entry.
    fn unlinking_all_names(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("b"), b"+").unwrap();
        for name in ["a", "b", "d/c", "p", "e/q"] {
            sys::unlink(&mount.at(name)).unwrap();
        }
        assert_eq!(entries(&mount), Vec::<String>::new());
        mount.assert_upper("whiteout a\nwhiteout b\nwhiteout d/c\nwhiteout p\nwhiteout e/q");
        sys::create(&mount.at("a"), b"new").unwrap();
        assert_eq!(sys::nlink(&mount.at("a")), 1);
        mount.assert_tree_everywhere("file a \"new\"\ndir d\ndir e\nfile single \"s\"");
    }

    /// The name that the file is known by first may be in a directory that is not in the upper.
    fn further_name_after_the_first_moved(driver) {
        let mount = stack().mount(driver);
        for name in ["a", "d/c"] {
            sys::lstat(&mount.at(name)).unwrap();
        }
        sys::rename(&mount.at("a"), &mount.at("moved")).unwrap();
        sys::link(&mount.at("d/c"), &mount.at("n")).unwrap();
        assert_eq!(facts(&mount, &["b", "d/c", "moved", "n"]), vec![(sys::ino(&mount.at("n")), 4, "x".to_owned()); 4]);
        let mount = mount.remount(OTHER);
        assert_eq!(facts(&mount, &["b", "d/c", "moved", "n"]), vec![(sys::ino(&mount.at("n")), 4, "x".to_owned()); 4]);
    }

    fn further_names(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("a"));
        sys::link(&mount.at("a"), &mount.at("n1")).unwrap();
        sys::link(&mount.at("d/c"), &mount.at("d/n2")).unwrap();
        sys::append(&mount.at("n1"), b"+").unwrap();
        let all = ["a", "b", "d/c", "n1", "d/n2"];
        let expected = vec![(ino, 5, "x+".to_owned()); 5];
        assert_eq!(facts(&mount, &all), expected);
        assert_listed(&mount);
        let mount = mount.remount(OTHER);
        assert_eq!(facts(&mount, &all), expected);
        let mount = mount.remount(driver);
        sys::unlink(&mount.at("n1")).unwrap();
        sys::unlink(&mount.at("b")).unwrap();
        assert_eq!(facts(&mount, &["a", "d/c", "d/n2"]), vec![(ino, 3, "x+".to_owned()); 3]);
        for name in ["a", "d/c", "d/n2"] {
            sys::unlink(&mount.at(name)).unwrap();
        }
        assert_eq!(entries(&mount), Vec::<String>::new());
        mount.assert_tree_everywhere("dir d\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
    }

    /// A further name of a lower file with one name needs no index.
    fn further_name_of_a_single(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("single"));
        sys::link(&mount.at("single"), &mount.at("d/s2")).unwrap();
        assert_eq!(facts(&mount, &["single", "d/s2"]), vec![(ino, 2, "s".to_owned()); 2]);
        let mount = mount.remount(OTHER).remount(driver);
        assert_eq!(facts(&mount, &["single", "d/s2"]), vec![(ino, 2, "s".to_owned()); 2]);
    }

    fn renaming_a_name(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("a"));
        sys::rename(&mount.at("a"), &mount.at("d/moved")).unwrap();
        assert_eq!(facts(&mount, &["d/moved", "b", "d/c"]), vec![(ino, 3, "x".to_owned()); 3]);
        sys::append(&mount.at("b"), b"+").unwrap();
        sys::rename(&mount.at("b"), &mount.at("b2")).unwrap();
        let expected = vec![(ino, 3, "x+".to_owned()); 3];
        assert_eq!(facts(&mount, &["d/moved", "b2", "d/c"]), expected);
        assert_listed(&mount);
        let mount = mount.remount(OTHER).remount(driver);
        assert_eq!(facts(&mount, &["d/moved", "b2", "d/c"]), expected);
        mount.assert_tree_everywhere("file d/moved \"x+\" user.k=v\nhard b2 d/moved\nhard d/c b2\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
    }

    /// A file that is renamed over loses that name and keeps the others.
    fn renaming_over_a_name(driver) {
        for copied_up in [false, true] {
            let mount = stack().mount(driver);
            let ino = sys::ino(&mount.at("b"));
            if copied_up {
                sys::append(&mount.at("a"), b"").unwrap();
            }
            sys::rename(&mount.at("single"), &mount.at("a")).unwrap();
            assert_eq!(facts(&mount, &["b", "d/c"]), vec![(ino, 2, "x".to_owned()); 2]);
            sys::rename(&mount.at("p"), &mount.at("b")).unwrap();
            assert_eq!(facts(&mount, &["d/c"]), [(ino, 1, "x".to_owned())]);
            assert_eq!(sys::nlink(&mount.at("e/q")), 2);
            sys::append(&mount.at("b"), b"+").unwrap();
            assert_eq!(sys::text(&mount.at("e/q")), "p+");
            let mount = mount.remount(OTHER).remount(driver);
            assert_eq!(facts(&mount, &["d/c"]), [(ino, 1, "x".to_owned())]);
            mount.assert_tree_everywhere("file a \"s\"\nfile b \"p+\"\nhard e/q b\nfile d/c \"x\" user.k=v");
        }
    }

    /// One name over another of the same file: nothing happens.
    fn renaming_over_itself(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("a"));
        sys::append(&mount.at("a"), b"").unwrap();
        sys::rename(&mount.at("a"), &mount.at("d/c")).unwrap();
        assert_eq!(facts(&mount, &["a", "b", "d/c"]), vec![(ino, 3, "x".to_owned()); 3]);
    }

    fn exchanging_names(driver) {
        let mount = stack().mount(driver);
        let (x, p) = (sys::ino(&mount.at("a")), sys::ino(&mount.at("p")));
        sys::rename_with(&mount.at("a"), &mount.at("e/q"), RenameFlags::EXCHANGE).unwrap();
        let expected = [(p, 2, "p".to_owned()), (p, 2, "p".to_owned()), (x, 3, "x".to_owned()), (x, 3, "x".to_owned())];
        assert_eq!(facts(&mount, &["a", "p", "e/q", "b"]), expected);
        let mount = mount.remount(OTHER).remount(driver);
        assert_eq!(facts(&mount, &["a", "p", "e/q", "b"]), expected);
    }

    /// An early reader sees what is written through another name; the last name's unlink leaves the open file.
    fn open_files(driver) {
        let mount = stack().mount(driver);
        let early = sys::open(&mount.at("a"), OFlags::RDONLY, 0).unwrap();
        let writer = sys::open(&mount.at("d/c"), OFlags::RDWR, 0).unwrap();
        sys::pwrite(&writer, b"wrote", 0).unwrap();
        assert_eq!(sys::read_file(&early).unwrap(), b"wrote");
        assert_eq!(rustix::fs::fstat(&early).unwrap().st_nlink, 3);
        for name in ["a", "b", "d/c"] {
            sys::unlink(&mount.at(name)).unwrap();
        }
        assert_eq!(rustix::fs::fstat(&writer).unwrap().st_nlink, 0);
        sys::pwrite(&writer, b"still", 0).unwrap();
        assert_eq!(sys::read_file(&early).unwrap(), b"still");
        rustix::fs::fchmod(&writer, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        drop((early, writer));
        mount.assert_tree_everywhere("dir d\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
    }

    fn every_kind(driver) {
        let mount = Stack::new().lower("link l -> t\nhard l2 l\nfifo f\nhard f2 f\nchar c 1:3\nhard c2 c").option("index=on").mount(driver);
        let inos = ["l", "f", "c"].map(|name| sys::ino(&mount.at(name)));
        for name in ["l", "f", "c"] {
            sys::chown(&mount.at(name), Some(7), None).unwrap();
        }
        for (name, ino) in ["l", "f", "c"].into_iter().zip(inos) {
            for name in [name.to_owned(), format!("{name}2")] {
                let stat = sys::lstat(&mount.at(&name)).unwrap();
                assert_eq!((stat.st_uid, stat.st_nlink, stat.st_ino), (7, 2, ino), "{name}");
            }
        }
        mount.assert_tree_everywhere("link l -> t uid=7\nlink l2 -> t uid=7\nfifo f uid=7\nfifo f2 uid=7\nchar c 1:3 uid=7\nchar c2 1:3 uid=7");
    }

    /// Removal and creation of the directories around the names.
    fn directories_around(driver) {
        let mount = stack().mount(driver);
        let ino = sys::ino(&mount.at("a"));
        sys::rename(&mount.at("d"), &mount.at("d2")).unwrap();
        sys::append(&mount.at("d2/c"), b"+").unwrap();
        assert_eq!(facts(&mount, &["a", "b", "d2/c"]), vec![(ino, 3, "x+".to_owned()); 3]);
        std::fs::remove_dir_all(mount.at("d2")).unwrap();
        assert_eq!(facts(&mount, &["a", "b"]), vec![(ino, 2, "x+".to_owned()); 2]);
        mount.assert_tree_everywhere("file a \"x+\" user.k=v\nhard b a\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
    }

    /// Truncation and mapping through different names.
    fn truncation(driver) {
        let mount = stack().mount(driver);
        sys::truncate(&mount.at("a"), 3).unwrap();
        assert_eq!(sys::read(&mount.at("b")).unwrap(), b"x\0\0");
        sys::overwrite(&mount.at("b"), b"new").unwrap();
        assert_eq!(sys::text(&mount.at("d/c")), "new");
        assert_eq!(sys::nlink(&mount.at("a")), 3);
    }

    /// An upper that belongs to another lower layer is refused.
    fn another_lower_is_refused(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        let mut layers = mount.unmount();
        let copy = layers.directory.path().join("copy");
        sys::mkdir(&copy, 0o755).unwrap();
        crate::common::tree::build(&copy, LOWER);
        layers.lowers[0] = copy;
        layers.originals.clear();
        let Err((message, _)) = layers.try_mount(driver) else { panic!("mounted") };
        assert!(message.contains("index=off") || driver == Driver::Overlayfs, "{message}");
    }

    /// So is an index that belongs to another upper.
    fn another_uppers_index_is_refused(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        let layers = mount.unmount();
        let upper = layers.upper.clone().unwrap();
        std::fs::remove_dir_all(&upper).unwrap();
        sys::mkdir(&upper, 0o755).unwrap();
        let Err((message, _)) = layers.try_mount(driver) else { panic!("mounted") };
        assert!(message.contains("index") || driver == Driver::Overlayfs, "{message}");
    }

    /// Leftovers and entries without names are removed at the mount; anything else in the index prevents it.
    fn index_is_cleaned(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        sys::append(&mount.at("p"), b"+").unwrap();
        let index = index(&mount);
        let layers = mount.unmount();
        assert_eq!(sys::names(&index).len(), 2);
        sys::mkdir(&index.join("#9f"), 0o700).unwrap();
        sys::create(&index.join("#1"), b"").unwrap();
        // Without its only upper name, but two in the lower: not an orphan.
        sys::unlink(&layers.upper.as_ref().unwrap().join("p")).unwrap();
        let mount = layers.mount(driver);
        assert_eq!(entries(&mount).len(), 2);
        assert!(!sys::exists(&index.join("#9f")) && !sys::exists(&index.join("#1")));
        assert_eq!(facts(&mount, &["p", "e/q"]).iter().map(|fact| fact.2.as_str()).collect::<Vec<_>>(), ["p+", "p+"]);
        let mut layers = mount.unmount();
        // Damaged entries: the message names the fault, and the kernel refuses them too.
        for name in ["garbage", "00fb1d", "00fb1d00010102030405060708090a0b0c0d0e0f1000000000"] {
            sys::create(&index.join(name), b"").unwrap();
            let Err((message, unmounted)) = layers.try_mount(driver) else { panic!("mounted with {name}") };
            layers = unmounted;
            assert!(message.contains(name) || driver == Driver::Overlayfs, "{message}");
            sys::unlink(&index.join(name)).unwrap();
        }
        assert_eq!(facts(&layers.mount(driver), &["p"])[0].2, "p+");
    }

    /// A crash between the removal of the last name and that of its index entry.
    fn orphans_are_removed(driver) {
        let mount = stack().mount(driver);
        for name in ["p", "e/q"] {
            sys::append(&mount.at(name), b"+").unwrap();
        }
        let index = index(&mount);
        let layers = mount.unmount();
        let names = sys::names(&index);
        assert_eq!(names.len(), 1);
        // Both upper names become whiteouts; the mark is relative to the upper's count.
        sys::setxattr(&index.join(&names[0]), "trusted.overlay.nlink", b"U-1").unwrap();
        for name in ["p", "e/q"] {
            let path = layers.upper.as_ref().unwrap().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // The driver is not told through which name a known file is opened, so this name may be missing.
            assert!(matches!(sys::unlink(&path), Ok(()) | Err(Errno::NOENT)));
            sys::mknod(&path, libc::S_IFCHR, (0, 0)).unwrap();
        }
        let mount = layers.mount(driver);
        assert_eq!(entries(&mount), Vec::<String>::new());
        mount.assert_tree("file a \"x\" user.k=v\nhard b a\nhard d/c a\ndir e\nfile single \"s\"");
    }

    /// An entry with the content of another file than its name says is removed at the mount.
    fn stale_entries_are_removed(driver) {
        let mount = stack().mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        sys::append(&mount.at("p"), b"+").unwrap();
        let index = index(&mount);
        let layers = mount.unmount();
        let names = sys::names(&index);
        // Both entries change places: neither is what its name says.
        sys::rename_with(&index.join(&names[0]), &index.join(&names[1]), RenameFlags::EXCHANGE).unwrap();
        let mount = layers.mount(driver);
        assert_eq!(entries(&mount), Vec::<String>::new());
        let told = |name: &String| mount.log().contains(&format!("WARN stratafs::union::layer::index_dir: index entry \"{name}\""));
        assert!(driver == Driver::Overlayfs || names.iter().all(told), "{}", mount.log());
        assert_eq!((sys::text(&mount.at("a")), sys::text(&mount.at("p"))), ("x+".to_owned(), "p+".to_owned()));
    }

    /// Names come and go in several directories at once, on a mount that has not seen them before.
    fn from_many_threads(driver) {
        let lower: String = (1..8).map(|number| format!("hard d{number}/a d0/a\n")).collect();
        let mut mount = Stack::new().lower(&format!("file d0/a \"x\"\n{lower}")).option("index=on").mount(driver);
        for round in 0..6 {
            std::thread::scope(|scope| {
                for number in 0..8 {
                    let at = |name: &str| mount.at(&format!("d{number}/{name}"));
                    let (own, new, moved) = (at("a"), at("new"), at("moved"));
                    scope.spawn(move || {
                        for turn in 0..30_u32 {
                            sys::chmod(&own, 0o600 | (turn & 0o77)).unwrap();
                            sys::link(&own, &new).unwrap();
                            sys::rename(&new, &moved).unwrap();
                            sys::append(&moved, b"+").unwrap();
                            sys::create(&new, b"").unwrap();
                            match turn % 3 {
                                0 => sys::rename(&new, &moved).unwrap(),
                                _ => sys::unlink(&new).unwrap(),
                            }
                            sys::unlink(&moved).unwrap();
                        }
                        if number % 2 == round % 2 {
                            sys::link(&own, &at_round(&own, round)).unwrap();
                        }
                    });
                }
            });
            let expected = 8 + 4 * (round + 1);
            for next in [Some(OTHER), Some(driver), None] {
                for number in 0..8 {
                    let path = mount.at(&format!("d{number}/a"));
                    assert_eq!((sys::nlink(&path), sys::ino(&path)), (expected, sys::ino(&mount.at("d0/a"))), "round {round}, {next:?}");
                }
                let Some(next) = next else { break };
                mount = mount.remount(next);
            }
        }
        assert_eq!(sys::lstat(&mount.at("d0/a")).unwrap().st_size, 1 + 6 * 8 * 30);
    }

    /// Files made without an index stay separate when one is switched on.
    fn switched_on_later(driver) {
        let mount = Stack::new().lower(LOWER).mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        let mut layers = mount.unmount();
        layers.options.push("index=on".to_owned());
        let mount = layers.mount(driver);
        assert_eq!(["a", "b", "d/c"].map(|name| sys::text(&mount.at(name))), ["x+", "x", "x"]);
        sys::append(&mount.at("b"), b"!").unwrap();
        assert_eq!(["a", "b", "d/c"].map(|name| sys::text(&mount.at(name))), ["x+", "x!", "x!"]);
    }
}

on_stratafs! {
    /// An upper that the kernel made works here, and afterwards in the kernel again.
    fn kernel_made_upper(driver) {
        let mount = stack().mount(Driver::Overlayfs);
        sys::append(&mount.at("a"), b"+").unwrap();
        sys::link(&mount.at("b"), &mount.at("d/new")).unwrap();
        sys::unlink(&mount.at("b")).unwrap();
        let names = ["a", "d/c", "d/new"];
        let before = facts(&mount, &names);
        assert_eq!(before[0].1, 3);
        let mount = mount.remount(driver);
        assert_eq!(facts(&mount, &names), before);
        sys::append(&mount.at("d/c"), b"+").unwrap();
        sys::unlink(&mount.at("a")).unwrap();
        let mount = mount.remount(Driver::Overlayfs);
        assert_eq!(facts(&mount, &["d/c", "d/new"]), vec![(before[0].0, 2, "x++".to_owned()); 2]);
        sys::unlink(&mount.at("d/c")).unwrap();
        sys::unlink(&mount.at("d/new")).unwrap();
        assert_eq!(entries(&mount), Vec::<String>::new());
        let mount = mount.remount(driver);
        mount.assert_tree("dir d\nfile p \"p\"\nhard e/q p\nfile single \"s\"");
    }

    /// The marks of the kernel are there: the upper's origin, the index's upper.
    fn marks_as_the_kernel_sets_them(driver) {
        let ours = stack().mount(driver);
        let (upper, index) = (ours.upper(""), index(&ours));
        let marks = |path: &std::path::Path| {
            ["trusted.overlay.origin", "trusted.overlay.upper"].map(|name| sys::getxattr(path, name))
        };
        let found = (marks(&upper), marks(&index));
        assert!(found.0[0].is_ok() && found.1[1].is_ok(), "{found:?}");
        let layers = ours.unmount();
        for (path, name) in [(&upper, "trusted.overlay.origin"), (&index, "trusted.overlay.upper")] {
            sys::removexattr(path, name).unwrap();
        }
        let kernel = layers.mount(Driver::Overlayfs);
        assert_eq!((marks(&upper), marks(&index)), found);
        assert_eq!(sys::listxattr(kernel.root()), Ok(vec![]));
    }

    /// A file system without file handles: a warning, and no index, as in the kernel.
    fn without_file_handles(driver) {
        let mut layers = stack().build();
        let inner = Stack::new().lower(LOWER).mount(Driver::Stratafs);
        layers.lowers[0] = inner.root().to_owned();
        layers.originals.clear();
        let mount = layers.mount(driver);
        sys::append(&mount.at("a"), b"+").unwrap();
        assert_eq!((sys::text(&mount.at("a")), sys::text(&mount.at("b"))), ("x+".to_owned(), "x".to_owned()));
        assert!(mount.log().contains("index"), "{}", mount.log());
        drop(mount);
        assert_eq!(sys::lstat(&inner.at("none")).err(), Some(Errno::NOENT));
    }
}
