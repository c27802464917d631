//! Layer trees as text: written to disk, and compared with the disk.
//!
//! One entry on each line; parents that are not listed are made with the defaults (0755 or 0644, 0:0):
//!
//! ```text
//! dir  d               mode=2775 uid=1 gid=2 mtime=1000 user.k=v trusted.overlay.opaque=y
//! file d/f "text\n"    (or size=N: zeros, or fill=N: a pattern)
//! link d/l -> target
//! hard d/g d/f         another name of an earlier file
//! fifo p             (or socket)
//! char c 1:3
//! block b 7:0
//! whiteout w           a 0:0 character device
//! ```
//! In paths and values `\x20` stands for a byte. In an expectation, the value `*` of an attribute stands for any value.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::sys;

/// The bytes of `fill=LENGTH`: no two neighbouring blocks are equal.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// The type of an entry.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Sparse(u64),
    Symlink(String),
    Hard(Vec<u8>),
    Node(u32, (u32, u32)),
}

/// One line of the text.
#[derive(Clone, Debug)]
struct Entry {
    path: Vec<u8>,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<i64>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Splits a line into words; quotes group, and stay at the front of the word as a sign.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut rest = line.trim();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut end = 0;
            let bytes = quoted.as_bytes();
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            words.push(format!("\"{}", &quoted[..end]));
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
    }
    words
}

/// Undoes `\n`, `\"`, `\\` and `\xHH`.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let (&escape, after) = rest.split_first().expect("an escape");
        rest = after;
        bytes.push(match escape {
            b'n' => b'\n',
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).expect("hex digits");
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).expect("hex digits")
            }
            other => other,
        });
    }
    bytes
}

fn parse_line(line: &str) -> Entry {
    let words = words(line);
    let path = unescape(words[1].trim_start_matches('"').trim_matches('/'));
    let number = |text: &str| text.parse::<u32>().unwrap_or_else(|_| panic!("bad number in {line:?}"));
    let device = |text: &str| {
        let (major, minor) = text.split_once(':').unwrap_or_else(|| panic!("bad device in {line:?}"));
        (number(major), number(minor))
    };
    let (kind, used) = match words[0].as_str() {
        "dir" => (Kind::Dir, 2),
        "file" => match words.get(2) {
            Some(text) if text.starts_with('"') => (Kind::File(unescape(&text[1..])), 3),
            _ => (Kind::File(vec![]), 2),
        },
        "link" => (Kind::Symlink(words[3].clone()), 4),
        "hard" => (Kind::Hard(unescape(&words[2])), 3),
        "fifo" => (Kind::Node(libc::S_IFIFO, (0, 0)), 2),
        "socket" => (Kind::Node(libc::S_IFSOCK, (0, 0)), 2),
        "char" => (Kind::Node(libc::S_IFCHR, device(&words[2])), 3),
        "block" => (Kind::Node(libc::S_IFBLK, device(&words[2])), 3),
        "whiteout" => (Kind::Node(libc::S_IFCHR, (0, 0)), 2),
        other => panic!("{other:?} is no kind of entry"),
    };
    let mode = match &kind {
        Kind::Dir => 0o755,
        Kind::Symlink(_) => 0o777,
        Kind::Node(libc::S_IFCHR, (0, 0)) => 0,
        _ => 0o644,
    };
    let mut entry = Entry { path, kind, mode, uid: 0, gid: 0, mtime: None, xattrs: BTreeMap::new() };
    for word in &words[used..] {
        let (key, value) = word.split_once('=').unwrap_or_else(|| panic!("bad attribute {word:?} in {line:?}"));
        match key {
            "mode" => entry.mode = u32::from_str_radix(value, 8).expect("an octal mode"),
            "uid" => entry.uid = number(value),
            "gid" => entry.gid = number(value),
            "mtime" => entry.mtime = Some(value.parse().expect("seconds")),
            "size" => entry.kind = Kind::Sparse(value.parse().expect("a size")),
            "fill" => entry.kind = Kind::File(pattern(value.parse().expect("a size"))),
            _ => drop(entry.xattrs.insert(key.to_owned(), unescape(value))),
        }
    }
    entry
}

fn parse(text: &str) -> Vec<Entry> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse_line).collect()
}

fn join(root: &Path, path: &[u8]) -> std::path::PathBuf {
    if path == b"." { root.to_owned() } else { root.join(std::ffi::OsStr::from_bytes(path)) }
}

