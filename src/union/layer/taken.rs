//! A file that is taken out of its layer with all its names. A copy takes its place, so the layer shows the same.
//!
//! Each name is exchanged for one of the copy, so each step can be undone without space on the disk: either the layer has the copy
//! under all names, or the file itself.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::confined::{self, FileId, Stat, Times, set_times_of};

/// A name of the file.
#[derive(Debug)]
struct Link {
    /// In the work directory: the copy's, and after the exchange the file's.
    staged: CString,
    /// The directory in the layer, and its times, which the exchange changes.
    dir: CString,
    times: Times,
    name: CString,
}

/// A file that was taken out of its layer. It has names in the work directory.
#[derive(Debug)]
pub(crate) struct Taken {
    layer: OwnedFd,
    work: OwnedFd,
    file: FileId,
    links: Vec<Link>,
}

impl Taken {
    /// Takes the file `file`, which has the `names` (directory and name) in `layer`. `staged` is the copy in the directory `work`.
    ///
    /// # Errors
    /// `STALE` without names; those of `linkat(2)` and `renameat2(2)`. On an error, the layer and `staged` are as before.
    pub(crate) fn take(
        layer: OwnedFd,
        work: OwnedFd,
        file: FileId,
        names: &[(CString, CString)],
        staged: &CStr,
    ) -> Result<Self, Errno> {
        let mut taken = Self { layer, work, file, links: Vec::new() };
        match taken.exchange_all(names, staged) {
            Ok(()) => Ok(taken),
            Err(errno) => {
                taken.undo();
                taken.remove_links(1);
                Err(errno)
            }
        }
    }

    fn exchange_all(&mut self, names: &[(CString, CString)], staged: &CStr) -> Result<(), Errno> {
        for (at, (dir, name)) in names.iter().enumerate() {
            // Read before the first exchange: several names may be in one directory.
            let times = Times::of(&Stat::of(self.open(dir)?.as_fd(), c"")?);
            let mut link = staged.to_owned();
            if at > 0 {
                link = CString::new([staged.to_bytes(), b".", at.to_string().as_bytes()].concat())
                    .map_err(|_| Errno::INVAL)?;
                rustix::fs::linkat(&self.work, staged, &self.work, &link, AtFlags::empty())?;
            }
            self.links.push(Link { staged: link, dir: dir.clone(), times, name: name.clone() });
        }
        self.links.first().ok_or(Errno::STALE)?;
        self.links.iter().try_for_each(|link| self.exchange(link))
    }

    fn open(&self, dir: &CStr) -> Result<OwnedFd, Errno> {
        confined::open_dir(self.layer.as_fd(), dir.to_bytes())
    }

    fn exchange(&self, link: &Link) -> Result<(), Errno> {
        let dir = self.open(&link.dir)?;
        rustix::fs::renameat_with(&self.work, &link.staged, &dir, &link.name, RenameFlags::EXCHANGE)?;
        set_times_of(dir.as_fd(), &link.times)
    }

    /// The file's name in the work directory.
    pub(crate) fn name(&self) -> &CStr {
        self.links.first().map(|link| link.staged.as_c_str()).unwrap_or_default()
    }

    /// Puts the file back into the layer, and removes the copy.
    pub(crate) fn put_back(self) {
        self.undo();
        self.remove_links(0);
    }

    /// The file has another name than [`Self::name`] now, and no further one in the work directory.
    pub(crate) fn keep(self) {
        self.remove_links(1);
    }

    fn undo(&self) {
        // An exchange may have been done although it failed: the time of the directory was not restored.
        let is_taken =
            |link: &&Link| Stat::of(self.work.as_fd(), &link.staged).is_ok_and(|stat| stat.id() == self.file);
        for link in self.links.iter().filter(is_taken) {
            if let Err(errno) = self.exchange(link) {
                tracing::error!("{:?}: the layer keeps a copy of it: {errno}", link.name);
            }
        }
    }

    /// Removes the names in the work directory from the one with the number `from` on.
    fn remove_links(&self, from: usize) {
        for link in self.links.iter().skip(from) {
            match rustix::fs::unlinkat(&self.work, &link.staged, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => tracing::warn!("work directory: {:?} is left behind: {errno}", link.staged),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn names(paths: &[(&str, &str)]) -> Vec<(CString, CString)> {
        let text = |text: &str| CString::new(text).expect("no NUL");
        paths.iter().map(|(dir, name)| (text(dir), text(name))).collect()
    }

    /// A layer with a file of three names, and its copy in the work directory.
    fn scene() -> tempfile::TempDir {
        let scene = tempfile::tempdir().expect("a directory");
        let at = |path: &str| scene.path().join(path);
        for dir in ["layer/a", "layer/b", "work"] {
            fs::create_dir_all(at(dir)).expect("made");
        }
        fs::write(at("layer/a/one"), "x").expect("made");
        fs::hard_link(at("layer/a/one"), at("layer/a/two")).expect("linked");
        fs::hard_link(at("layer/a/one"), at("layer/b/three")).expect("linked");
        fs::write(at("work/copy"), "x").expect("made");
        scene
    }

    fn take(scene: &Path, paths: &[(&str, &str)]) -> Result<Taken, Errno> {
        let open = |name: &str| OwnedFd::from(File::open(scene.join(name)).expect("a directory"));
        let layer = open("layer");
        let file = Stat::of(layer.as_fd(), c"a/one").expect("a file").id();
        Taken::take(layer, open("work"), file, &names(paths), c"copy")
    }

    fn numbers(scene: &Path) -> [u64; 3] {
        ["a/one", "a/two", "b/three"].map(|name| fs::metadata(scene.join("layer").join(name)).expect("a file").ino())
    }

    fn staged(scene: &Path) -> Vec<String> {
        let entries = fs::read_dir(scene.join("work")).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }

    const ALL: [(&str, &str); 3] = [("a", "one"), ("a", "two"), ("b", "three")];

    #[test]
    fn a_file_is_taken_with_all_its_names() {
        let scene = scene();
        let [file, ..] = numbers(scene.path());
        let copy = fs::metadata(scene.path().join("work/copy")).expect("a file").ino();
        let taken = take(scene.path(), &ALL).expect("taken");
        assert_eq!(numbers(scene.path()), [copy; 3]);
        let name = taken.name().to_str().expect("text").to_owned();
        fs::rename(scene.path().join("work").join(name), scene.path().join("file")).expect("moved");
        taken.keep();
        assert_eq!(fs::metadata(scene.path().join("file")).expect("a file").ino(), file);
        assert_eq!(staged(scene.path()), [""; 0]);
    }

    #[test]
    fn a_file_is_put_back_under_all_its_names() {
        let scene = scene();
        let before = numbers(scene.path());
        take(scene.path(), &ALL).expect("taken").put_back();
        assert_eq!(numbers(scene.path()), before);
        assert_eq!(staged(scene.path()), [""; 0]);
    }

    /// One of the names cannot be exchanged: all stay one file.
    #[test]
    fn a_failure_splits_no_file() {
        for wrong in 0..ALL.len() {
            let scene = scene();
            let before = numbers(scene.path());
            let mut paths = ALL;
            paths[wrong].1 = "missing";
            assert_eq!(take(scene.path(), &paths).err(), Some(Errno::NOENT));
            assert_eq!(numbers(scene.path()), before, "name {wrong}");
            assert_eq!(staged(scene.path()), ["copy"]);
        }
    }
}
