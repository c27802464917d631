//! The changes that are interrupted, each with the layers that it needs.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags};
use rustix::io::Errno;

use crate::common::sys::{self, RenameFlags};

type Result = std::result::Result<(), Errno>;

/// One change. Paths are below the directory that it is given: a scene of [`SCENE`].
#[derive(Clone, Copy)]
pub struct Verb {
    pub name: &'static str,
    pub options: &'static [&'static str],
    /// Done first, through the mount, without interruption.
    pub prepare: fn(&Path) -> Result,
    pub act: fn(&Path) -> Result,
}

impl Verb {
    /// True if a user's device 0:0 takes the place of the file that moves away. This is a second step: if it fails, or
    /// after a crash before it, the old name is free.
    pub fn leaves_device(&self) -> bool {
        self.name.starts_with("leave_device_")
    }
}

/// The content of the lower layer for one scene; `@` is its directory.
const SCENE: &str = "
    dir   @             mtime=1000
    dir   @/d           mtime=1000 mode=0750 user.d=1
    file  @/d/f         \"lower\\n\" mtime=1000 mode=0640 uid=7 gid=8 user.k=v
    file  @/d/other     \"other\\n\" mtime=1000
    file  @/big         fill=300000 mtime=1000 mode=4755
    dir   @/d/sub/deep  mtime=1000
    file  @/d/sub/deep/x \"x\\n\" mtime=1000
    file  @/gone        \"gone\\n\" mtime=1000
    dir   @/full        mtime=1000
    file  @/full/a      \"a\\n\" mtime=1000
    file  @/full/b      \"b\\n\" mtime=1000
    dir   @/e           mtime=1000
    dir   @/e2          mtime=1000
    link  @/l -> target mtime=1000
    fifo  @/p           mtime=1000
    file  @/h1          \"hard\\n\" mtime=1000
    hard  @/h2          @/h1
";

/// The lower layer of the scenes `0`, `1`, … `count - 1`.
pub fn scenes(count: usize) -> String {
    (0..count).map(|at| SCENE.replace('@', &at.to_string())).collect()
}

const PLAIN: &[&str] = &[];
const INDEX: &[&str] = &["index=on"];
const METACOPY: &[&str] = &["metacopy=on"];

fn nothing(_: &Path) -> Result {
    Ok(())
}

fn rename(at: &Path, from: &str, to: &str) -> Result {
    sys::rename(&at.join(from), &at.join(to))
}

fn exchange(at: &Path, a: &str, b: &str) -> Result {
    sys::rename_with(&at.join(a), &at.join(b), RenameFlags::EXCHANGE)
}

/// A device 0:0 takes the place of what moves away (`RENAME_WHITEOUT`).
fn leave_device(at: &Path, from: &str, to: &str) -> Result {
    sys::rename_with(&at.join(from), &at.join(to), RenameFlags::WHITEOUT)
}

/// An empty file.
fn make(at: &Path, name: &str) -> Result {
    sys::create(&at.join(name), b"")
}

fn remove_all_of_full(at: &Path) -> Result {
    sys::unlink(&at.join("full/a"))?;
    sys::unlink(&at.join("full/b"))
}

fn open_truncating(path: &Path) -> Result {
    sys::open(path, OFlags::WRONLY | OFlags::TRUNC, 0).map(drop)
}

/// A file that gets its name only when it is complete.
fn make_nameless_and_link(at: &Path) -> Result {
    let file = sys::open(&at.join("d"), OFlags::TMPFILE | OFlags::RDWR, 0o640)?;
    sys::write_all(&file, b"made without a name\n")?;
    rustix::fs::fsync(&file)?;
    rustix::fs::linkat(CWD, sys::fd_path(&file.into()), CWD, at.join("d/named"), AtFlags::SYMLINK_FOLLOW)
}

/// What editors and databases do.
fn write_sync_rename(at: &Path) -> Result {
    let file = sys::open(&at.join("d/new"), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, 0o644)?;
    sys::write_all(&file, b"the new version\n")?;
    rustix::fs::fsync(&file)?;
    rename(at, "d/new", "d/f")?;
    sync_dir(&at.join("d"))
}

pub fn sync_dir(path: &Path) -> Result {
    rustix::fs::fsync(sys::open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?)
}

