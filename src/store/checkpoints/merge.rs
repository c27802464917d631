//! Merges two layers, one directly on the other, into one with the same meaning on everything below.
//!
//! The result is made of hard links, so it takes neither space nor time for contents. Only directories are new. The upper
//! layer's marks are resolved against the lower layer. What remains for the layers below is written as marks again: a
//! directory continues there under its own name, under another one (redirect), or not at all (opaque).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, linkat, mkdirat, mknodat};
use rustix::io::Errno;

use crate::confined::xattr::{self, Target};
use crate::confined::{self, Stat};
use crate::image::layer::path::join;
use crate::marks::{self, AufsName, Mark, Namespace, Opaque, Redirect, decode_aufs_name};
use crate::text::printable;
use crate::union::layer::chain::chain_namespace;
use crate::union::view::UpperPart;

/// Why two layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    /// They hold something that cannot be merged; they are not damaged.
    #[error("{0}")]
    Unmergeable(String),
    /// A system call failed.
    #[error("{path}: {errno}")]
    Failed {
        /// The file, printable.
        path: String,
        /// The error.
        errno: Errno,
    },
}

type Result<T> = std::result::Result<T, MergeError>;

trait At<T> {
    fn at(self, path: &[u8]) -> Result<T>;
}

impl<T> At<T> for std::result::Result<T, Errno> {
    fn at(self, path: &[u8]) -> Result<T> {
        self.map_err(|errno| MergeError::Failed { path: printable(path), errno })
    }
}

fn unmergeable(path: &[u8], reason: &str) -> MergeError {
    MergeError::Unmergeable(format!("{}: {reason}", printable(path)))
}

/// Where a directory of the upper layer continues below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Position {
    /// Path of its part in the lower layer.
    lower: Option<Vec<u8>>,
    /// Path at which the layers below both continue it; `None` if they do not.
    below: Option<Vec<u8>>,
}

/// A directory that exists but is still empty.
struct Pending {
    path: Vec<u8>,
    /// Path of its part in the upper layer.
    upper: Option<Vec<u8>>,
    at: Position,
    /// Its mark for the layers below.
    says: Says,
}

/// The mark of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Says {
    /// No mark: it continues under its own name, or there is nothing below it.
    Nothing,
    Opaque,
    Redirect(Vec<u8>),
}

struct Merge<'a> {
    upper: BorrowedFd<'a>,
    lower: BorrowedFd<'a>,
    into: BorrowedFd<'a>,
    namespace: Namespace,
}

/// Fills the empty directory `into` with the meaning of `upper` on top of `lower` for the layers below both. Neither may
/// change in the meantime. The caller sets the chain mark of the result.
///
/// # Errors
/// [`MergeError::Unmergeable`] if a layer holds metacopies, whiteouts by name, or files with the maximum number of links.
pub(crate) fn merge(upper: BorrowedFd<'_>, lower: BorrowedFd<'_>, into: BorrowedFd<'_>) -> Result<()> {
    let merge = Merge { upper, lower, into, namespace: chain_namespace(into).at(b"")? };
    let part = part_of(upper, b"")?;
    let at = if part.is_opaque() { Position::default() } else { merge.lower_root()? };
    let says = if at.below.is_none() { Says::Opaque } else { Says::Nothing };
    let mut pending = vec![Pending { path: Vec::new(), upper: Some(Vec::new()), at, says }];
    while let Some(next) = pending.pop() {
        pending.extend(merge.directory(next)?);
    }
    Ok(())
}

fn part_of(layer: BorrowedFd<'_>, path: &[u8]) -> Result<UpperPart> {
    UpperPart::root(confined::open_dir(layer, path).at(path)?).at(path)
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL).at(name)
}

/// One name of a directory.
struct Item {
    from_upper: bool,
    whiteout: bool,
}

