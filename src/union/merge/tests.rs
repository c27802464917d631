use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use super::*;
use crate::union::view::View;

/// The content of a test's layer: a path and what is there.
#[derive(Clone, Copy)]
enum At {
    File(&'static str),
    Directory(&'static str),
    /// A directory with a mark: the mark's name without the name space, and its value.
    Marked(&'static str, &'static str, &'static str),
}

use At::{Directory, File, Marked};

fn fill(root: &Path, entries: &[At]) {
    for &entry in entries {
        match entry {
            File(path) => fs::write(root.join(path), path).expect("a file"),
            Directory(path) => fs::create_dir(root.join(path)).expect("a directory"),
            Marked(path, mark, value) => {
                let (path, key) = (root.join(path), format!("user.overlay.{mark}"));
                if !path.exists() {
                    fs::create_dir(&path).expect("a directory");
                }
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&path, key, value.as_bytes(), flags).expect("a mark");
            }
        }
    }
}

/// `file N` or `dir N,N…`, with the ids of the layers (0 is the lowest), or the error.
fn shown(view: &View, path: &str) -> String {
    let mut parts = view.root().expect("the root");
    let mut last = String::new();
    for name in path.split('/') {
        let name = CString::new(name).expect("a name");
        match view.resolve(None, &parts, &name) {
            Ok(Resolution::Absent) => return "absent".to_owned(),
            Ok(Resolution::WhiteoutInUpper) => return "whiteout in an upper".to_owned(),
            Err(Errno::IO) => return "IO".to_owned(),
            Err(errno) => return errno.to_string(),
            Ok(Resolution::Found(found)) if found.stat.is_dir() => {
                let ids: Vec<String> = found.lowers.iter().map(|part| part.layer.number().to_string()).collect();
                last = format!("dir {}", ids.join(","));
                parts = found.lowers;
            }
            Ok(Resolution::Found(found)) => {
                let Source::Lower(at) = found.source else { return "file of an upper".to_owned() };
                return format!("file {}", parts[usize::from(at)].layer.number());
            }
        }
    }
    last
}

/// Layers from the top down, a path, and what it means.
const TABLE: &[(&[&[At]], &str, &str)] = &[
    (&[&[], &[]], "a", "absent"),
    (&[&[File("a")], &[File("a")]], "a", "file 1"),
    (&[&[], &[File("a")]], "a", "file 0"),
    (&[&[Directory("d")], &[Directory("d")]], "d", "dir 1,0"),
    (&[&[File("d")], &[Directory("d"), File("d/x")]], "d", "file 1"),
    // A file ends the search for parts of a directory.
    (&[&[Directory("d")], &[File("d")], &[Directory("d")]], "d", "dir 2"),
    (&[&[File(".wh.a")], &[File("a")]], "a", "absent"),
    (&[&[File("a"), File(".wh.a")], &[File("a")]], "a", "file 1"),
    (&[&[Directory("d"), File(".wh.d")], &[Directory("d")]], "d", "dir 1"),
    (&[&[Directory("d"), File("d/.wh..wh..opq")], &[Directory("d"), File("d/x")]], "d/x", "absent"),
    (&[&[Marked("d", "opaque", "y")], &[Directory("d"), File("d/x")]], "d", "dir 1"),
    (&[&[Marked("d", "opaque", "y")], &[Directory("d"), File("d/x")]], "d/x", "absent"),
    // The marks of the lowest layer have no effect.
    (&[&[Directory("d")], &[Marked("d", "opaque", "y"), File("d/x")]], "d/x", "file 0"),
    (&[&[Marked("d", "redirect", "e")], &[Directory("d"), Directory("e"), File("e/x")]], "d/x", "file 0"),
    (&[&[Marked("d", "redirect", "/p/e")], &[Directory("p"), Directory("p/e"), File("p/e/x")]], "d/x", "file 0"),
    (&[&[Marked("d", "redirect", "gone")], &[Directory("d"), File("d/x")]], "d/x", "absent"),
    (&[&[Marked("d", "redirect", "../e")], &[Directory("e")]], "d", "IO"),
    // Two redirects in two layers.
    (
        &[&[Marked("d", "redirect", "e")], &[Marked("e", "redirect", "f")], &[Directory("f"), File("f/x")]],
        "d/x",
        "file 0",
    ),
    // A path through an opaque directory ends in that layer, unless an absolute redirect leads out of it again.
    (
        &[
            &[Marked("d", "redirect", "/o/e")],
            &[Marked("o", "opaque", "y"), Directory("o/e")],
            &[Directory("o"), Directory("o/e"), File("o/e/x")],
        ],
        "d/x",
        "absent",
    ),
    (
        &[
            &[Marked("d", "redirect", "/o/e")],
            &[Marked("o", "opaque", "y"), Marked("o/e", "redirect", "/f")],
            &[Directory("f"), File("f/x")],
        ],
        "d/x",
        "file 0",
    ),
    (
        &[
            &[Marked("d", "redirect", "/o/e/g")],
            &[Marked("o", "opaque", "y"), Marked("o/e", "redirect", "/f")],
            &[Directory("f"), Directory("f/g"), File("f/g/x")],
        ],
        "d/x",
        "file 0",
    ),
    (
        &[
            &[Marked("d", "redirect", "/o/e")],
            &[Marked("o", "opaque", "y"), Marked("o/e", "redirect", "f")],
            &[Directory("o"), Directory("o/f"), File("o/f/x")],
        ],
        "d/x",
        "absent",
    ),
    // Several redirects on one path add up.
    (
        &[
            &[Marked("d", "redirect", "/p/e/g")],
            &[Marked("p", "redirect", "q"), Marked("p/e", "redirect", "f"), Directory("p/e/g")],
            &[Directory("q"), Directory("q/f"), Directory("q/f/g"), File("q/f/g/x")],
        ],
        "d/x",
        "file 0",
    ),
    (
        &[
            &[Marked("d", "redirect", "/p/e/g")],
            &[Marked("p", "redirect", "/r/q"), Marked("p/e", "redirect", "f")],
            &[Directory("r"), Directory("r/q"), Directory("r/q/f"), Directory("r/q/f/g"), File("r/q/f/g/x")],
        ],
        "d/x",
        "file 0",
    ),
    (&[&[File("a")]], ".wh.a", "absent"),
];

#[test]
fn names_mean_what_the_rules_say() {
    for (layers, path, expected) in TABLE {
        let base = std::env::var_os("STRATAFS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let directory = tempfile::Builder::new().prefix("stratafs-merge-").tempdir_in(base).expect("a directory");
        let roots: Vec<_> = (0..layers.len()).map(|at| directory.path().join(at.to_string())).collect();
        for (root, entries) in roots.iter().zip(*layers) {
            fs::create_dir(root).expect("a layer");
            fill(root, entries);
        }
        let opened: Vec<fs::File> = roots.iter().map(|root| fs::File::open(root).expect("a layer")).collect();
        let view = View::new(&opened.iter().map(AsFd::as_fd).collect::<Vec<_>>(), false).expect("a view");
        let described = roots.iter().zip(*layers).map(|(_, entries)| entries.len()).collect::<Vec<_>>();
        assert_eq!(shown(&view, path), *expected, "{path} in layers of {described:?} entries");
    }
}
