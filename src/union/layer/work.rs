//! The work directory: changes are prepared in it, then made visible by one rename or link.

use std::ffi::{CStr, CString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use crate::confined::xattr::{self, Target};
use crate::union::layer::{Capabilities, Stat, UpperDir};

/// The directory `work` inside `workdir=`, as the kernel lays it out. Nothing in it outlives a mount.
#[derive(Debug)]
pub struct WorkDir {
    dir: UpperDir,
    /// Number of the next temporary name.
    next: AtomicU64,
    /// Turns the numbers into unpredictable names: a keyed hash, with a random key from the kernel.
    names: RandomState,
    capabilities: Capabilities,
    /// Name of the whiteout that is linked into the upper; replaced when it has reached the maximum of links.
    pub(super) whiteout: Mutex<Option<CString>>,
}

/// A file being prepared in the work directory. It is removed if dropped without being published.
#[derive(Debug)]
pub struct Staged<'a> {
    work: &'a WorkDir,
    /// `None` if the file has no name (`O_TMPFILE`) or was published.
    name: Option<CString>,
    /// The open file, for regular files.
    file: Option<OwnedFd>,
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(errno) = self.work.dir.remove_tree(&name)
        {
            tracing::warn!("work directory: cannot remove {name:?}: {errno}");
        }
    }
}

impl WorkDir {
    /// Takes over the emptied directory `dir`.
    pub(super) fn new(dir: UpperDir, capabilities: Capabilities) -> Self {
        Self { dir, next: AtomicU64::new(0), names: RandomState::new(), capabilities, whiteout: Mutex::new(None) }
    }

    /// An unused and unpredictable name in the work directory. (The kernel counts (`ovl_tempname()`) and closes
    /// the directory to all others; so do we, but may not be able to.)
    pub(crate) fn temporary_name(&self) -> CString {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        CString::new(format!("#{:016x}", self.names.hash_one(n))).unwrap_or_default()
    }

    /// The file or directory `name` in the work directory, as a staged one.
    pub(super) fn staged(&self, name: CString) -> Staged<'_> {
        Staged { work: self, name: Some(name), file: None }
    }

    /// Capabilities of the file system.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The directory itself.
    pub fn dir(&self) -> &UpperDir {
        &self.dir
    }

    /// Stages an empty regular file; a nameless one if `nameless` asks for it and the file system supports it.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub(crate) fn stage_file(&self, mode: u32, nameless: bool) -> Result<Staged<'_>, Errno> {
        if nameless && self.capabilities.nameless_files {
            let file = self.dir.create_tmpfile(mode)?;
            return Ok(Staged { work: self, name: None, file: Some(file) });
        }
        let name = self.temporary_name();
        let file = self.dir.create_file(&name, mode, OFlags::RDWR)?;
        Ok(Staged { work: self, name: Some(name), file: Some(file) })
    }

    /// Stages a directory.
    ///
    /// # Errors
    /// Those of `mkdirat(2)`.
    pub(crate) fn stage_dir(&self, mode: u32) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        self.dir.make_dir(&name, mode)?;
        Ok(Staged { work: self, name: Some(name), file: None })
    }

    /// Stages a symlink.
    ///
    /// # Errors
    /// Those of `symlinkat(2)`.
    pub(crate) fn stage_symlink(&self, target: &std::ffi::OsStr) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        self.dir.make_symlink(&name, target)?;
        Ok(Staged { work: self, name: Some(name), file: None })
    }

    /// Stages a device, fifo or socket.
    ///
    /// # Errors
    /// Those of `mknodat(2)`.
    pub(crate) fn stage_node(&self, mode: u32, rdev: (u32, u32)) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        self.dir.make_node(&name, mode, rdev)?;
        Ok(Staged { work: self, name: Some(name), file: None })
    }

    /// Stages a further name of `name` in `dir`.
    ///
    /// # Errors
    /// Those of `linkat(2)`.
    pub(crate) fn stage_link(&self, dir: &UpperDir, name: &CStr) -> Result<Staged<'_>, Errno> {
        let staged = self.temporary_name();
        self.dir.link(dir, name, &staged)?;
        Ok(Staged { work: self, name: Some(staged), file: None })
    }

    /// Stages a name for the open file `file`, which may have none yet.
    ///
    /// # Errors
    /// Those of `linkat(2)`.
    pub(crate) fn stage_open_file(&self, file: BorrowedFd<'_>) -> Result<Staged<'_>, Errno> {
        let staged = self.temporary_name();
        self.dir.link_open_file(file, &staged)?;
        Ok(Staged { work: self, name: Some(staged), file: None })
    }

    /// Moves `name` out of `dir` in one step, then removes it with everything in it.
    ///
    /// # Errors
    /// Those of `renameat(2)`. If the removal fails, the rest stays in the work directory until the next mount.
    pub(crate) fn discard(&self, dir: &UpperDir, name: &CStr) -> Result<(), Errno> {
        let staged = self.temporary_name();
        dir.rename(name, &self.dir, &staged, RenameFlags::empty())?;
        drop(Staged { work: self, name: Some(staged), file: None });
        Ok(())
    }

    /// Removes everything in the directory.
    ///
    /// # Errors
    /// Those of listing and `unlinkat(2)`.
    pub(super) fn empty(dir: &UpperDir) -> Result<(), Errno> {
        let mut names: Vec<CString> = Vec::new();
        dir.list(|entry| {
            names.push(entry.name.to_owned());
            Ok(())
        })?;
        names.iter().try_for_each(|name| dir.remove_tree(name))
    }
}