impl Merge<'_> {
    /// The root, below an upper layer whose root is not opaque.
    fn lower_root(&self) -> Result<Position> {
        let is_opaque = part_of(self.lower, b"")?.is_opaque();
        Ok(Position { lower: Some(Vec::new()), below: (!is_opaque).then(Vec::new) })
    }

    /// Fills one directory; makes and returns its subdirectories.
    fn directory(&self, dir: Pending) -> Result<Vec<Pending>> {
        let into = confined::open_dir(self.into, &dir.path).at(&dir.path)?;
        let upper = dir.upper.as_ref().map(|path| part_of(self.upper, path)).transpose()?;
        let lower = dir.at.lower.as_ref().map(|path| part_of(self.lower, path)).transpose()?;
        let mut items: BTreeMap<CString, Item> = BTreeMap::new();
        for (part, from_upper) in [(&upper, true), (&lower, false)] {
            let Some(part) = part else { continue };
            refuse_marks_by_name(part, &dir.path)?;
            for entry in part.entries().at(&dir.path)? {
                items.entry(entry.name).or_insert(Item { from_upper, whiteout: entry.whiteout });
            }
        }
        let mut made = Vec::new();
        let mut by_attribute = false;
        for (name, item) in items {
            let path = join(&dir.path, name.to_bytes());
            let Some(part) = (if item.from_upper { &upper } else { &lower }) else { continue };
            let stat = part.dir().stat(&name).at(&path)?.ok_or(Errno::NOENT).at(&path)?;
            if item.whiteout {
                // Without anything below there is nothing to delete.
                if dir.at.below.is_some() {
                    whiteout(part, &name, &stat, into.as_fd()).at(&path)?;
                    by_attribute |= !stat.is_whiteout_device();
                }
            } else if stat.is_dir() {
                mkdirat(&into, &name, Mode::RWXU).at(&path)?;
                made.push(self.child(&dir, part, item.from_upper, &name, path)?);
            } else {
                file(part, &name, &stat, into.as_fd(), &path)?;
            }
        }
        let from = upper.as_ref().or(lower.as_ref()).ok_or(Errno::NOENT).at(&dir.path)?;
        self.finish(from, &into, &dir.says, by_attribute).at(&dir.path)?;
        Ok(made)
    }

    /// Makes the subdirectory `name` from `part`, which has it.
    fn child(&self, dir: &Pending, part: &UpperPart, from_upper: bool, name: &CStr, path: Vec<u8>) -> Result<Pending> {
        let marks = part.dir().marks(name).at(&path)?;
        let at = match (from_upper, redirect(&marks, &path)?) {
            (false, _) => self.step(&dir.at, name.to_bytes(), &path)?,
            (true, _) if marks.opaque() == Opaque::Yes => Position::default(),
            (true, Some(Redirect::Absolute(target))) => self.walk(&target, &path)?,
            (true, Some(Redirect::Relative(other))) => self.step(&dir.at, &other, &path)?,
            (true, None) => self.step(&dir.at, name.to_bytes(), &path)?,
        };
        let own = dir.at.below.as_ref().map(|below| join(below, name.to_bytes()));
        let says = match &at.below {
            below if *below == own => Says::Nothing,
            None => Says::Opaque,
            Some(below) => Says::Redirect(below.clone()),
        };
        let upper = dir.upper.as_ref().filter(|_| from_upper).map(|upper| join(upper, name.to_bytes()));
        Ok(Pending { path, upper, at, says })
    }

    /// Goes from the lower layer's directory at `at` to its entry `name`, and finds where that continues below.
    fn step(&self, at: &Position, name: &[u8], path: &[u8]) -> Result<Position> {
        let natural = at.below.as_ref().map(|below| join(below, name));
        let Some(lower) = &at.lower else { return Ok(Position { lower: None, below: natural }) };
        let part = part_of(self.lower, lower)?;
        let entry = c_name(name)?;
        match part.dir().stat(&entry).at(path)? {
            None => Ok(Position { lower: None, below: natural }),
            Some(stat) if !stat.is_dir() => Ok(Position::default()),
            Some(_) => {
                let marks = part.dir().marks(&entry).at(path)?;
                let below = match redirect(&marks, path)? {
                    _ if marks.opaque() == Opaque::Yes => None,
                    None => natural,
                    Some(Redirect::Absolute(target)) => Some(target),
                    Some(Redirect::Relative(other)) => at.below.as_ref().map(|below| join(below, &other)),
                };
                Ok(Position { lower: Some(join(lower, name)), below })
            }
        }
    }

    /// Follows a path from the root of the lower layer.
    fn walk(&self, target: &[u8], path: &[u8]) -> Result<Position> {
        let mut at = self.lower_root()?;
        for name in target.split(|&byte| byte == b'/') {
            at = self.step(&at, name, path)?;
        }
        Ok(at)
    }

    /// Gives a filled directory the attributes of `from`, and its own marks.
    fn finish(
        &self,
        from: &UpperPart,
        into: &OwnedFd,
        says: &Says,
        by_attribute: bool,
    ) -> std::result::Result<(), Errno> {
        let replaced = |name: &[u8]| {
            Namespace::ALL.iter().any(|space| {
                [space.xattr(Mark::Opaque), space.xattr(Mark::Redirect)].iter().any(|mark| mark.as_bytes() == name)
                    || space.chain().to_bytes() == name
            })
        };
        confined::copy_attributes(from.dir().as_fd(), into.as_fd(), |name| !replaced(name))?;
        let set = |mark: Mark, value: &[u8]| {
            let key = CString::new(self.namespace.xattr(mark)).map_err(|_| Errno::INVAL)?;
            xattr::set(Target { dir: into.as_fd(), name: c"" }, &key, value, 0)
        };
        match says {
            Says::Nothing => {}
            Says::Opaque => set(Mark::Opaque, b"y")?,
            Says::Redirect(target) => set(Mark::Redirect, &[b"/", target.as_slice()].concat())?,
        }
        if by_attribute && *says != Says::Opaque { set(Mark::Opaque, b"x") } else { Ok(()) }
    }
}

