//! Whiteouts in the upper: making them, and replacing or leaving them in a change.
//!
//! If the file system has `RENAME_WHITEOUT` and `RENAME_EXCHANGE`, a change that needs a whiteout is one system call.
//! Otherwise [`Hidden`] covers the steps: it creates `.wh.NAME` beside `NAME`, which hides `NAME` of the lower layers but
//! not of the upper, and removes it once the real whiteout is in place. So the union shows the old state until one
//! rename, and the new one after it. All readers of layers know this form, except the kernel's overlayfs: after a crash
//! between the steps it shows the lower file, and an empty file `.wh.NAME`.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use crate::marks::{AUFS_PREFIX, AufsName, Mark, decode_aufs_name};
use crate::union::layer::UpperDir;
use crate::union::layer::upper::UpperWhiteouts;
use crate::union::layer::work::{Staged, WorkDir};

/// Longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// A name in a directory of the upper.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub dir: &'a UpperDir,
    /// The name in it.
    pub name: &'a CStr,
}

impl<'a> Place<'a> {
    /// The name `name` in `dir`.
    pub fn new(dir: &'a UpperDir, name: &'a CStr) -> Self {
        Self { dir, name }
    }

    fn rename(self, to: Place<'_>, flags: RenameFlags) -> Result<(), Errno> {
        self.dir.rename(self.name, to.dir, to.name, flags)
    }
}

/// What a move involves.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The lower layers have the source's name, so a whiteout must take its place.
    pub whiteout_behind: bool,
    /// The target name is a whiteout.
    pub over_whiteout: bool,
    /// The source is a directory.
    pub is_dir: bool,
}

/// True for the errors by which a file system refuses unknown flags of `renameat2(2)`.
fn refuses_flags(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// A file `.wh.NAME`, which hides `NAME` in the lower layers. It stays until [`Hidden::reveal`].
#[must_use]
struct Hidden<'a> {
    dir: &'a UpperDir,
    /// `None` if there can be no such file: the name is too long or has a meaning of its own.
    file: Option<CString>,
}

impl<'a> Hidden<'a> {
    /// Creates the file.
    fn new(place: Place<'a>) -> Result<Self, Errno> {
        let hidden = Self::named(place);
        let Some(file) = &hidden.file else { return Ok(hidden) };
        match place.dir.create_file(file, 0o600, OFlags::WRONLY) {
            Ok(_) => Ok(hidden),
            // The file was left by a crash or by another driver, or is a user's own.
            Err(Errno::EXIST) => Ok(Self::of(place)),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the existing file.
    fn of(place: Place<'a>) -> Self {
        let hidden = Self::named(place);
        let is_users = |file: &CString| {
            // When in doubt, the file is left alone.
            place.dir.stat(file).map_or(true, |stat| stat.is_some_and(|stat| stat.is_whiteout_device()))
                || place.dir.marks(file).map_or(true, |marks| marks.plain)
        };
        Self { file: hidden.file.filter(|file| !is_users(file)), ..hidden }
    }

    /// Creates the file for the old name of a move to `to`. There is none if `to` is its place.
    fn behind(from: Place<'a>, to: Place<'_>) -> Result<Self, Errno> {
        let named = Self::named(from);
        if named.file.as_deref() == Some(to.name) && from.dir.stat_self()?.id() == to.dir.stat_self()?.id() {
            return Ok(Self { file: None, ..named });
        }
        Self::new(from)
    }

    /// The file, whether or not it exists.
    fn named(place: Place<'a>) -> Self {
        let bytes = [AUFS_PREFIX, place.name.to_bytes()].concat();
        let meaning = decode_aufs_name(OsStr::from_bytes(&bytes));
        let hides = bytes.len() <= NAME_MAX && meaning == AufsName::Whiteout(OsStr::from_bytes(place.name.to_bytes()));
        Self { dir: place.dir, file: if hides { CString::new(bytes).ok() } else { None } }
    }

    /// Removes the file. If that fails, the file stays; what it hides is already hidden or replaced.
    fn reveal(self) {
        let Some(file) = &self.file else { return };
        match self.dir.remove_file(file) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                let place = self.dir.shown_path(file);
                tracing::warn!("{place:?}: a whiteout that is no longer needed is left behind: {errno}");
            }
        }
    }
}

/// A directory of the upper that was emptied of its whiteouts.
#[derive(Debug)]
#[must_use]
pub enum Cleared<'a> {
    /// An empty directory has taken its place; the directory itself is staged.
    Swapped(Staged<'a>),
    /// It lost these entries, and the file `.wh.NAME` hides the lower files.
    Emptied(Vec<CString>),
}

