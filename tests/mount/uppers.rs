//! Ordinary steps on uppers with fewer features than ext4: each has the same result as on kernel overlayfs, or is refused
//! with a message.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::common::sys::{self, RenameFlags};
use crate::common::uppers::{Upper, WEAK};
use crate::common::{Driver, Errno, Stack, run_test_within, tree};

const LOWER: &str = "
    file f      \"f\\n\" mode=640 user.k=v mtime=1000
    file g      \"g\\n\"
    file h      \"h\\n\"
    file i      \"i\\n\"
    file j      \"j\\n\"
    file gone1  \"gone\\n\"
    file gone2  \"gone\\n\"
    file gone3  \"gone\\n\"
    link l -> f
    dir  e1
    dir  e2
    dir  e3
    dir  full
    file full/a \"a\\n\"
    file full/b \"b\\n\"
    dir  emptied
    file emptied/a \"a\\n\"
    file emptied/b \"b\\n\"
    file d1/x   \"x\\n\"
    file d2/x   \"x\\n\"
    file d3/x   \"x\\n\"
    file d4/sub/deep/x \"x\\n\"
    file x1     \"x1\\n\"
    file x2     \"x2\\n\"
    file t1     \"t1\\n\"
    file t2     \"t2\\n\"
    file h1     \"hard\\n\"
";

type Step = (&'static str, fn(&Path) -> Result<(), Errno>);

/// As `mv -T` does it: what cannot be renamed is copied and removed.
fn rename(root: &Path, from: &str, to: &str) -> Result<(), Errno> {
    match sys::rename(&root.join(from), &root.join(to)) {
        Err(Errno::XDEV) => {
            let status = Command::new("mv").arg("-T").arg(root.join(from)).arg(root.join(to)).status().unwrap();
            if status.success() { Ok(()) } else { Err(Errno::XDEV) }
        }
        done => done,
    }
}

fn remove_all(path: &Path) -> Result<(), Errno> {
    std::fs::remove_dir_all(path).map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn save_as_editors_do(root: &Path) -> Result<(), Errno> {
    let file = sys::open(&root.join("t1.new"), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, 0o644)?;
    sys::write_all(&file, b"saved\n")?;
    rustix::fs::fsync(&file)?;
    rename(root, "t1.new", "t1")
}

fn name_a_nameless_file(root: &Path) -> Result<(), Errno> {
    let file = sys::open(&root.join("d4"), OFlags::TMPFILE | OFlags::RDWR, 0o640)?;
    sys::write_all(&file, b"nameless\n")?;
    rustix::fs::linkat(CWD, sys::fd_path(&file.into()), CWD, root.join("d4/named"), AtFlags::SYMLINK_FOLLOW)
}

const EXCHANGE: &str = "exchange two files";
const NAMELESS: &str = "make a nameless file and name it";
const ATTRIBUTE: &str = "set an extended attribute";

const STEPS: [Step; 28] = [
    ("create", |r| sys::create(&r.join("new"), b"new\n")),
    ("append to a lower file", |r| sys::append(&r.join("f"), b"more\n")),
    ("truncate a lower file", |r| sys::truncate(&r.join("g"), 1)),
    ("chmod a lower file", |r| sys::chmod(&r.join("d1/x"), 0o600)),
    ("chown a lower directory", |r| sys::chown(&r.join("d1"), Some(5), Some(6))),
    (ATTRIBUTE, |r| sys::setxattr(&r.join("f"), "user.new", b"value")),
    ("unlink lower files", |r| ["gone1", "gone2", "gone3"].iter().try_for_each(|name| sys::unlink(&r.join(name)))),
    ("create over a whiteout", |r| sys::create(&r.join("gone1"), b"again\n")),
    ("mkdir over a whiteout of a file", |r| sys::mkdir(&r.join("gone2"), 0o755)),
    ("rm -r of a lower directory", |r| remove_all(&r.join("full"))),
    ("mkdir over a whiteout of a directory", |r| sys::mkdir(&r.join("full"), 0o755)),
    ("mv of a lower file", |r| rename(r, "h", "d1/h")),
    ("mv of a lower file over a lower file", |r| rename(r, "i", "j")),
    ("mv of a new file over a whiteout", |r| rename(r, "new", "gone3")),
    ("mv of a lower file over a new one", |r| {
        rename(r, "x1", "gone1").and_then(|()| sys::create(&r.join("x1"), b"x1"))
    }),
    ("mv of a lower directory", |r| rename(r, "d2", "moved")),
    ("mv of a lower directory into another", |r| rename(r, "d3", "d1/moved")),
    ("rmdir of a lower directory", |r| sys::rmdir(&r.join("e1"))),
    ("mv of a lower directory over a whiteout", |r| rename(r, "d4/sub", "e1")),
    ("mv of a directory over an emptied one", |r| {
        sys::unlink(&r.join("emptied/a"))?;
        sys::unlink(&r.join("emptied/b"))?;
        rename(r, "moved", "emptied")
    }),
    ("mv of a new directory over a lower one", |r| {
        sys::mkdir(&r.join("made"), 0o755)?;
        sys::create(&r.join("made/x"), b"made\n")?;
        rename(r, "made", "e2")
    }),
    ("rm -r of a copied directory, and mkdir", |r| {
        sys::create(&r.join("e3/x"), b"x\n")?;
        remove_all(&r.join("e3"))?;
        sys::mkdir(&r.join("e3"), 0o700)
    }),
    ("symlink over a whiteout", |r| sys::unlink(&r.join("l")).and_then(|()| sys::symlink("g", &r.join("l")))),
    ("link a lower file", |r| sys::link(&r.join("h1"), &r.join("e3/h2"))),
    ("make a fifo", |r| sys::mknod(&r.join("p"), libc::S_IFIFO | 0o640, (0, 0))),
    ("save as editors do", save_as_editors_do),
    (EXCHANGE, |r| sys::rename_with(&r.join("x2"), &r.join("t2"), RenameFlags::EXCHANGE)),
    (NAMELESS, name_a_nameless_file),
];

/// Operations that the file systems below refuse, as the mount reports.
fn refused(upper: Upper) -> &'static [(&'static str, Errno)] {
    match upper {
        Upper::Plain | Upper::XattrWhiteouts => &[],
        Upper::Bindfs | Upper::Mergerfs => &[(EXCHANGE, Errno::INVAL), (NAMELESS, Errno::OPNOTSUPP)],
        Upper::BindfsWithoutXattrs => {
            &[(ATTRIBUTE, Errno::OPNOTSUPP), (EXCHANGE, Errno::INVAL), (NAMELESS, Errno::OPNOTSUPP)]
        }
    }
}