/// Makes the tree that `text` describes below `root`, which exists.
pub fn build(root: &Path, text: &str) {
    let entries = parse(text);
    for entry in &entries {
        let path = join(root, &entry.path);
        std::fs::create_dir_all(path.parent().expect("a parent")).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let made = match &entry.kind {
            Kind::Dir if path.is_dir() => Ok(()),
            Kind::Dir => sys::mkdir(&path, 0o755),
            Kind::File(content) => sys::create(&path, content),
            Kind::Sparse(size) => sys::create(&path, b"").and_then(|()| sys::truncate(&path, *size)),
            Kind::Symlink(target) => sys::symlink(target, &path),
            Kind::Hard(target) => sys::link(&join(root, target), &path),
            Kind::Node(kind, rdev) => sys::mknod(&path, kind | 0o600, *rdev),
        };
        made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if matches!(entry.kind, Kind::Hard(_)) {
            continue;
        }
        sys::chown(&path, Some(entry.uid), Some(entry.gid)).expect("chown");
        if !matches!(entry.kind, Kind::Symlink(_)) {
            sys::chmod(&path, entry.mode).expect("chmod");
        }
        for (name, value) in &entry.xattrs {
            sys::setxattr(&path, name, value).unwrap_or_else(|error| panic!("{path:?}: {name}: {error}"));
        }
    }
    for entry in entries.iter().rev() {
        if let Some(mtime) = entry.mtime {
            sys::utimens(&join(root, &entry.path), (mtime, 0), (mtime, 0)).expect("utimens");
        }
    }
}

/// One line for an entry's type, attributes and content.
fn line(kind: &str, mode: u32, owner: (u32, u32), detail: &str, xattrs: &BTreeMap<String, Vec<u8>>) -> String {
    let mut line = format!("{kind} {mode:04o} {}:{}", owner.0, owner.1);
    if !detail.is_empty() {
        write!(line, " {detail}").unwrap();
    }
    for (name, value) in xattrs {
        write!(line, " {name}={}", value.escape_ascii().to_string().replace(' ', "\\x20")).unwrap();
    }
    line
}

fn content_detail(content: &[u8]) -> String {
    if content.len() <= 100 {
        return format!("\"{}\"", content.escape_ascii());
    }
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hasher::write(&mut hasher, content);
    let digest = std::hash::Hasher::finish(&hasher);
    format!("{} bytes {digest:016x}", content.len())
}

fn device_kind(kind: u32, rdev: (u32, u32)) -> (&'static str, String) {
    match (kind, rdev) {
        (libc::S_IFIFO, _) => ("fifo", String::new()),
        (libc::S_IFCHR, (0, 0)) => ("whiteout", String::new()),
        (libc::S_IFCHR, (major, minor)) => ("char", format!("{major}:{minor}")),
        (libc::S_IFBLK, (major, minor)) => ("block", format!("{major}:{minor}")),
        (libc::S_IFSOCK, _) => ("socket", String::new()),
        _ => ("unknown", String::new()),
    }
}

/// The entry at `path`, as one line; `with_times` adds the modification time.
pub fn describe(path: &Path, with_times: bool) -> String {
    let stat = sys::lstat(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display()));
    let mut xattrs = BTreeMap::new();
    for name in sys::listxattr(path).unwrap_or_else(|error| panic!("listxattr {}: {error}", path.display())) {
        if name != "security.selinux" {
            let value =
                sys::getxattr(path, &name).unwrap_or_else(|error| panic!("{}: {name}: {error}", path.display()));
            xattrs.insert(name, value);
        }
    }
    let (kind, mut detail) = match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => ("dir", String::new()),
        libc::S_IFREG => {
            let content = sys::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            assert_eq!(content.len() as u64, stat.st_size.cast_unsigned(), "size of {}", path.display());
            ("file", content_detail(&content))
        }
        libc::S_IFLNK => ("link", format!("-> {}", sys::readlink(path).expect("readlink").to_string_lossy())),
        other => device_kind(other, (libc::major(stat.st_rdev), libc::minor(stat.st_rdev))),
    };
    if with_times {
        write!(detail, " mtime={}.{:09}", stat.st_mtime, stat.st_mtime_nsec).unwrap();
    }
    let mode = if kind == "whiteout" { 0 } else { stat.st_mode & 0o7777 };
    line(kind, mode, (stat.st_uid, stat.st_gid), &detail, &xattrs)
}

