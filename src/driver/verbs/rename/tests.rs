//! Renames step by step, on directories made for each test.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::config::OverlayConfig;
use crate::driver::types::Caller;

struct Fixture {
    overlay: super::Union,
    directory: TempDir,
}

impl Fixture {
    /// Paths that end with a slash are directories of the lower layer, others are files.
    fn new(lower: &[&str]) -> Self {
        let directory = tempfile::Builder::new().tempdir_in("/var/tmp").expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for name in ["lower", "upper", "work"] {
            fs::create_dir(at(name)).expect("a layer");
        }
        for path in lower {
            let to = at("lower").join(path);
            if path.ends_with('/') { fs::create_dir_all(to) } else { fs::write(to, "lower") }.expect(path);
        }
        let config = OverlayConfig {
            lowers: vec![at("lower")],
            upper: Some(at("upper")),
            work: Some(at("work")),
            volatile: true,
            ..OverlayConfig::default()
        };
        Self { overlay: super::Union::open(config).expect("a union"), directory }
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.directory.path().join("upper").join(path)
    }

    fn at(&self, path: &str) -> NodeRef {
        let mut at = self.overlay.node(NodeId::ROOT).expect("the root");
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entry = self.overlay.lookup(at.id(), name.as_ref()).expect(path).expect(path);
            at = self.overlay.node(entry.node).expect("looked up");
        }
        at
    }

    /// Directory and name of a path.
    fn split<'p>(&self, path: &'p str) -> (NodeRef, &'p str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.at(parent), name)
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
        let ((from, name), (to, new_name)) = (self.split(from), self.split(to));
        self.overlay.rename(from.id(), name.as_ref(), to.id(), new_name.as_ref(), flags.bits())
    }

    fn mkdir(&self, path: &str) {
        let (parent, name) = self.split(path);
        self.overlay.mkdir(&Caller::default(), parent.id(), name.as_ref(), 0o755).expect(path);
    }

    fn create(&self, path: &str) {
        let (parent, name) = self.split(path);
        let mode = libc::S_IFREG | 0o644;
        self.overlay.mknod(&Caller::default(), parent.id(), name.as_ref(), mode, (0, 0)).expect(path);
    }

    /// The redirect of an upper directory.
    fn redirect(&self, path: &str) -> Option<Vec<u8>> {
        attribute(&self.upper(path), "trusted.overlay.redirect")
    }

    /// One attempt, with nodes looked up earlier.
    fn attempt(&self, from: (&str, &NodeRef), to: (&str, Option<&NodeRef>)) -> Result<Attempt> {
        let root = self.at("");
        let name = |name: &str| Name::from(std::ffi::CString::new(name).expect("no NUL").as_c_str());
        let flags = RenameFlags::empty();
        self.overlay.rename_nodes((&root, &name(from.0)), (&root, &name(to.0)), (from.1, to.1), flags, None)
    }
}

fn attribute(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path, key, &mut value).ok().map(|length| value[..length].to_vec())
}

#[test]
fn the_types_of_source_and_target_decide() {
    const NONE: RenameFlags = RenameFlags::empty();
    let cases = [
        ("file", "dir", NONE, Some(Errno::ISDIR)),
        ("dir", "file", NONE, Some(Errno::NOTDIR)),
        ("dir", "full", NONE, Some(Errno::NOTEMPTY)),
        ("file", "other", RenameFlags::NOREPLACE, Some(Errno::EXIST)),
        ("file", "absent", RenameFlags::EXCHANGE, Some(Errno::NOENT)),
        ("absent", "file", NONE, Some(Errno::NOENT)),
        ("file", "file", NONE, None),
        ("file", "other", NONE, None),
        ("dir", "empty", NONE, None),
        ("file", "dir", RenameFlags::EXCHANGE, None),
    ];
    for (from, to, flags, expected) in cases {
        for in_lower in [true, false] {
            let union = if in_lower {
                Fixture::new(&["file", "other", "dir/", "full/", "full/x", "empty/"])
            } else {
                let union = Fixture::new(&[]);
                ["dir", "full", "empty"].iter().for_each(|path| union.mkdir(path));
                ["file", "other", "full/x"].iter().for_each(|path| union.create(path));
                union
            };
            let renamed = union.rename(from, to, flags);
            assert_eq!(renamed.err(), expected, "{from} to {to} with {flags:?}, in the lower layer: {in_lower}");
        }
    }
}

/// The lower layers never move, so a redirect is written once and made absolute at most once.
#[test]
fn a_redirect_says_where_the_lower_parts_are() {
    let union = Fixture::new(&["above/dir/", "above/dir/file", "other/"]);
    union.rename("above/dir", "above/moved", RenameFlags::empty()).expect("renamed");
    assert_eq!(union.redirect("above/moved"), Some(b"dir".to_vec()));
    union.rename("above/moved", "above/again", RenameFlags::empty()).expect("renamed");
    assert_eq!(union.redirect("above/again"), Some(b"dir".to_vec()));
    union.rename("above", "below", RenameFlags::empty()).expect("renamed");
    assert_eq!(union.redirect("below"), Some(b"above".to_vec()));
    union.rename("below/again", "other/here", RenameFlags::empty()).expect("renamed");
    assert_eq!(union.redirect("other/here"), Some(b"/above/dir".to_vec()));
    union.rename("other/here", "top", RenameFlags::empty()).expect("renamed");
    assert_eq!(union.redirect("top"), Some(b"/above/dir".to_vec()));
    union.at("top/file");
}

/// A directory without lower parts hides the lower files of its new name.
#[test]
fn a_directory_of_the_upper_hides_what_is_below_its_new_name() {
    let union = Fixture::new(&["gone/", "gone/below"]);
    union.mkdir("made");
    let root = union.at("");
    union.overlay.unlink(union.at("gone").id(), "below".as_ref()).expect("removed");
    union.rename("made", "gone", RenameFlags::empty()).expect("renamed");
    assert_eq!(attribute(&union.upper("gone"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
    let gone = union.at("gone");
    assert!(union.overlay.lookup(gone.id(), "below".as_ref()).expect("looked up").is_none());
    assert!(union.overlay.lookup(root.id(), "made".as_ref()).expect("looked up").is_none());
}

/// If a lookup made before the names were held is outdated, nothing changes and the names are looked up again.
#[test]
fn an_outdated_look_changes_nothing() {
    let union = Fixture::new(&["source", "dir/"]);
    union.create("target");
    let (source, target) = (union.at("source"), union.at("target"));
    // Created in the meantime.
    assert_eq!(union.attempt(("source", &source), ("target", None)), Ok(Attempt::Outdated));
    // Moved in the meantime: the source, then the target.
    assert_eq!(union.attempt(("other", &source), ("target", Some(&target))), Ok(Attempt::Outdated));
    assert_eq!(union.attempt(("source", &source), ("other", Some(&target))), Ok(Attempt::Outdated));
    assert!(union.upper("target").exists());
    assert_eq!(union.attempt(("source", &source), ("target", Some(&target))), Ok(Attempt::Done));
    assert!(target.is_removed() && !source.is_removed());
    assert_eq!(union.attempt(("source", &source), ("target", Some(&target))), Ok(Attempt::Outdated));
}
