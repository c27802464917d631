//! Removes a directory with everything in it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::Stat;
use super::open::beneath;

/// Number of levels whose directories are held open: the deepest ones. The others are opened again through `..`.
const HELD: usize = 16;

/// How often, in one removal, an emptied directory may be found non-empty again.
const REFILLS: u32 = 16;

/// Removes `name` in `dir`; if it is a directory, also everything in it, at any depth, with a bounded number of
/// descriptors. Symbolic links are removed, not followed. Directories that their owner may not write to are made writable
/// first. Succeeds if `name` does not exist.
///
/// # Errors
/// `XDEV` or `BUSY` if something is mounted in the tree. `NOTEMPTY` if another process keeps adding files. `AGAIN` if another
/// process moves its directories. Others of `unlinkat(2)` and of listing. A part of the tree may have been removed then.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlink(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let mut removal = Removal { root: dir, levels: Vec::new(), refills: 0 };
    if !removal.enter(name.to_owned())? {
        return Ok(());
    }
    while let Some(next) = removal.next_subdirectory()? {
        match next {
            NextDir::Enter(subdirectory) => {
                removal.enter(subdirectory)?;
            }
            NextDir::Leave => removal.leave()?,
        }
    }
    Ok(())
}

/// Removes one name. Succeeds if it does not exist.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

struct Removal<'a> {
    /// The directory that holds the tree.
    root: BorrowedFd<'a>,
    /// The directories from the top of the tree down to the one that is being emptied.
    levels: Vec<Level>,
    refills: u32,
}

/// A directory on the way down.
struct Level {
    /// Its name in the level above.
    name: CString,
    /// Its mount, device and inode number: the directory found by `..` must be the same.
    identity: Identity,
    /// Its descriptor and its remaining subdirectories; `None` after the levels below have taken its place among the held ones.
    held: Option<(OwnedFd, Vec<CString>)>,
}

type Identity = (u64, super::Device, u64);

/// The next step in the deepest directory.
enum NextDir {
    Enter(CString),
    Leave,
}

impl Removal<'_> {
    /// The directory that holds the deepest level.
    fn above(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self.levels.len().checked_sub(2) {
            None => Ok(self.root),
            Some(index) => {
                let held = self.levels.get(index).and_then(|level| level.held.as_ref());
                held.map(|(dir, _)| dir.as_fd()).ok_or(Errno::IO)
            }
        }
    }

    /// Removes the subdirectory `name` of the deepest level if it is empty; otherwise enters it and removes everything
    /// except directories. Returns true if it entered it.
    fn enter(&mut self, name: CString) -> Result<bool, Errno> {
        let parent = match self.levels.last() {
            None => self.root,
            Some(level) => level.held.as_ref().map(|(dir, _)| dir.as_fd()).ok_or(Errno::IO)?,
        };
        let inside = !self.levels.is_empty();
        match permitted(parent, inside, || unlink(parent, &name, AtFlags::REMOVEDIR)) {
            Ok(()) => return Ok(false),
            // Another file has taken its place.
            Err(Errno::NOTDIR) => return unlink(parent, &name, AtFlags::empty()).map(|()| false),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let dir = match open(parent, &name) {
            Err(Errno::NOENT) => return Ok(false),
            opened => opened?,
        };
        let identity = identity(dir.as_fd())?;
        let subdirectories = remove_files(dir.as_fd())?;
        self.levels.push(Level { name, identity, held: Some((dir, subdirectories)) });
        if let Some(level) = self.levels.len().checked_sub(HELD + 1).and_then(|index| self.levels.get_mut(index)) {
            level.held = None;
        }
        Ok(true)
    }

    /// The next step; `None` when everything is removed.
    fn next_subdirectory(&mut self) -> Result<Option<NextDir>, Errno> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let (_, subdirectories) = level.held.as_mut().ok_or(Errno::IO)?;
        Ok(Some(subdirectories.pop().map_or(NextDir::Leave, NextDir::Enter)))
    }

    /// Leaves the deepest level, which is empty, and removes it.
    fn leave(&mut self) -> Result<(), Errno> {
        self.hold_above()?;
        let above = self.above()?;
        let inside = self.levels.len() > 1;
        let Some(level) = self.levels.last() else { return Ok(()) };
        match permitted(above, inside, || unlink(above, &level.name, AtFlags::REMOVEDIR)) {
            Ok(()) => {}
            Err(Errno::NOTDIR) => unlink(above, &level.name, AtFlags::empty())?,
            // Files were added since it was listed.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.refills += 1;
                if self.refills > REFILLS {
                    return Err(Errno::NOTEMPTY);
                }
                let name = level.name.clone();
                self.levels.pop();
                return self.enter(name).map(|_| ());
            }
            Err(errno) => return Err(errno),
        }
        self.levels.pop();
        Ok(())
    }

    /// Opens the level above the deepest one again, if it is not held, and lists its remaining entries.
    fn hold_above(&mut self) -> Result<(), Errno> {
        let Some(index) = self.levels.len().checked_sub(2) else { return Ok(()) };
        let Some([above, level]) = self.levels.get_mut(index..) else { return Ok(()) };
        let (None, Some((dir, _))) = (&above.held, &level.held) else { return Ok(()) };
        let found = rustix::fs::openat(dir, c"..", LISTING, Mode::empty())?;
        if identity(found.as_fd())? != above.identity {
            // The deepest directory was moved elsewhere and is left there.
            return Err(Errno::AGAIN);
        }
        let mut left = remove_files(found.as_fd())?;
        left.retain(|name| *name != level.name);
        above.held = Some((found, left));
        Ok(())
    }
}