/// Every entry below `root`, by path; the root itself is `.`.
pub fn snapshot(root: &Path, with_times: bool) -> BTreeMap<String, String> {
    fn walk(root: &Path, path: &Path, with_times: bool, found: &mut BTreeMap<String, String>) {
        let relative = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes();
        let key = if relative.is_empty() { ".".to_owned() } else { relative.escape_ascii().to_string() };
        let line = describe(path, with_times);
        let is_dir = line.starts_with("dir ");
        found.insert(key, line);
        if is_dir {
            for entry in sys::readdir(path).unwrap_or_else(|error| panic!("readdir {}: {error}", path.display())) {
                walk(root, &path.join(entry.name), with_times, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, with_times, &mut found);
    found
}

/// The tree that `text` describes, in the form of [`snapshot`].
fn expected(text: &str) -> BTreeMap<String, String> {
    let entries = parse(text);
    let mut tree = BTreeMap::new();
    tree.insert(".".to_owned(), line("dir", 0o755, (0, 0), "", &BTreeMap::new()));
    for entry in &entries {
        for (at, _) in entry.path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            let parent = entry.path[..at].escape_ascii().to_string();
            tree.entry(parent).or_insert_with(|| line("dir", 0o755, (0, 0), "", &BTreeMap::new()));
        }
        let owner = (entry.uid, entry.gid);
        let text = match &entry.kind {
            Kind::Dir => line("dir", entry.mode, owner, "", &entry.xattrs),
            Kind::File(content) => line("file", entry.mode, owner, &content_detail(content), &entry.xattrs),
            Kind::Sparse(size) => {
                let content = vec![0; usize::try_from(*size).expect("a size")];
                line("file", entry.mode, owner, &content_detail(&content), &entry.xattrs)
            }
            Kind::Symlink(target) => line("link", entry.mode, owner, &format!("-> {target}"), &entry.xattrs),
            Kind::Hard(target) => tree[&target.escape_ascii().to_string()].clone(),
            Kind::Node(kind, rdev) => {
                let (kind, detail) = device_kind(*kind, *rdev);
                line(kind, entry.mode, owner, &detail, &entry.xattrs)
            }
        };
        tree.insert(entry.path.escape_ascii().to_string(), text);
    }
    tree
}

/// Marks that do not affect any reader of the tree; compared only if the expectation names them. A new
/// directory may be opaque although nothing is below it: the kernel does that to save lookups.
const BOOKKEEPING: [&str; 5] = [
    "trusted.overlay.origin=",
    "trusted.overlay.impure=",
    "trusted.overlay.uuid=",
    "trusted.overlay.nlink=",
    "trusted.overlay.opaque=",
];

/// Drops the parts of a found line that the expected one leaves open.
fn relax(found: &str, expected: Option<&String>) -> String {
    let mut kept = vec![];
    for word in found.split(' ') {
        let key = word.split_inclusive('=').next().unwrap_or(word);
        let any = expected.is_some_and(|line| line.split(' ').any(|word| word == format!("{key}*")));
        let named = expected.is_some_and(|line| line.split(' ').any(|word| word.starts_with(key)));
        if any {
            kept.push(format!("{key}*"));
        } else if named || !BOOKKEEPING.contains(&key) {
            kept.push(word.to_owned());
        }
    }
    kept.join(" ")
}

/// Differences between two trees, one on each line; empty if they are equal.
pub fn diff(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) -> String {
    let mut report = String::new();
    for (path, line) in expected {
        match found.get(path) {
            None => writeln!(report, "  missing  {path}: {line}").unwrap(),
            Some(other) if other != line => {
                writeln!(report, "  found    {path}: {other}\n  expected {path}: {line}").unwrap();
            }
            Some(_) => {}
        }
    }
    for (path, line) in found.iter().filter(|(path, _)| !expected.contains_key(*path)) {
        writeln!(report, "  surplus  {path}: {line}").unwrap();
    }
    report
}

/// Asserts that the tree below `root` is exactly `text`.
#[track_caller]
pub fn assert_tree(root: &Path, text: &str) {
    let expected = expected(text);
    let found: BTreeMap<String, String> = snapshot(root, false)
        .into_iter()
        .map(|(path, line)| {
            let relaxed = relax(&line, expected.get(&path));
            (path, relaxed)
        })
        .collect();
    let report = diff(&found, &expected);
    assert!(report.is_empty(), "{} is not the expected tree:\n{report}", root.display());
}