impl WorkDir {
    /// Stages a whiteout: a further link of the shared one.
    ///
    /// # Errors
    /// Those of `linkat(2)` and of making the shared one.
    pub(crate) fn stage_whiteout(&self) -> Result<Staged<'_>, Errno> {
        let name = self.temporary_name();
        self.link_whiteout(self.dir(), &name)?;
        Ok(self.staged(name))
    }

    /// Makes the unused name `name` in `dir` a whiteout.
    ///
    /// # Errors
    /// `EXIST`; others of `linkat(2)` and of making the shared one.
    pub(crate) fn link_whiteout(&self, dir: &UpperDir, name: &CStr) -> Result<(), Errno> {
        let mut shared = self.whiteout.lock();
        if let Some(existing) = shared.as_ref() {
            match dir.link(self.dir(), existing, name) {
                // MLINK: the shared one has 65,000 links (the limit of ext4). NOENT: another process emptied
                // the work directory.
                Err(Errno::MLINK | Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP) => {}
                done => return done,
            }
            if let Some(full) = shared.take()
                && let Err(errno) = self.dir().remove_file(&full)
            {
                tracing::debug!("work directory: cannot remove {full:?}: {errno}");
            }
        }
        let fresh = self.temporary_name();
        self.make_whiteout(&fresh)?;
        match dir.link(self.dir(), &fresh, name) {
            Ok(()) => {
                *shared = Some(fresh);
                Ok(())
            }
            // The file system has no hard links: the file is moved there instead.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::MLINK) => {
                self.staged(fresh).publish_new(dir, name).map(|_| ())
            }
            Err(errno) => {
                self.dir().remove_file(&fresh)?;
                Err(errno)
            }
        }
    }

    fn make_whiteout(&self, name: &CStr) -> Result<(), Errno> {
        match self.capabilities().whiteouts {
            UpperWhiteouts::Device => self.dir().make_node(name, libc::S_IFCHR, (0, 0)),
            UpperWhiteouts::Xattr(namespace) => {
                let staged = self.staged(name.to_owned());
                drop(self.dir().create_file(name, 0o600, OFlags::WRONLY)?);
                // The file may also be linked to a name `.wh.NAME`, and must not delete NAME then.
                for mark in [Mark::Whiteout, Mark::Plain] {
                    let key = CString::new(namespace.xattr(mark)).unwrap_or_default();
                    staged.set_xattr(&key, b"y")?;
                }
                staged.keep();
                Ok(())
            }
        }
    }

    /// Replaces the directory `place`, with everything in it, by a whiteout.
    ///
    /// # Errors
    /// Those of `renameat2(2)` and of making the whiteout. Nothing has changed on an error.
    pub(crate) fn whiteout_over_dir(&self, place: Place<'_>) -> Result<(), Errno> {
        let whiteout = self.stage_whiteout()?;
        if self.capabilities().exchange {
            match whiteout.swap(place.dir, place.name) {
                Err(errno) if refuses_flags(errno) => {}
                // The staged name is now the directory, which is removed when dropped.
                done => return done,
            }
        }
        let hidden = Hidden::new(place)?;
        let aside = self.temporary_name();
        let removed = Place::new(self.dir(), &aside);
        if let Err(errno) = place.rename(removed, RenameFlags::empty()) {
            hidden.reveal();
            return Err(errno);
        }
        match whiteout.publish_new(place.dir, place.name) {
            Ok(_) => hidden.reveal(),
            // `.wh.NAME` is a whiteout too, and stays.
            Err(errno) if hidden.file.is_some() => tracing::warn!("{:?}: {errno}", place.dir.shown_path(place.name)),
            Err(errno) => {
                removed.rename(place, RenameFlags::empty())?;
                return Err(errno);
            }
        }
        drop(self.staged(aside));
        Ok(())
    }

    /// Moves `from` to `to`, over a file, an empty directory or a whiteout, as `how` says.
    ///
    /// The lower file with the source's name never becomes visible, and the target is either the old or the new one. There is no
    /// `.wh.NAME` for names longer than 251 bytes: without `RENAME_WHITEOUT`, a crash may then leave both names.
    ///
    /// # Errors
    /// Those of `renameat2(2)`. Nothing has changed on an error.
    pub(crate) fn move_to(&self, from: Place<'_>, to: Place<'_>, how: Move) -> Result<(), Errno> {
        let Move { whiteout_behind, over_whiteout, is_dir } = how;
        let dir_over_whiteout = is_dir && over_whiteout;
        if whiteout_behind && !dir_over_whiteout && self.capabilities().rename_whiteout {
            match from.rename(to, RenameFlags::WHITEOUT) {
                Err(errno) if refuses_flags(errno) => {}
                done => return done,
            }
        }
        // The target's whiteout can become the one that stays behind.
        if over_whiteout && (is_dir || whiteout_behind) && self.capabilities().exchange {
            match from.rename(to, RenameFlags::EXCHANGE) {
                Err(errno) if refuses_flags(errno) => {}
                Ok(()) if !whiteout_behind => {
                    if let Err(errno) = from.dir.remove_file(from.name) {
                        // The whiteout hides nothing.
                        tracing::warn!("a whiteout that is no longer needed is left behind: {errno}");
                    }
                    return Ok(());
                }
                done => return done,
            }
        }
        let moved = || match dir_over_whiteout {
            true => self.dir_over_whiteout(from, to),
            false => from.rename(to, RenameFlags::empty()),
        };
        if !whiteout_behind {
            return moved();
        }
        let hidden = Hidden::behind(from, to)?;
        if let Err(errno) = moved() {
            hidden.reveal();
            return Err(errno);
        }
        self.hide_for_good(from, hidden);
        Ok(())
    }

    /// Puts a real whiteout where [`Hidden`] stood in for one. If that fails, the latter stays, because it is a whiteout too.
    fn hide_for_good(&self, place: Place<'_>, hidden: Hidden<'_>) {
        match self.link_whiteout(place.dir, place.name) {
            Ok(()) => hidden.reveal(),
            Err(errno) => tracing::error!("{:?}: no whiteout: {errno}", place.dir.shown_path(place.name)),
        }
    }

    /// Moves the directory `from` over the whiteout `to` by plain calls.
    fn dir_over_whiteout(&self, from: Place<'_>, to: Place<'_>) -> Result<(), Errno> {
        let hidden = Hidden::new(to)?;
        if let Err(errno) = to.dir.remove_file(to.name) {
            hidden.reveal();
            return Err(errno);
        }
        if let Err(errno) = from.rename(to, RenameFlags::empty()) {
            self.hide_for_good(to, hidden);
            return Err(errno);
        }
        hidden.reveal();
        Ok(())
    }

    /// Removes the entries of the directory `place`, held as `held`; all of them are whiteouts. The lower files stay hidden.
    ///
    /// # Errors
    /// Those of listing and `unlinkat(2)`. The directory is unchanged on an error.
    pub(crate) fn empty_in_place(&self, place: Place<'_>, held: &UpperDir) -> Result<Cleared<'static>, Errno> {
        let mut names: Vec<CString> = Vec::new();
        held.list(|entry| {
            names.push(entry.name.to_owned());
            Ok(())
        })?;
        // Kept until the directory is replaced or its whiteouts are back.
        let _hidden = Hidden::new(place)?;
        if let Err(errno) = names.iter().try_for_each(|name| held.remove_tree(name)) {
            self.refill(place, held, &names)?;
            return Err(errno);
        }
        Ok(Cleared::Emptied(names))
    }

    /// Undoes [`WorkDir::empty_in_place`].
    fn refill(&self, place: Place<'_>, held: &UpperDir, names: &[CString]) -> Result<(), Errno> {
        for name in names {
            let made = match decode_aufs_name(OsStr::from_bytes(name.to_bytes())) {
                AufsName::Plain => self.link_whiteout(held, name),
                _ => held.create_file(name, 0o600, OFlags::WRONLY).map(drop),
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Hidden::of(place).reveal();
        Ok(())
    }

    /// Called when the cleared directory has been replaced.
    pub(crate) fn end_cleared(&self, cleared: Cleared<'_>, place: Place<'_>) {
        match cleared {
            // Dropping it removes its staged name.
            Cleared::Swapped(staged) => drop(staged),
            Cleared::Emptied(_) => Hidden::of(place).reveal(),
        }
    }

    /// Called when the cleared directory was not replaced after all: restores it. `held` is the directory `place`.
    ///
    /// # Errors
    /// Those of `renameat2(2)` and of making whiteouts. The lower files stay hidden on disk.
    pub(crate) fn put_back(&self, cleared: &Cleared<'_>, place: Place<'_>, held: &UpperDir) -> Result<(), Errno> {
        match cleared {
            Cleared::Swapped(staged) => staged.swap(place.dir, place.name),
            Cleared::Emptied(names) => self.refill(place, held, names),
        }
    }
}

impl Staged<'_> {
    /// Makes the staged directory visible as `name` in `dir`, in place of the whiteout of that name.
    ///
    /// # Errors
    /// Those of `renameat2(2)`. Nothing has changed then.
    pub(crate) fn publish_over_whiteout(self, dir: &UpperDir, name: &CStr) -> Result<(), Errno> {
        let (work, place) = (self.work(), Place::new(dir, name));
        if work.capabilities().exchange {
            match self.swap(dir, name) {
                Err(errno) if refuses_flags(errno) => {}
                // The staged name is now the whiteout, which is removed when dropped.
                done => return done,
            }
        }
        let (staged_in, staged) = self.dir_and_name().ok_or(Errno::IO)?;
        work.dir_over_whiteout(Place::new(staged_in, staged), place)?;
        self.keep();
        Ok(())
    }
}