fn redirect(marks: &crate::union::layer::Marks, path: &[u8]) -> Result<Option<Redirect>> {
    let Some(value) = marks.redirect.as_deref() else { return Ok(None) };
    marks::decode_redirect(value).map(Some).map_err(|_| unmergeable(path, "its redirect is damaged"))
}

/// Whiteouts by name delete one file and may hide another in the same directory. The driver only writes them temporarily.
fn refuse_marks_by_name(part: &UpperPart, path: &[u8]) -> Result<()> {
    let mut found = false;
    let look = |entry: confined::RawEntry<'_>| {
        found |= decode_aufs_name(OsStr::from_bytes(entry.name.to_bytes())) != AufsName::Plain;
        Ok(())
    };
    part.dir().list(look).at(path)?;
    if found { Err(unmergeable(path, "it holds whiteouts by name")) } else { Ok(()) }
}

fn link(part: &UpperPart, name: &CStr, into: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    linkat(part.dir(), name, into, name, AtFlags::empty())
}

fn whiteout(part: &UpperPart, name: &CStr, stat: &Stat, into: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    match link(part, name, into) {
        // All whiteouts of a layer may be links of one file.
        Err(Errno::MLINK) if stat.is_whiteout_device() => {
            mknodat(into, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0))
        }
        linked => linked,
    }
}