impl<'a> Staged<'a> {
    /// The work directory that it is staged in.
    pub(super) fn work(&self) -> &'a WorkDir {
        self.work
    }

    /// Forgets the staged name, which is no longer in the work directory or must stay there.
    pub(super) fn keep(mut self) {
        self.name = None;
    }

    /// The open file of a staged regular file.
    ///
    /// # Errors
    /// `IO` for what is not a regular file.
    pub fn file(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.file.as_ref().map(AsFd::as_fd).ok_or(Errno::IO)
    }

    /// The directory and name by which attributes are changed. A nameless file has neither: use [`Staged::file`].
    pub fn dir_and_name(&self) -> Option<(&'a UpperDir, &CStr)> {
        self.name.as_deref().map(|name| (&self.work.dir, name))
    }

    /// Its attributes.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn stat(&self) -> Result<Stat, Errno> {
        match (&self.name, &self.file) {
            (_, Some(file)) => Stat::of(file.as_fd(), c""),
            (Some(name), None) => Stat::of(self.work.dir.as_fd(), name),
            (None, None) => Err(Errno::IO),
        }
    }

    /// Sets an attribute of it.
    ///
    /// # Errors
    /// Those of `setxattr(2)`.
    pub(crate) fn set_xattr(&self, key: &CStr, value: &[u8]) -> Result<(), Errno> {
        let target = match (&self.name, &self.file) {
            (Some(name), _) => Target { dir: self.work.dir.as_fd(), name },
            (None, Some(file)) => Target { dir: file.as_fd(), name: c"" },
            (None, None) => return Err(Errno::IO),
        };
        xattr::set(target, key, value, 0)
    }

    /// Makes it visible as the unused name `name` in `dir`. Returns the open file, if it is one.
    ///
    /// # Errors
    /// `EXIST`; others of `linkat(2)` and `renameat2(2)`. Nothing has changed on an error.
    pub(crate) fn publish_new(mut self, dir: &UpperDir, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
        match (&self.name, &self.file) {
            (None, Some(file)) => dir.link_open_file(file.as_fd(), name)?,
            (Some(staged), _) if self.work.capabilities.noreplace => {
                self.work.dir.rename(staged, dir, name, RenameFlags::NOREPLACE)?;
            }
            // The caller holds the directory's lock and nothing else writes to the upper, so a plain rename has the same effect.
            (Some(_), _) if dir.stat(name)?.is_some() => return Err(Errno::EXIST),
            (Some(staged), _) => self.work.dir.rename(staged, dir, name, RenameFlags::empty())?,
            (None, None) => return Err(Errno::IO),
        }
        self.name = None;
        Ok(self.file.take())
    }

    /// Makes it visible as `name` in `dir` in place of the file or whiteout of that name, in one step.
    ///
    /// # Errors
    /// Those of `renameat(2)`. Nothing has changed on an error.
    pub(crate) fn publish_over(mut self, dir: &UpperDir, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
        if self.name.is_none() {
            let staged = self.work.temporary_name();
            self.work.dir.link_open_file(self.file()?, &staged)?;
            self.name = Some(staged);
        }
        let Some(staged) = &self.name else { return Err(Errno::IO) };
        self.work.dir.rename(staged, dir, name, RenameFlags::empty())?;
        self.name = None;
        Ok(self.file.take())
    }

    /// Exchanges it with `name` in `dir`: the staged file becomes visible, and the former one is staged.
    ///
    /// # Errors
    /// Those of `renameat2(2)`. Nothing has changed on an error.
    pub fn swap(&self, dir: &UpperDir, name: &CStr) -> Result<(), Errno> {
        let Some(staged) = &self.name else { return Err(Errno::IO) };
        self.work.dir.rename(staged, dir, name, RenameFlags::EXCHANGE)
    }

    /// A descriptor of a file that will never get a name: an open file if it is a regular one, otherwise a reference
    /// (`O_PATH`). The staged name is removed.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub(crate) fn into_nameless(mut self) -> Result<OwnedFd, Errno> {
        match (self.file.take(), &self.name) {
            (Some(file), _) => Ok(file),
            (None, Some(name)) => self.work.dir.open_reference(name),
            (None, None) => Err(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(path)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn open(path: &Path) -> UpperDir {
        fs::create_dir(path).expect("a directory");
        UpperDir::new(fs::File::open(path).expect("a directory").into())
    }

    /// A staged file is published whole or leaves nothing, with all capabilities of the upper and with fewer.
    #[test]
    fn staged_files_are_published_or_vanish() {
        for (nameless_files, noreplace) in [(true, true), (false, true), (false, false)] {
            let base = std::env::var_os("STRATAFS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
            let directory = tempfile::Builder::new().prefix("stratafs-work-").tempdir_in(base).expect("a directory");
            let (work_path, upper_path) = (directory.path().join("work"), directory.path().join("upper"));
            let (dir, upper) = (open(&work_path), open(&upper_path));
            let probed = Capabilities::probe(&dir, true).expect("probed");
            let capabilities =
                Capabilities { nameless_files: nameless_files && probed.nameless_files, noreplace, ..probed };
            let work = WorkDir::new(dir, capabilities);

            drop(work.stage_file(0o600, true).expect("staged"));
            drop(work.stage_dir(0o700).expect("staged"));
            assert!(names(&work_path).is_empty(), "dropped stages are removed");

            let staged = work.stage_file(0o600, true).expect("staged");
            staged.publish_new(&upper, c"new").expect("published");
            let again = work.stage_file(0o600, true).expect("staged");
            assert_eq!(again.publish_new(&upper, c"new").err(), Some(Errno::EXIST));

            fs::write(upper_path.join("new"), "old content").expect("written");
            let staged = work.stage_file(0o600, true).expect("staged");
            staged.publish_over(&upper, c"new").expect("published");
            assert_eq!(fs::read(upper_path.join("new")).expect("read"), b"");

            fs::create_dir_all(upper_path.join("full/of/things")).expect("directories");
            work.discard(&upper, c"full").expect("discarded");
            assert_eq!(names(&upper_path), ["new"]);
            assert!(names(&work_path).is_empty(), "{:?}", names(&work_path));
        }
    }
}