/// Hands all of them to the macro `then`: name, options, preparation, change.
macro_rules! with_verbs {
    ($then:ident) => {
        $then! {
            append_in_lower_directories PLAIN, nothing, |at| sys::append(&at.join("d/sub/deep/x"), b"more\n");
            append_big PLAIN, nothing, |at| sys::append(&at.join("big"), b"more\n");
            open_truncating_lower PLAIN, nothing, |at| open_truncating(&at.join("big"));
            truncate_lower PLAIN, nothing, |at| sys::truncate(&at.join("d/f"), 3);
            chmod_lower PLAIN, nothing, |at| sys::chmod(&at.join("d/f"), 0o600);
            chown_lower PLAIN, nothing, |at| sys::chown(&at.join("d/f"), Some(9), None);
            touch_lower PLAIN, nothing, |at| sys::utimens(&at.join("d/f"), (5, 0), (5, 0));
            setxattr_lower PLAIN, nothing, |at| sys::setxattr(&at.join("d/f"), "user.new", b"value");
            removexattr_lower PLAIN, nothing, |at| sys::removexattr(&at.join("d/f"), "user.k");
            chmod_lower_directory PLAIN, nothing, |at| sys::chmod(&at.join("d"), 0o700);
            chown_lower_link PLAIN, nothing, |at| sys::chown(&at.join("l"), Some(9), Some(9));
            chmod_lower_fifo PLAIN, nothing, |at| sys::chmod(&at.join("p"), 0o600);
            append_hard_link PLAIN, nothing, |at| sys::append(&at.join("h1"), b"more\n");
            unlink_lower PLAIN, nothing, |at| sys::unlink(&at.join("d/f"));
            unlink_copied PLAIN, |at| sys::append(&at.join("d/f"), b"more\n"), |at| sys::unlink(&at.join("d/f"));
            unlink_upper PLAIN, |at| make(at, "d/new"), |at| sys::unlink(&at.join("d/new"));
            rmdir_lower PLAIN, nothing, |at| sys::rmdir(&at.join("e"));
            rmdir_emptied PLAIN, remove_all_of_full, |at| sys::rmdir(&at.join("full"));
            rmdir_upper PLAIN, |at| sys::mkdir(&at.join("new"), 0o755), |at| sys::rmdir(&at.join("new"));
            create PLAIN, nothing, |at| make(at, "d/new");
            create_over_whiteout PLAIN, |at| sys::unlink(&at.join("gone")), |at| make(at, "gone");
            mkdir PLAIN, nothing, |at| sys::mkdir(&at.join("d/new"), 0o2750);
            mkdir_over_whiteout PLAIN, |at| { remove_all_of_full(at)?; sys::rmdir(&at.join("full")) },
                |at| sys::mkdir(&at.join("full"), 0o755);
            create_as_user PLAIN, |at| sys::mkdir(&at.join("new"), 0o777).and_then(|()| sys::chmod(&at.join("new"), 0o777)),
                |at| sys::as_user(1000, 1000, || make(at, "new/x"));
            mkdir_as_user PLAIN, |at| sys::mkdir(&at.join("new"), 0o777).and_then(|()| sys::chmod(&at.join("new"), 0o777)),
                |at| sys::as_user(1000, 1000, || sys::mkdir(&at.join("new/x"), 0o755));
            symlink PLAIN, nothing, |at| sys::symlink("somewhere", &at.join("d/new"));
            symlink_over_whiteout PLAIN, |at| sys::unlink(&at.join("gone")), |at| sys::symlink("somewhere", &at.join("gone"));
            mknod PLAIN, nothing, |at| sys::mknod(&at.join("d/new"), libc::S_IFIFO | 0o640, (0, 0));
            create_named_as_a_whiteout PLAIN, nothing, |at| make(at, "d/.wh.f");
            rename_named_as_a_whiteout PLAIN, nothing, |at| rename(at, "d/f", "d/.wh.other");
            tmpfile PLAIN, nothing, make_nameless_and_link;
            link_lower PLAIN, nothing, |at| sys::link(&at.join("d/f"), &at.join("e/new"));
            link_over_whiteout PLAIN, |at| sys::unlink(&at.join("gone")), |at| sys::link(&at.join("d/f"), &at.join("gone"));
            rename_lower PLAIN, nothing, |at| rename(at, "d/f", "d/new");
            rename_lower_across PLAIN, nothing, |at| rename(at, "d/f", "e/new");
            rename_lower_over_lower PLAIN, nothing, |at| rename(at, "d/f", "d/other");
            rename_upper_over_lower PLAIN, |at| make(at, "new"), |at| rename(at, "new", "d/f");
            rename_upper_over_whiteout PLAIN, |at| { make(at, "new")?; sys::unlink(&at.join("gone")) },
                |at| rename(at, "new", "gone");
            rename_directory PLAIN, nothing, |at| rename(at, "d", "new");
            rename_directory_across PLAIN, nothing, |at| rename(at, "d/sub", "e/new");
            rename_directory_over_lower PLAIN, nothing, |at| rename(at, "d", "e");
            rename_directory_over_emptied PLAIN, remove_all_of_full, |at| rename(at, "d", "full");
            rename_directory_over_whiteout PLAIN, |at| sys::rmdir(&at.join("e")), |at| rename(at, "d", "e");
            rename_new_directory_over_lower PLAIN, |at| { sys::mkdir(&at.join("new"), 0o755)?; make(at, "new/x") },
                |at| rename(at, "new", "e");
            leave_device_for_upper PLAIN, |at| make(at, "new"), |at| leave_device(at, "new", "d/new");
            leave_device_for_upper_over_lower PLAIN, |at| make(at, "new"), |at| leave_device(at, "new", "d/f");
            leave_device_for_lower PLAIN, nothing, |at| leave_device(at, "d/f", "e/new");
            leave_device_for_directory PLAIN, nothing, |at| leave_device(at, "d", "e/new");
            exchange_files PLAIN, nothing, |at| exchange(at, "d/f", "gone");
            exchange_directories PLAIN, nothing, |at| exchange(at, "d", "full");
            exchange_file_and_directory PLAIN, nothing, |at| exchange(at, "gone", "full");
            write_and_rename PLAIN, |at| make(at, "other-new"), |at| rename(at, "other-new", "d/f");
            indexed_append INDEX, nothing, |at| sys::append(&at.join("h1"), b"more\n");
            indexed_chmod INDEX, nothing, |at| sys::chmod(&at.join("h2"), 0o600);
            indexed_unlink INDEX, nothing, |at| sys::unlink(&at.join("h1"));
            indexed_unlink_last INDEX, |at| sys::unlink(&at.join("h1")), |at| sys::unlink(&at.join("h2"));
            indexed_link INDEX, nothing, |at| sys::link(&at.join("h1"), &at.join("d/new"));
            indexed_rename INDEX, nothing, |at| rename(at, "h1", "d/new");
            indexed_rename_over INDEX, nothing, |at| rename(at, "gone", "h2");
            metacopy_chmod METACOPY, nothing, |at| sys::chmod(&at.join("big"), 0o600);
            metacopy_append METACOPY, |at| sys::chmod(&at.join("big"), 0o4711), |at| sys::append(&at.join("big"), b"more\n");
            metacopy_truncate METACOPY, |at| sys::chmod(&at.join("big"), 0o600), |at| sys::truncate(&at.join("big"), 5);
            metacopy_rename METACOPY, |at| sys::chmod(&at.join("big"), 0o600), |at| rename(at, "big", "d/new");
            metacopy_link METACOPY, nothing, |at| sys::link(&at.join("big"), &at.join("d/new"));
        }
    };
}