fn file(part: &UpperPart, name: &CStr, stat: &Stat, into: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    if stat.file_type() == confined::FileType::Regular && part.dir().marks(name).at(path)?.metacopy {
        return Err(unmergeable(path, "its content is in another layer"));
    }
    match link(part, name, into) {
        Err(Errno::MLINK) => Err(unmergeable(path, "it has as many links as it can have")),
        linked => linked.at(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::snapshot::{SnapshotOptions, flatten};
    use std::fs::{self, File};
    use std::path::Path;

    /// Makes a layer. `d/`: a directory; `-d`: a whiteout; `!d/`: an opaque directory; `d/>x`: one with a redirect; anything
    /// else is a file.
    fn layer(at: &Path, entries: &[&str]) {
        fs::create_dir(at).expect("made");
        let namespace = chain_namespace(File::open(at).expect("opened").as_fd()).expect("a name space");
        let set = |path: &Path, mark: Mark, value: &[u8]| {
            let key = CString::new(namespace.xattr(mark)).expect("a name");
            let dir = File::open(path).expect("opened");
            xattr::set(Target { dir: dir.as_fd(), name: c"" }, &key, value, 0).expect("set");
        };
        for entry in entries {
            let (plain, redirect) = entry.split_once('>').map_or((*entry, None), |(path, to)| (path, Some(to)));
            let name = plain.trim_start_matches(['-', '!']);
            let path = at.join(name);
            match plain.chars().next() {
                Some('-') => {
                    let device = rustix::fs::makedev(0, 0);
                    mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::empty(), device).expect("made");
                }
                _ if name.ends_with('/') => {
                    fs::create_dir_all(&path).expect("made");
                    if plain.starts_with('!') {
                        set(&path, Mark::Opaque, b"y");
                    }
                    if let Some(to) = redirect {
                        set(&path, Mark::Redirect, to.as_bytes());
                    }
                }
                _ => fs::write(&path, entry).expect("written"),
            }
        }
    }

    /// The merged tree of layers, the topmost first, without times.
    fn shown(layers: &[&Path]) -> Vec<String> {
        let open: Vec<File> = layers.iter().map(|path| File::open(path).expect("opened")).collect();
        let open: Vec<BorrowedFd<'_>> = open.iter().map(AsFd::as_fd).collect();
        let mut tar = Vec::new();
        flatten(&open, &mut tar, &SnapshotOptions { source_date_epoch: Some(0), ..SnapshotOptions::default() })
            .expect("flattened");
        let mut archive = tar::Archive::new(&tar[..]);
        let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.expect("an entry");
            let mut content = String::new();
            std::io::Read::read_to_string(&mut entry, &mut content).expect("text");
            format!("{} {content}", String::from_utf8_lossy(&entry.path_bytes()))
        };
        archive.entries().expect("entries").map(entry).collect()
    }

    /// On a third layer, two merged layers show the same as before.
    #[test]
    fn merged_layers_mean_the_same() {
        let base = ["a/", "a/b/", "a/b/deep", "a/file", "c/", "c/d/", "c/d/e", "gone", "z/", "z/y"];
        for (lower, upper) in [
            (&["-gone", "a/", "a/new"][..], &["a/", "-a/file", "top"][..]),
            // A plain directory over a whiteout, and over a file.
            (&["-a"], &["a/", "a/again"]),
            (&["c"], &["c/", "c/again"]),
            // A whiteout over a directory; a directory that is new in both.
            (&["n/", "n/one", "a/", "a/b/", "a/b/more"], &["-a", "n/", "n/two"]),
            // A directory renamed in one, changed in the other.
            (&["m/>/a", "-a"], &["m/", "m/b/", "m/b/top"]),
            (&["a/", "a/new"], &["m/>a", "-a"]),
            // Renamed twice.
            (&["m/>/a", "-a"], &["n/>/m", "-m"]),
            (&["m/>a", "-a"], &["n/>m", "-m", "n/k/>/m/b", "-n/b"]),
            // Renamed inside a renamed directory.
            (&["m/>/a", "-a"], &["m/", "m/k/>b", "-m/b"]),
            (&["m/>/a", "-a", "m/k/>/a/b", "-m/b"], &["x/>/m/k", "m/", "-m/k"]),
            // Opaque over renamed, renamed over opaque, renamed inside opaque.
            (&["m/>/a", "-a"], &["!m/", "m/own"]),
            (&["!a/", "a/own"], &["m/>/a", "-a"]),
            (&["a/", "-a/b"], &["!a/", "a/b/>/c/d", "c/", "-c/d"]),
            (&["!a/", "a/b/>/c/d", "c/", "-c/d"], &["a/", "a/b/", "a/b/more"]),
            // Renamed to a name that the lower one has deleted, and to one that it does not have.
            (&["-a"], &["m/>/a"]),
            (&["x/"], &["m/>/z", "-z", "x/", "x/w/>/c/d", "c/", "-c/d"]),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let at = |name: &str| dir.path().join(name);
            layer(&at("base"), &base);
            layer(&at("lower"), lower);
            layer(&at("upper"), upper);
            let expected = shown(&[&at("upper"), &at("lower"), &at("base")]);
            fs::create_dir(at("merged")).expect("made");
            let open = |name: &str| File::open(at(name)).expect("opened");
            merge(open("upper").as_fd(), open("lower").as_fd(), open("merged").as_fd()).expect("merged");
            assert_eq!(shown(&[&at("merged"), &at("base")]), expected, "{upper:?} on {lower:?}");
            // Alone, nothing of the layers below shows through.
            let alone = shown(&[&at("upper"), &at("lower")]);
            assert_eq!(shown(&[&at("merged")]), alone, "{upper:?} on {lower:?} on nothing");
        }
    }

    #[test]
    fn what_is_not_merged() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        layer(&at("plain"), &["d/", "d/f"]);
        layer(&at("named"), &["d/", "d/.wh.f"]);
        layer(&at("metacopy"), &["d/", "d/f"]);
        let file = File::options().write(true).open(at("metacopy/d/f")).expect("opened");
        let namespace = chain_namespace(file.as_fd()).expect("a name space");
        let key = CString::new(namespace.xattr(Mark::Metacopy)).expect("a name");
        xattr::set(Target { dir: file.as_fd(), name: c"" }, &key, b"", 0).expect("set");
        for (number, (upper, lower)) in
            [("named", "plain"), ("plain", "named"), ("metacopy", "plain")].into_iter().enumerate()
        {
            let into = at(&number.to_string());
            fs::create_dir(&into).expect("made");
            let open = |path: &Path| File::open(path).expect("opened");
            let merged = merge(open(&at(upper)).as_fd(), open(&at(lower)).as_fd(), open(&into).as_fd());
            assert!(matches!(merged, Err(MergeError::Unmergeable(_))), "{upper} on {lower}: {merged:?}");
        }
    }
}
