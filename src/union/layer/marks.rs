//! Reading the marks of one file in a layer.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use crate::confined::xattr;
use crate::confined::{Dir, Stat};
use crate::marks::{self, Mark, Namespace, Opaque, Protection};

/// Bytes of a damaged mark that the log shows.
const SHOWN: usize = 64;

/// The marks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The opaque mark of a directory, raw.
    opaque: Option<Vec<u8>>,
    /// The redirect, raw. With a damaged one, the lower parts are unknown, so readers get an error.
    pub redirect: Option<Vec<u8>>,
    /// The origin, raw.
    pub origin: Option<Vec<u8>>,
    /// The file's content is in a lower layer.
    pub metacopy: bool,
    /// The directory holds entries with an origin.
    pub impure: bool,
    /// The (empty, regular) file is a whiteout.
    pub whiteout: bool,
    /// The file is immutable or append-only.
    pub protection: Protection,
    /// The file is an ordinary one, even if it has a mark's name.
    pub plain: bool,
}

impl Marks {
    /// The meaning of the opaque mark.
    pub fn opaque(&self) -> Opaque {
        self.opaque.as_deref().map_or(Opaque::No, marks::decode_opaque)
    }

    /// Reads `mark`, which is stored in the attribute `key` of `file`.
    fn read(&mut self, file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(), Errno> {
        match mark {
            Mark::Opaque => self.opaque = sound(file, key, mark)?.0,
            Mark::Redirect => self.redirect = sound(file, key, mark)?.0,
            Mark::Origin => self.origin = sound(file, key, mark)?.0,
            Mark::Metacopy => match sound(file, key, mark)? {
                (_, true) => self.metacopy = true,
                // The place of the content is unknown.
                (_, false) => return Err(Errno::IO),
            },
            Mark::Impure => self.impure = sound(file, key, mark)?.0.as_deref() == Some(b"y"),
            Mark::Whiteout => self.whiteout = true,
            Mark::Plain => self.plain = sound(file, key, mark)?.0.as_deref() == Some(b"y"),
            Mark::Protattr => {
                self.protection = sound(file, key, mark)?.0.as_deref().map_or(Protection::NONE, Protection::decode);
            }
            Mark::Nlink | Mark::Upper | Mark::Uuid => {}
        }
        Ok(())
    }
}

impl Stat {
    /// Which changes the file's own flags forbid.
    pub fn protection(&self) -> Protection {
        Protection { immutable: self.immutable, append_only: self.append_only }
    }
}

/// Classifies an attribute: the mark it holds, and its name space.
pub fn classify(key: &[u8]) -> Option<(Namespace, Option<Mark>)> {
    let (namespace, rest) =
        Namespace::ALL.into_iter().find_map(|n| Some((n, key.strip_prefix(n.prefix().as_bytes())?)))?;
    let mark = match rest {
        b"opaque" => Mark::Opaque,
        b"redirect" => Mark::Redirect,
        b"origin" => Mark::Origin,
        b"impure" => Mark::Impure,
        b"nlink" => Mark::Nlink,
        b"upper" => Mark::Upper,
        b"uuid" => Mark::Uuid,
        b"metacopy" => Mark::Metacopy,
        b"whiteout" => Mark::Whiteout,
        b"protattr" => Mark::Protattr,
        b"stratafs.plain" => Mark::Plain,
        _ => return Some((namespace, None)),
    };
    Some((namespace, Some(mark)))
}

impl Dir {
    /// The marks of `name`, or of the directory itself if it is empty. Damaged marks are logged.
    ///
    /// # Errors
    /// Those of `listxattr(2)` and `getxattr(2)`.
    pub fn marks(&self, name: &CStr) -> Result<Marks, Errno> {
        let mut marks = Marks::default();
        let target = self.inside(name)?;
        match xattr::list(target) {
            Ok(listed) => {
                for key in listed.split_inclusive(|&b| b == 0) {
                    let Some((_, Some(mark))) = classify(key.strip_suffix(b"\0").unwrap_or(key)) else { continue };
                    let Ok(key) = CStr::from_bytes_with_nul(key) else { continue };
                    marks.read((self, name), key, mark)?;
                }
            }
            // There are more names than a system call can list, so each mark is asked for. The mark read last counts.
            Err(Errno::TOOBIG) => {
                for (namespace, mark) in Namespace::ALL.into_iter().rev().flat_map(|n| FILE_MARKS.map(|mark| (n, mark)))
                {
                    let key = CString::new(namespace.xattr(mark)).unwrap_or_default();
                    if xattr::value(target, &key)?.is_some() {
                        marks.read((self, name), &key, mark)?;
                    }
                }
            }
            Err(errno) => return Err(errno),
        }
        Ok(marks)
    }
}

/// The marks that [`Marks`] holds.
const FILE_MARKS: [Mark; 8] = [
    Mark::Opaque,
    Mark::Redirect,
    Mark::Origin,
    Mark::Metacopy,
    Mark::Impure,
    Mark::Whiteout,
    Mark::Protattr,
    Mark::Plain,
];

/// A name in a directory; the directory itself if it is empty.
type Entry<'a> = (&'a Dir, &'a CStr);

/// The value of the mark `key`, and whether it is valid; invalid ones are logged.
fn sound(file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(Option<Vec<u8>>, bool), Errno> {
    let (dir, name) = file;
    let value = dir.xattr(name, key)?;
    let good = value.as_deref().is_none_or(|value| marks::is_good(mark, value));
    if !good {
        let shown = value.as_deref().unwrap_or_default();
        let start = shown.get(..SHOWN).unwrap_or(shown).escape_ascii();
        tracing::warn!("{:?}: damaged mark {key:?} of {} bytes: \"{start}\"", dir.shown_path(name), shown.len());
    }
    Ok((value, good))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a directory `d` with one attribute, and of a file `f` with the same one.
    fn read(key: &str, value: &[u8]) -> [Result<Marks, Errno>; 2] {
        let base = tempfile::tempdir_in("/tmp").expect("a temporary directory");
        std::fs::create_dir(base.path().join("d")).expect("a directory");
        std::fs::write(base.path().join("f"), "").expect("a file");
        let root = Dir::new(std::fs::File::open(base.path()).expect("open").into());
        [c"d", c"f"].map(|name| {
            let path = base.path().join(name.to_str().expect("a name"));
            rustix::fs::setxattr(path, key, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
            root.marks(name)
        })
    }

    /// Each mark means the same in every name space, and what is damaged means nothing, or is an error.
    #[test]
    fn every_mark_in_every_name_space() {
        let long = [b'n'; 256];
        let long_path = [b"/a/".as_slice(), &long].concat();
        let found = |change: fn(&mut Marks, &[u8])| {
            move |value: &[u8]| {
                let mut marks = Marks::default();
                change(&mut marks, value);
                Ok(marks)
            }
        };
        let nothing = found(|_, _| {});
        let raw_opaque = found(|marks, value| marks.opaque = Some(value.to_vec()));
        let raw_redirect = found(|marks, value| marks.redirect = Some(value.to_vec()));
        let raw_origin = found(|marks, value| marks.origin = Some(value.to_vec()));
        let metacopy = found(|marks, _| marks.metacopy = true);
        let impure = found(|marks, _| marks.impure = true);
        let whiteout = found(|marks, _| marks.whiteout = true);
        let plain = found(|marks, _| marks.plain = true);
        let protected = found(|marks, value| marks.protection = Protection::decode(value));
        type Expected<'e> = &'e dyn Fn(&[u8]) -> Result<Marks, Errno>;
        let io = |_: &[u8]| Err(Errno::IO);
        let cases: [(Mark, &[&[u8]], Expected<'_>); 18] = [
            (Mark::Opaque, &[b"y", b"x"], &raw_opaque),
            (Mark::Opaque, &[b"", b"n", b"yy", b"Y"], &raw_opaque),
            (Mark::Redirect, &[b"name", b"/name", b"/a/b"], &raw_redirect),
            (Mark::Redirect, &[b"", b"/", b"a/b", b"../a", b"..", b"/a//b", b"/a/../b", b"/a/"], &raw_redirect),
            (Mark::Redirect, &[&long, &long_path], &raw_redirect),
            (Mark::Origin, &[b""], &raw_origin),
            (Mark::Origin, &[b"x", b"\0\xfb\x1d\0\x01"], &raw_origin),
            (Mark::Metacopy, &[b"", b"\0\x04\0\0", b"\0\x24\0\x01 and a digest"], &metacopy),
            (Mark::Metacopy, &[b"x", b"\0\x04\0"], &io),
            (Mark::Impure, &[b"y"], &impure),
            (Mark::Impure, &[b"", b"n", b"yy"], &nothing),
            (Mark::Whiteout, &[b"", b"y", b"anything"], &whiteout),
            (Mark::Plain, &[b"y"], &plain),
            (Mark::Plain, &[b"", b"n"], &nothing),
            (Mark::Protattr, &[b"i", b"a", b"ai", b"ix"], &protected),
            (Mark::Nlink, &[b"U+1", b"?"], &nothing),
            (Mark::Upper, &[b""], &nothing),
            (Mark::Uuid, &[b""], &nothing),
        ];
        for namespace in Namespace::ALL {
            for (mark, values, expected) in &cases {
                let key = namespace.xattr(*mark);
                assert_eq!(classify(key.as_bytes()), Some((namespace, Some(*mark))), "{key}");
                for value in *values {
                    for read in read(key, value) {
                        assert_eq!(read, expected(value), "{key}={}", value.escape_ascii());
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_opaque_mark_says() {
        for (value, expected) in
            [(&b"y"[..], Opaque::Yes), (b"x", Opaque::XattrWhiteouts), (b"", Opaque::No), (b"z", Opaque::No)]
        {
            let [directory, _] = read("user.overlay.opaque", value);
            assert_eq!(directory.expect("marks").opaque(), expected, "{}", value.escape_ascii());
        }
    }

    /// A redirect that leads nowhere is kept as it is: following it is the error, not reading it.
    #[test]
    fn a_redirect_is_good_or_refused_by_who_follows_it() {
        let long = [b'n'; 256];
        for (value, good) in [
            (&b"name"[..], true),
            (b"/a/b", true),
            (b"/a//b", false),
            (b"/a/../b", false),
            (b"..", false),
            (b"a/b", false),
            (b"", false),
            (&long, false),
            (&long[..255], true),
        ] {
            assert_eq!(marks::is_good(Mark::Redirect, value), good, "{}", value.escape_ascii());
            assert_eq!(marks::decode_redirect(value).is_ok(), good, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn attributes_of_others_are_no_marks() {
        for key in [
            "user.opaque",
            "user.overlay",
            "user.overlayopaque",
            "trusted.other.opaque",
            "user.containers.override_stat",
        ] {
            assert_eq!(classify(key.as_bytes()), None, "{key}");
            for read in read(key, b"y") {
                assert_eq!(read, Ok(Marks::default()), "{key}");
            }
        }
        for key in ["user.overlay.overlay.opaque", "trusted.overlay.later", "user.overlay."] {
            assert!(matches!(classify(key.as_bytes()), Some((_, None))), "{key}");
            if !key.ends_with('.') {
                assert_eq!(read(key, b"y"), [Ok(Marks::default()), Ok(Marks::default())], "{key}");
            }
        }
    }
}
