//! Listings: every name once, numbers and types as `stat` tells them, positions stable.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

/// Reads a directory with a small buffer and calls `each` after every entry.
fn read_slowly(directory: &std::fs::File, mut each: impl FnMut(&str)) -> Vec<String> {
    let mut names = vec![];
    loop {
        let mut buffer = [MaybeUninit::uninit(); 128];
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut batch = vec![];
        let mut end = false;
        loop {
            match entries.next() {
                None => {
                    end = true;
                    break;
                }
                Some(entry) => batch.push(entry.unwrap().file_name().to_str().unwrap().to_owned()),
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        for name in batch {
            if name != "." && name != ".." {
                each(&name);
                names.push(name);
            }
        }
        if end {
            return names;
        }
    }
}

on_both! {
    fn each_name_once_in_a_merge(driver) {
        let mount = Stack::new()
            .lower("file d/a\nfile d/b\nwhiteout d/c\ndir d/s")
            .lower("file d/a\nfile d/c\nfile d/e\ndir d/s")
            .upper("file d/a\nfile d/f\nwhiteout d/e\nwhiteout d/none")
            .mount(driver);
        assert_eq!(sys::names(&mount.at("d")), ["a", "b", "f", "s"]);
    }

    /// `d_ino` and `d_type` are those of `stat`, whatever the entry's layer, also after a copy-up.
    fn numbers_and_types_are_those_of_stat(driver) {
        let tree = "file f \"x\"\ndir sub\nfile sub/low \"\"\nlink l -> f\nfifo p\nchar c 1:3\nfile up1 \"\"\nfile up2 \"\"\nhard h f";
        let mount = Stack::new().lower(tree).lower("file only \"2\"\ndir sub\nfile sub/second").mount(driver);
        let check = |what: &str| {
            for directory in ["", "sub"] {
                for entry in sys::readdir(&mount.at(directory)).unwrap() {
                    let stat = sys::lstat(&mount.at(directory).join(&entry.name)).unwrap();
                    assert_eq!(entry.ino, stat.st_ino, "{what}: {:?} in {directory:?}", entry.name);
                    assert_eq!(entry.kind, FileType::from_raw_mode(stat.st_mode), "{what}: {:?}", entry.name);
                }
            }
        };
        check("before");
        sys::append(&mount.at("up1"), b"x").unwrap();
        sys::chmod(&mount.at("sub"), 0o700).unwrap();
        sys::chmod(&mount.at("only"), 0o600).unwrap();
        sys::create(&mount.at("new"), b"").unwrap();
        sys::create(&mount.at("sub/new"), b"").unwrap();
        check("after copy-up");
        sys::rename(&mount.at("up2"), &mount.at("sub/up2")).unwrap();
        sys::rename(&mount.at("sub/low"), &mount.at("low")).unwrap();
        check("after rename");
        let mount = mount.remount(driver);
        for entry in sys::readdir(mount.root()).unwrap() {
            assert_eq!(entry.ino, sys::lstat(&mount.root().join(&entry.name)).unwrap().st_ino, "{:?}", entry.name);
        }
    }

    fn positions_are_stable(driver) {
        let lower: String = (0..50).map(|n| format!("file d/low{n:03}\n")).collect();
        let upper: String = (0..50).map(|n| format!("file d/up{n:03}\n")).collect();
        let mount = Stack::new().lower(&lower).upper(&upper).mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        let mut positions = vec![];
        loop {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut entries = RawDir::new(&directory, &mut buffer);
            let before = positions.len();
            while let Some(entry) = entries.next() {
                let entry = entry.unwrap();
                positions.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
                if entries.is_buffer_empty() {
                    break;
                }
            }
            if positions.len() == before {
                break;
            }
        }
        assert_eq!(positions.len(), 102);
        for (index, (_, cookie)) in positions.iter().enumerate().rev().step_by(7) {
            assert_eq!(rustix::fs::seek(&directory, SeekFrom::Start(*cookie)).unwrap(), *cookie);
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut entries = RawDir::new(&directory, &mut buffer);
            let next = entries.next().map(|entry| entry.unwrap().file_name().to_owned());
            assert_eq!(next, positions.get(index + 1).map(|(name, _)| name.clone()), "after entry {index}");
        }
    }

    /// What `rm -r` does: nothing is missed and nothing comes twice.
    fn deleting_while_reading(driver) {
        let lower: String = (0..300).map(|n| format!("file d/low{n:03}\n")).collect();
        let upper: String = (0..300).map(|n| format!("file d/up{n:03}\n")).collect();
        let mount = Stack::new().lower(&lower).upper(&upper).mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        let seen = read_slowly(&directory, |name| sys::unlink(&mount.at("d").join(name)).unwrap());
        let distinct: BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), distinct.len()), (600, 600));
        assert_eq!(sys::names(&mount.at("d")), Vec::<String>::new());
        sys::rmdir(&mount.at("d")).unwrap();
        mount.assert_upper("whiteout d");
    }

    /// Names that exist during the whole reading come exactly once, whatever is created or renamed meanwhile.
    fn creating_while_reading(driver) {
        let lower: String = (0..100).map(|n| format!("file d/low{n:03}\n")).collect();
        let mount = Stack::new().lower(&lower).upper("file d/up").mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        let mut made = 0;
        let seen = read_slowly(&directory, |_| {
            if made < 100 {
                sys::create(&mount.at(&format!("d/made{made}")), b"").unwrap();
                made += 1;
            }
        });
        let old: Vec<_> = seen.iter().filter(|name| name.starts_with("low")).collect();
        assert_eq!(old.len(), 100);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "a name came twice");
    }

    /// An open directory shows changes after a rewind.
    fn rewinding_sees_changes(driver) {
        let mount = Stack::new().lower("file d/a\nfile d/b").mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        let names = || {
            rustix::fs::seek(&directory, SeekFrom::Start(0)).unwrap();
            let mut names: Vec<_> = sys::readdir_fd(&directory).unwrap().into_iter().map(|e| e.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "b"]);
        sys::create(&mount.at("d/c"), b"").unwrap();
        assert_eq!(names(), ["a", "b", "c"]);
        sys::unlink(&mount.at("d/a")).unwrap();
        assert_eq!(names(), ["b", "c"]);
        sys::rename(&mount.at("d/b"), &mount.at("d/z")).unwrap();
        assert_eq!(names(), ["c", "z"]);
    }

    /// A cached listing is dropped with every change of the directory.
    fn listings_follow_changes(driver) {
        let mount = Stack::new().lower("file d/a\nfile e/x").lower("file d/b").mount(driver);
        let names = |directory: &str| sys::names(&mount.at(directory));
        assert_eq!(names("d"), ["a", "b"]);
        sys::create(&mount.at("d/c"), b"").unwrap();
        assert_eq!(names("d"), ["a", "b", "c"]);
        sys::mkdir(&mount.at("d/m"), 0o755).unwrap();
        sys::symlink("t", &mount.at("d/s")).unwrap();
        sys::link(&mount.at("d/a"), &mount.at("d/h")).unwrap();
        assert_eq!(names("d"), ["a", "b", "c", "h", "m", "s"]);
        sys::unlink(&mount.at("d/b")).unwrap();
        sys::rmdir(&mount.at("d/m")).unwrap();
        assert_eq!(names("d"), ["a", "c", "h", "s"]);
        sys::rename(&mount.at("d/a"), &mount.at("e/a")).unwrap();
        sys::rename(&mount.at("e/x"), &mount.at("d/c")).unwrap();
        assert_eq!((names("d"), names("e")), (vec!["c".into(), "h".into(), "s".into()], vec!["a".to_owned()]));
    }

    fn many_entries(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        for number in 0..3000 {
            sys::create(&mount.at(&format!("d/entry-with-a-longer-name-{number}")), b"").unwrap();
        }
        let entries = sys::readdir(&mount.at("d")).unwrap();
        assert_eq!(entries.iter().map(|entry| &entry.name).collect::<BTreeSet<_>>().len(), 3000);
        assert_eq!(entries.iter().map(|entry| entry.ino).collect::<BTreeSet<_>>().len(), 3000);
    }

    /// The dots are listed, with the numbers of the directories that they mean.
    fn dots(driver) {
        let mount = Stack::new().lower("file d/a").mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&directory, &mut buffer);
        let mut dots = vec![];
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            if entry.file_name().to_bytes().starts_with(b".") {
                dots.push((entry.file_name().to_str().unwrap().to_owned(), entry.ino()));
            }
        }
        dots.sort();
        assert_eq!(dots, [(".".to_owned(), sys::ino(&mount.at("d"))), ("..".to_owned(), sys::ino(mount.root()))]);
    }

    fn removed_directory_reads_empty(driver) {
        let mount = Stack::new().lower("dir d").mount(driver);
        let directory = sys::open(&mount.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
        sys::rmdir(&mount.at("d")).unwrap();
        match sys::readdir_fd(&directory) {
            Ok(entries) => assert_eq!(entries, []),
            Err(error) => assert_eq!(error, Errno::NOENT),
        }
    }
}

