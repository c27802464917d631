//! Opens files below a directory without leaving it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Longest path given to one system call: below `PATH_MAX`.
const STEP: usize = 4000;

/// How often a walk that raced with a rename is repeated.
const TRIES: u32 = 64;

/// Opens `path` below `root` with `flags`. No component may be a symbolic link or the root of another mount. So no path
/// leads out of the tree, even if another process changes it at the same time. An empty path is `root` itself. Paths
/// longer than `PATH_MAX` are walked in steps.
///
/// # Errors
/// `LOOP` if a component is a symbolic link. `XDEV` if a component is a mountpoint, or leads above `root`. Others
/// of `openat2(2)`.
pub(crate) fn beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let mut rest = path;
    let mut held: Option<OwnedFd> = None;
    while rest.len() > STEP {
        let cut = rest.get(..STEP).and_then(|head| head.iter().rposition(|&byte| byte == b'/'));
        let (step, tail) = rest.split_at_checked(cut.ok_or(Errno::NAMETOOLONG)?).ok_or(Errno::NAMETOOLONG)?;
        let dir = held.as_ref().map_or(root, AsFd::as_fd);
        held = Some(walk(dir, step, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, resolve)?);
        rest = tail.strip_prefix(b"/").unwrap_or(tail);
    }
    walk(held.as_ref().map_or(root, AsFd::as_fd), rest, flags | OFlags::NOFOLLOW, resolve)
}

/// Opens `path` as a process with the root directory `root` would: symbolic links are followed and stay below `root`.
/// The path may begin with a slash.
///
/// # Errors
/// Those of `openat2(2)`.
pub(crate) fn in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    walk(root, path, flags, resolve)
}

fn walk(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The walk raced with a rename or mount somewhere on the system.
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            opened => return opened,
        }
    }
}

/// Opens the directory `path` below `root` for reading, as [`beneath`] does.
///
/// # Errors
/// Those of [`beneath`].
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Attributes of `name` in `dir`, not following a symlink; `None` if there is no such name.
///
/// # Errors
/// Those of `fstatat(2)`.
pub(crate) fn stat_entry(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in the directory `dir`, without `.` and `..`, sorted by bytes.
///
/// # Errors
/// Those of `getdents64(2)`.
pub(crate) fn sorted_names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        fs::create_dir_all(dir.path().join("root/a/b")).expect("made");
        fs::write(dir.path().join("outside"), b"secret").expect("written");
        fs::write(dir.path().join("root/a/b/f"), b"x").expect("written");
        let fd = rustix::fs::open(dir.path().join("root"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        (dir, fd.expect("opened"))
    }

    #[test]
    fn no_component_leads_out() {
        let (dir, fd) = root();
        let at = |path: &str| dir.path().join("root").join(path);
        symlink("../outside", at("up")).expect("linked");
        symlink("/", at("slash")).expect("linked");
        symlink("b", at("a/inside")).expect("linked");
        symlink("/proc/self/root", at("magic")).expect("linked");
        let open = |path: &str| beneath(fd.as_fd(), path.as_bytes(), OFlags::RDONLY).map(drop);
        for (path, expected) in [
            ("", Ok(())),
            ("a/b/f", Ok(())),
            ("up", Err(Errno::LOOP)),
            ("slash/etc", Err(Errno::LOOP)),
            ("a/inside/f", Err(Errno::LOOP)),
            ("magic/etc", Err(Errno::LOOP)),
            ("../outside", Err(Errno::XDEV)),
            ("a/../../outside", Err(Errno::XDEV)),
            ("/etc", Err(Errno::XDEV)),
            ("none", Err(Errno::NOENT)),
        ] {
            assert_eq!(open(path), expected, "{path}");
        }
        let resolved = |path: &str| in_root(fd.as_fd(), path.as_bytes(), OFlags::RDONLY).map(drop);
        assert_eq!(resolved("up"), Err(Errno::NOENT), "outside is not below the root");
        assert_eq!(resolved("slash/a/inside/f"), Ok(()));
        assert_eq!(resolved("/a/b/f"), Ok(()));
    }

    /// A directory that another process repeatedly exchanges with a symbolic link is never followed.
    #[test]
    fn a_directory_that_becomes_a_link_is_not_followed() {
        let (dir, fd) = root();
        let at = |path: &str| dir.path().join("root").join(path);
        fs::create_dir_all(dir.path().join("trap/b")).expect("made");
        fs::write(dir.path().join("trap/b/f"), b"secret").expect("written");
        symlink("../trap", at("link")).expect("linked");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&fd, "a", &fd, "link", flags).expect("exchanged");
                }
            });
            let (mut opened, mut tried) = (0, 0);
            // On a busy machine, the exchanging thread may make every early attempt fail.
            while tried < 5_000 || (opened == 0 && tried < 50_000_000) {
                tried += 1;
                if let Ok(file) = beneath(fd.as_fd(), b"a/b/f", OFlags::RDONLY) {
                    let mut byte = [0; 6];
                    assert_eq!(rustix::io::pread(&file, &mut byte, 0), Ok(1), "the file outside was opened");
                    opened += 1;
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(opened > 0);
        });
    }

    #[test]
    fn paths_longer_than_path_max() {
        let (_dir, fd) = root();
        let name = "d".repeat(200);
        let mut current = rustix::io::dup(&fd).expect("duplicated");
        for _ in 0..50 {
            rustix::fs::mkdirat(&current, &name, Mode::RWXU).expect("made");
            current = beneath(current.as_fd(), name.as_bytes(), OFlags::PATH).expect("opened");
        }
        let path = vec![name; 50].join("/");
        assert!(path.len() > 10_000);
        let found = beneath(fd.as_fd(), path.as_bytes(), OFlags::PATH).expect("opened");
        let ino = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("stat").st_ino;
        assert_eq!(ino(&found), ino(&current));
    }
}