macro_rules! table {
    ($($name:ident $options:ident, $prepare:expr, $act:expr;)*) => {
        /// All changes.
        pub const VERBS: &[Verb] =
            &[$(Verb { name: stringify!($name), options: $options, prepare: $prepare, act: $act }),*];
    };
}

with_verbs!(table);

/// Defines a test for each verb, which calls `body` with its name.
macro_rules! test_each {
    ($($name:ident $options:ident, $prepare:expr, $act:expr;)*) => {$(
        #[test]
        fn $name() {
            everywhere(stringify!($name));
        }
    )*};
}

/// Verbs that take other steps on an upper with fewer features: they leave whiteouts, replace whiteouts, or replace
/// something else.
macro_rules! with_fallback_verbs {
    ($then:ident) => {
        $then! {
            unlink_lower unlink_copied rmdir_lower rmdir_emptied create_over_whiteout
            mkdir_over_whiteout symlink_over_whiteout link_over_whiteout rename_lower
            rename_lower_over_lower rename_upper_over_lower rename_upper_over_whiteout
            rename_directory rename_directory_over_lower rename_directory_over_emptied
            rename_directory_over_whiteout rename_new_directory_over_lower write_and_rename
        }
    };
}

/// Defines a test for each verb with a fallback, and one of all the others for the long form.
macro_rules! test_fallbacks {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                everywhere(stringify!($name));
            }
        )*

        #[test]
        #[ignore = "long: the verbs that do the same on every upper, in scripts/soak"]
        fn the_other_verbs() {
            let here = [$(stringify!($name)),*];
            for verb in crate::verbs::VERBS.iter().filter(|verb| !here.contains(&verb.name)) {
                everywhere(verb.name);
            }
        }
    };
}

/// Changes of several steps that are only compared after all of them were acknowledged.
pub const ACKNOWLEDGED: &[Verb] = &[
    Verb { name: "write_sync_rename", options: PLAIN, prepare: nothing, act: write_sync_rename },
    Verb {
        name: "append_and_sync",
        options: PLAIN,
        prepare: nothing,
        act: |at| {
            let file = sys::open(&at.join("d/sub/deep/x"), OFlags::WRONLY | OFlags::APPEND, 0)?;
            sys::write_all(&file, b"more\n")?;
            rustix::fs::fsync(file)
        },
    },
    Verb {
        name: "rename_directory_and_sync",
        options: PLAIN,
        prepare: nothing,
        act: |at| {
            rename(at, "d", "e/new")?;
            sync_dir(&at.join("e"))
        },
    },
    Verb {
        name: "unlink_and_sync",
        options: PLAIN,
        prepare: nothing,
        act: |at| {
            sys::unlink(&at.join("d/f"))?;
            sync_dir(&at.join("d"))
        },
    },
    Verb {
        name: "metacopy_chmod_and_sync",
        options: METACOPY,
        prepare: nothing,
        act: |at| {
            sys::chmod(&at.join("big"), 0o600)?;
            rustix::fs::fsync(sys::open(&at.join("big"), OFlags::RDONLY, 0)?)
        },
    },
];