const LISTING: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

fn identity(dir: BorrowedFd<'_>) -> Result<Identity, Errno> {
    let stat = Stat::of(dir, c"")?;
    Ok((stat.mount, stat.device, stat.ino))
}

/// Opens the subdirectory `name` for listing; makes it readable first if necessary.
fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match beneath(parent, name.to_bytes(), LISTING) {
        Err(Errno::ACCESS) => {
            let dir = beneath(parent, name.to_bytes(), OFlags::PATH | OFlags::DIRECTORY)?;
            open_up(dir.as_fd())?;
            beneath(parent, name.to_bytes(), LISTING)
        }
        opened => opened,
    }
}

/// Calls `remove`, which removes a name in `dir`. If `dir` forbids that and is `inside` the removed tree, makes it
/// writable and calls `remove` once more.
fn permitted(dir: BorrowedFd<'_>, inside: bool, remove: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match remove() {
        Err(Errno::ACCESS) if inside && open_up(dir).is_ok() => remove(),
        done => done,
    }
}

/// Gives its owner all rights to a directory.
fn open_up(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::chmod(super::dir::proc_path(dir), Mode::RWXU)
}

/// Removes everything except directories from `dir`; returns the names of the directories.
fn remove_files(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut subdirectories = Vec::new();
    let mut files = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let is_dir = entry.file_type() == FileType::Directory;
            if is_dir { &mut subdirectories } else { &mut files }.push(name.to_owned());
        }
    }
    for file in files {
        match permitted(dir, true, || unlink(dir, &file, AtFlags::empty())) {
            Err(Errno::ISDIR) => subdirectories.push(file),
            done => done?,
        }
    }
    Ok(subdirectories)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn open_root(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("opened")
    }

    #[test]
    fn everything_goes_and_links_are_not_followed() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        fs::create_dir_all(dir.path().join("kept")).expect("made");
        fs::write(dir.path().join("kept/f"), b"x").expect("written");
        for level in ["t", "t/a", "t/a/b", "t/c"] {
            fs::create_dir(dir.path().join(level)).expect("made");
            fs::write(dir.path().join(level).join("f"), b"x").expect("written");
            symlink(dir.path().join("kept"), dir.path().join(level).join("link")).expect("linked");
        }
        let root = open_root(dir.path());
        assert_eq!(remove_tree(root.as_fd(), c"t"), Ok(()));
        assert_eq!(remove_tree(root.as_fd(), c"t"), Ok(()), "gone is no error");
        assert!(!dir.path().join("t").exists() && dir.path().join("kept/f").exists());
        symlink("kept", dir.path().join("l")).expect("linked");
        assert_eq!(remove_tree(root.as_fd(), c"l"), Ok(()));
        assert!(dir.path().join("kept/f").exists());
    }

    /// 100,000 levels: neither the path's length nor the number of descriptors matters.
    #[test]
    fn a_deep_tree_takes_few_descriptors() {
        const DEPTH: usize = 100_000;
        // In memory, because the test is not about the disk.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let root = open_root(dir.path());
        let mut current = rustix::io::dup(&root).expect("duplicated");
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&current, "d", Mode::RWXU).expect("made");
            current = beneath(current.as_fd(), b"d", OFlags::PATH | OFlags::DIRECTORY).expect("opened");
        }
        drop(current);
        let mut removal = Removal { root: root.as_fd(), levels: Vec::new(), refills: 0 };
        assert_eq!(removal.enter(c"d".to_owned()), Ok(true));
        let mut most = 0;
        while let Some(next) = removal.next_subdirectory().expect("listed") {
            match next {
                NextDir::Enter(name) => drop(removal.enter(name).expect("entered")),
                NextDir::Leave => removal.leave().expect("removed"),
            }
            let held = removal.levels.iter().rev().take(2 * HELD).filter(|level| level.held.is_some()).count();
            most = held.max(most);
        }
        assert_eq!(most, HELD);
        assert!(!dir.path().join("d").exists());
    }

    /// Deep and wide: closed levels are listed again, and nothing is left out.
    #[test]
    fn levels_that_were_let_go_are_found_again() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mut path = dir.path().join("t");
        for _ in 0..3 * HELD {
            for name in ["a", "d", "z"] {
                fs::create_dir_all(path.join(name).join("x/y")).expect("made");
                fs::write(path.join(name).join("f"), b"x").expect("written");
            }
            path.push("d");
        }
        let root = open_root(dir.path());
        assert_eq!(remove_tree(root.as_fd(), c"t"), Ok(()));
        assert!(!dir.path().join("t").exists());
    }

    /// If another process adds files after each listing, the removal fails after a bounded number of attempts.
    #[test]
    fn a_directory_that_is_filled_again_ends_in_an_error() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        fs::create_dir_all(dir.path().join("t/sub")).expect("made");
        let root = open_root(dir.path());
        let mut removal = Removal { root: root.as_fd(), levels: Vec::new(), refills: 0 };
        assert_eq!(removal.enter(c"t".to_owned()), Ok(true));
        let mut left = 0;
        let outcome = loop {
            match removal.next_subdirectory() {
                Ok(Some(NextDir::Enter(name))) => drop(removal.enter(name).expect("removed")),
                Ok(Some(NextDir::Leave)) => {
                    fs::create_dir(dir.path().join(format!("t/{left}"))).expect("filled");
                    left += 1;
                    if let Err(errno) = removal.leave() {
                        break errno;
                    }
                }
                other => panic!("it came to an end: {:?}", other.is_ok()),
            }
        };
        assert_eq!((outcome, left), (Errno::NOTEMPTY, REFILLS + 1));
    }

    /// A directory of the tree that becomes a symbolic link between two steps is not followed.
    #[test]
    fn a_directory_that_becomes_a_link_is_not_followed() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("kept/sub")).expect("made");
        fs::write(at("kept/f"), b"x").expect("written");
        fs::write(at("kept/sub/f"), b"x").expect("written");
        let root = open_root(dir.path());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    drop(fs::create_dir_all(at("t/sub")));
                    drop(fs::write(at("t/sub/f"), b"x"));
                    drop(fs::rename(at("t/sub"), at("t/aside")));
                    drop(symlink("../kept/sub", at("t/sub")));
                    drop(fs::rename(at("t/aside"), at("t/sub2")));
                }
            });
            for _ in 0..200 {
                let removed = remove_tree(root.as_fd(), c"t");
                let expected = [Ok(()), Err(Errno::NOTEMPTY), Err(Errno::LOOP), Err(Errno::NOTDIR), Err(Errno::AGAIN)];
                assert!(expected.contains(&removed), "{removed:?}");
                assert!(at("kept/sub/f").exists() && at("kept/f").exists(), "it left the tree");
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    /// If a deep directory is moved elsewhere, the removal does not follow it.
    #[test]
    fn a_directory_that_was_moved_does_not_lead_elsewhere() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        fs::create_dir_all(dir.path().join("kept")).expect("made");
        fs::write(dir.path().join("kept/f"), b"x").expect("written");
        let root = open_root(dir.path());
        let mut path = dir.path().join("t");
        for _ in 0..HELD {
            path.push("d");
        }
        fs::create_dir_all(path.join("d/d/d")).expect("made");
        let mut removal = Removal { root: root.as_fd(), levels: Vec::new(), refills: 0 };
        assert_eq!(removal.enter(c"t".to_owned()), Ok(true));
        let mut moved = false;
        let outcome = loop {
            match removal.next_subdirectory() {
                Ok(Some(NextDir::Enter(name))) => drop(removal.enter(name)),
                Ok(Some(NextDir::Leave)) => {
                    if !moved && removal.levels.first().is_some_and(|level| level.held.is_none()) {
                        // The level below the first closed one.
                        fs::rename(dir.path().join("t/d"), dir.path().join("kept/d")).expect("moved");
                        moved = true;
                    }
                    if let Err(errno) = removal.leave() {
                        break Err(errno);
                    }
                }
                Ok(None) => break Ok(()),
                Err(errno) => break Err(errno),
            }
        };
        assert_eq!((moved, outcome), (true, Err(Errno::AGAIN)));
        assert!(dir.path().join("kept/f").exists());
    }

    #[test]
    fn directories_that_their_owner_may_not_write() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        fs::create_dir_all(dir.path().join("t/closed/sub")).expect("made");
        fs::write(dir.path().join("t/closed/f"), b"x").expect("written");
        for (path, mode) in [("t/closed/sub", 0o000), ("t/closed", 0o500), ("t", 0o555)] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).expect("mode");
        }
        let root = open_root(dir.path());
        let id = rustix::fs::Uid::from_raw(1000);
        if rustix::process::geteuid().is_root() {
            for path in ["", "t", "t/closed", "t/closed/sub", "t/closed/f"] {
                rustix::fs::chown(dir.path().join(path), Some(id), None).expect("owner");
            }
        }
        let remove = || remove_tree(root.as_fd(), c"t");
        // Capabilities belong to a thread, as does the user id for file accesses.
        let removed = std::thread::scope(|scope| {
            let as_user = || {
                rustix::thread::set_thread_uid(id).expect("another user");
                remove()
            };
            if rustix::process::geteuid().is_root() { scope.spawn(as_user).join().expect("ended") } else { remove() }
        });
        assert_eq!(removed, Ok(()));
        assert!(!dir.path().join("t").exists());
    }
}