type Outcomes = Vec<(&'static str, Result<(), Errno>)>;

/// Tries each step except those in `without`. Returns the outcomes and the final tree.
fn walk(driver: Driver, upper: Upper, without: &[&str]) -> (Outcomes, std::collections::BTreeMap<String, String>) {
    let mount = Stack::new().lower(LOWER).upper_on(upper).mount(driver);
    let steps = STEPS.iter().filter(|(name, _)| !without.contains(name));
    let outcomes = steps.map(|(name, step)| (*name, step(mount.root()))).collect();
    let seen = tree::snapshot(mount.root(), false);
    let log = mount.log();
    for (words, step) in [("RENAME_EXCHANGE", EXCHANGE), ("O_TMPFILE", NAMELESS)] {
        let is_refused = driver == Driver::Stratafs && refused(upper).iter().any(|(name, _)| *name == step);
        assert_eq!(log.contains(words), is_refused, "{upper:?}: {log}");
    }
    let again = mount.remount(driver);
    let difference = tree::diff(&tree::snapshot(again.root(), false), &seen);
    assert!(difference.is_empty(), "{upper:?}, mounted again:\n{difference}");
    (outcomes, seen)
}

fn everyday_steps(upper: Upper) {
    let refused = refused(upper);
    let without: Vec<&str> = refused.iter().map(|(name, _)| *name).collect();
    let (expected, kernel) = walk(Driver::Overlayfs, Upper::Plain, &without);
    assert!(expected.iter().all(|(_, outcome)| outcome.is_ok()), "{expected:?}");
    let (found, seen) = walk(Driver::Stratafs, upper, &[]);
    let failed: Vec<_> = found.iter().filter_map(|(name, outcome)| Some((*name, outcome.err()?))).collect();
    println!("{upper:?}: {} of {} steps", STEPS.len() - failed.len(), STEPS.len());
    assert_eq!(failed, refused, "{upper:?}");
    let kernel = match upper {
        Upper::BindfsWithoutXattrs => {
            kernel.into_iter().map(|(path, line)| (path, line.replace(" user.k=v", ""))).collect()
        }
        _ => kernel,
    };
    let difference = tree::diff(&seen, &kernel);
    assert!(difference.is_empty(), "{upper:?}: not the tree of kernel overlayfs:\n{difference}");
}

macro_rules! on_each {
    ($($test:ident $upper:ident;)*) => {$(
        #[test]
        fn $test() {
            let name = concat!("uppers::", stringify!($test));
            run_test_within(Duration::from_secs(120), name, Driver::Stratafs, |_| everyday_steps(Upper::$upper));
        }
    )*};
}

on_each! {
    everyday_steps_on_ext4 Plain;
    everyday_steps_on_bindfs Bindfs;
    everyday_steps_on_bindfs_without_xattrs BindfsWithoutXattrs;
    everyday_steps_on_mergerfs Mergerfs;
    everyday_steps_with_xattr_whiteouts XattrWhiteouts;
}

/// On a weak upper, `.wh.NAME` hides the lower file NAME while it is moved. A file that gets just this name stays.
#[test]
fn a_file_that_gets_the_name_of_its_own_whiteout_stays() {
    run_test_within(Duration::from_secs(120), "uppers::a_file_that_gets_the_name…", Driver::Stratafs, |_| {
        for upper in WEAK {
            let mount =
                Stack::new().lower("file g \"g\"\ndir d\nfile d/x \"x\"").upper_on(upper).mount(Driver::Stratafs);
            match sys::rename(&mount.at("g"), &mount.at(".wh.g")) {
                // An upper without attributes cannot record that the file is an ordinary one.
                Err(Errno::PERM) if upper == Upper::BindfsWithoutXattrs => continue,
                moved => moved.unwrap(),
            }
            let expected = "file .wh.g \"g\"\nfile d/x \"x\"";
            mount.assert_tree(expected);
            mount.remount(Driver::Stratafs).assert_tree(expected);
        }
    });
}

/// Regression: the rename failed, but the target's content was gone.
#[test]
fn rename_over_a_file_loses_nothing() {
    run_test_within(Duration::from_secs(120), "uppers::rename_over_a_file_loses_nothing", Driver::Stratafs, |_| {
        for upper in WEAK {
            let mount = Stack::new()
                .lower("file f \"lower\\n\"\nfile t \"precious\\n\"")
                .upper_on(upper)
                .mount(Driver::Stratafs);
            sys::append(&mount.at("t"), b"more\n").unwrap();
            sys::rename(&mount.at("f"), &mount.at("t")).unwrap();
            mount.assert_tree("file t \"lower\\n\"");
            mount.remount(Driver::Stratafs).assert_tree("file t \"lower\\n\"");
        }
    });
}