/// 200 names of 16 bytes with one value of the hash from which positions were once made (`(h ^ word) * K; h ^= h >> 29`
/// for each 8 bytes): it can be inverted.
fn names_of_one_hash() -> Vec<Vec<u8>> {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(K);
        mixed ^ (mixed >> 29)
    };
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ 16;
    let inverse = (0..6).fold(K, |x, _| x.wrapping_mul(2_u64.wrapping_sub(K.wrapping_mul(x))));
    let target = 0x0123_4567_89ab_cdef_u64;
    let unmixed = (0..3).fold(target, |x, _| target ^ (x >> 29));
    let mut names = vec![];
    for number in 0_u64.. {
        let first = u64::from_le_bytes(format!("{number:08x}").as_bytes().try_into().unwrap());
        let second = unmixed.wrapping_mul(inverse) ^ step(start, first);
        assert_eq!(step(step(start, first), second), target);
        let name = [first.to_le_bytes(), second.to_le_bytes()].concat();
        if !name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            names.push(name);
        }
        if names.len() == 200 {
            break;
        }
    }
    names
}

on_both! {
    /// Whatever names are in a directory, each is listed once and found.
    fn names_of_one_position(driver) {
        use std::os::unix::ffi::OsStrExt;
        let names = names_of_one_hash();
        let path = |root: &std::path::Path, name: &[u8]| root.join("d").join(std::ffi::OsStr::from_bytes(name));
        for (both, upper) in [(false, false), (true, false), (true, true)] {
            let mut layers = Stack::new().lower("dir d").lower(if both { "file d/below" } else { "" }).build();
            for name in &names {
                sys::create(&path(&layers.lowers[0], name), b"x").unwrap();
            }
            layers.settle();
            let mount = layers.mount(driver);
            if upper {
                sys::create(&mount.at("d/above"), b"").unwrap();
            }
            let listed = sys::readdir(&mount.at("d")).unwrap();
            assert_eq!(listed.len(), names.len() + usize::from(both) + usize::from(upper));
            for name in &names {
                assert!(sys::exists(&path(mount.root(), name)), "{}", name.escape_ascii());
            }
            for name in &names {
                sys::unlink(&path(mount.root(), name)).unwrap();
            }
            assert_eq!(sys::readdir(&mount.at("d")).unwrap().len(), usize::from(both) + usize::from(upper));
        }
    }
}
