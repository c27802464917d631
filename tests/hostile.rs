//! Malicious layers, built here block by block. Each is refused with a one-line reason, or has the result that its case
//! names. No layer writes outside its directory, blocks for ever, or makes the program allocate memory for sizes that it
//! only claims. `fixtures/hostile/README.md` says which kind is tested where.

#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tables of cases")]

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use std::collections::BTreeMap;
use std::io::Write;

use layer_dirs::*;
use peak_alloc::PeakAlloc;
use stratafs::image::unpack::UnpackOptions;
use stratafs::tar::Limits;
use tar_build::*;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Set where `memory_is_bounded` runs the cases one after the other.
const MEASURE: &str = "STRATAFS_MEASURE_MEMORY";
/// Bytes of the heap that a case may take in addition to its own size: twice the largest value seen.
const MOST_MEMORY: usize = 8 << 20;

/// The expected result of a case.
enum Expect {
    /// An error with this in it.
    Refused(&'static str),
    /// Unpacked; these paths exist.
    Has(&'static [&'static str]),
}
use Expect::{Has, Refused};

struct Case {
    name: &'static str,
    stream: Vec<u8>,
    expect: Expect,
}

fn case(name: &'static str, stream: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { name, stream: stream.into(), expect }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The output of the program `tool` for `bytes`.
fn packed(tool: &str, bytes: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut child = Command::new(tool).arg("-1c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(tool);
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        child.wait_with_output().unwrap().stdout
    })
}

/// Unpacks into a directory with a witness file beside it, and with a lower layer whose links lead out.
fn run(cases: Vec<Case>) {
    let lower = unpack(
        &Tar::new()
            .symlink("out", "../witness")
            .symlink("abs-out", "/etc")
            .dir("lower-dir")
            .file("lower-file", "lower")
            .end(),
    );
    let before = lower.tree();
    let mut seen = BTreeMap::new();
    for case in cases {
        assert!(seen.insert(case.name, ()).is_none(), "two cases are called {}", case.name);
        if std::env::var_os("STRATAFS_WRITE_HOSTILE").is_some() {
            let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hostile");
            let name = case.name.replace([' ', '/'], "-");
            std::fs::write(dir.join(format!("{name}.layer")), &case.stream).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("witness")).unwrap();
        std::fs::write(dir.path().join("witness/file"), "untouched").unwrap();
        std::fs::create_dir(dir.path().join("layer")).unwrap();
        let outside = tree(dir.path());
        let fd = std::fs::File::open(dir.path().join("layer")).unwrap();
        let options = UnpackOptions { limits: small_limits(), ..UnpackOptions::default() };
        let mut recipe = Vec::new();
        HEAP.reset_peak_usage();
        let before_it = HEAP.current_usage();
        let result = stratafs::image::unpack::unpack_layer(
            &mut case.stream.as_slice(),
            std::os::fd::AsFd::as_fd(&fd),
            &[lower.as_fd()],
            Some(&mut recipe),
            &options,
        );
        if std::env::var_os(MEASURE).is_some() {
            let taken = HEAP.peak_usage() - before_it;
            println!("{taken} bytes: {}", case.name);
            assert!(taken <= MOST_MEMORY, "{}: {taken} bytes of memory", case.name);
        }
        match (&case.expect, &result) {
            (Refused(reason), Err(error)) => {
                let line = error.to_string();
                assert!(line.contains(reason), "{}: {line:?} does not say {reason:?}", case.name);
                assert!(!line.contains('\n') && line.len() < 1000, "{}: one line: {line:?}", case.name);
            }
            (Has(paths), Ok(_)) => {
                let found = tree(&dir.path().join("layer"));
                for path in *paths {
                    assert!(found.contains_key(*path), "{}: no {path} in {found:#?}", case.name);
                }
                let mut again = Vec::new();
                stratafs::image::recipe::reassemble(&mut recipe.as_slice(), std::os::fd::AsFd::as_fd(&fd), &mut again)
                    .unwrap_or_else(|error| panic!("{}: {error}", case.name));
                let fd = std::os::fd::AsFd::as_fd(&fd);
                let mut alarm = |damage| panic!("{}: a false alarm: {damage}", case.name);
                assert!(stratafs::image::verify::verify(&mut recipe.as_slice(), fd, &mut alarm).unwrap());
                assert_eq!(lower_marks(&found), 0, "{}: a mark was smuggled in: {found:#?}", case.name);
            }
            (Refused(reason), Ok(_)) => panic!("{}: unpacked, not refused with {reason:?}", case.name),
            (Has(_), Err(error)) => panic!("{}: {error}", case.name),
        }
        let untouched = |tree: BTreeMap<String, String>| {
            tree.into_iter().filter(|(path, _)| !path.starts_with("layer") && path != ".").collect::<Vec<_>>()
        };
        assert_eq!(untouched(tree(dir.path())), untouched(outside), "{}: something outside was changed", case.name);
    }
    assert_eq!(lower.tree(), before, "a lower layer was changed");
    println!("{} cases", seen.len());
}

/// Number of files with a smuggled mark. Whiteouts are not counted: these cases make them on purpose.
fn lower_marks(found: &BTreeMap<String, String>) -> usize {
    let smuggled =
        [" trusted.overlay.redirect", " trusted.overlay.metacopy", " user.overlay.whiteout", "override_stat"];
    found.values().filter(|line| smuggled.iter().any(|mark| line.contains(mark))).count()
}

fn small_limits() -> Limits {
    Limits { entries: 2000, stream: 64 << 20, file: 1 << 40, ratio_from: 4 << 20, ratio: 100, ..Limits::default() }
}

#[test]
fn paths_that_lead_out() {
    let long = "d/".repeat(3000);
    run(vec![
        case("dot-dot", Tar::new().file("../evil", "x").end(), Refused("\"..\"")),
        case("dot-dot alone", Tar::new().dir("..").end(), Refused("\"..\"")),
        case("dot-dot inside", Tar::new().dir("a").file("a/../../evil", "x").end(), Refused("\"..\"")),
        case("dot-dot that stays inside", Tar::new().dir("a").file("a/../b", "x").end(), Refused("\"..\"")),
        case("dot-dot at the end", Tar::new().dir("a/..").end(), Refused("\"..\"")),
        case("absolute dot-dot", Tar::new().file("/../evil", "x").end(), Refused("\"..\"")),
        case("absolute name", Tar::new().file("/etc/evil", "x").end(), Has(&["etc/evil"])),
        case("many slashes", Tar::new().file("///etc///evil", "x").end(), Has(&["etc/evil"])),
        case("PAX dot-dot", Tar::new().entry(spec("fine", b'0').pax("path", "../evil")).end(), Refused("\"..\"")),
        case("PAX absolute", Tar::new().entry(spec("fine", b'0').pax("path", "/etc/evil")).end(), Has(&["etc/evil"])),
        case(
            "GNU long dot-dot",
            Tar::new().extension(b'L', b"../../evil\0").file("fine", "x").end(),
            Refused("\"..\""),
        ),
        case("prefix dot-dot", Tar::new().raw(&with_prefix("..")).end(), Refused("\"..\"")),
        case("sparse name dot-dot", sparse_named("../evil"), Refused("\"..\"")),
        case("backslashes are no separators", Tar::new().file("..\\evil", "x").end(), Has(&["..\\\\evil"])),
        case("three dots", Tar::new().file(".../x", "x").end(), Has(&[".../x"])),
        case("NUL in PAX path", Tar::new().entry(spec("a", b'0').pax("path", b"a\0b")).end(), Refused("NUL")),
        case(
            "component of 256 bytes",
            Tar::new().entry(spec("a", b'0').pax("path", "n".repeat(256))).end(),
            Refused("too long"),
        ),
        case("path of 6000 bytes", Tar::new().entry(spec("a", b'0').pax("path", &long)).end(), Refused("path")),
        case("empty name", Tar::new().file("", "x").end(), Refused("root")),
        case("root as a file", Tar::new().file("./", "x").end(), Refused("root")),
        case("root as a link", Tar::new().symlink(".", "/etc").end(), Refused("root")),
        case("root as a hard link", Tar::new().file("a", "").hardlink("/", "a").end(), Refused("root")),
        case("newline in a name", Tar::new().file("a\nb/../c", "x").end(), Refused("a\\nb")),
        case("escape sequence in a name", Tar::new().file("\x1b[2J/../c", "x").end(), Refused("\\u{1b}")),
    ]);
}

fn with_prefix(prefix: &str) -> [u8; 512] {
    let mut block = spec("evil", b'0').block();
    block[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
    seal(&mut block);
    block
}

fn sparse_named(name: &str) -> Vec<u8> {
    let spec = spec("x", b'0').pax("GNU.sparse.name", name).pax("GNU.sparse.size", "10").pax("GNU.sparse.map", "0,1");
    Tar::new().entry(spec.content("x")).end()
}

#[test]
fn links_that_lead_out() {
    let mut chain = Tar::new().symlink("l0", "l1");
    for index in 1..60 {
        chain = chain.symlink(format!("l{index}"), format!("l{}", index + 1));
    }
    run(vec![
        case(
            "link up, then through it",
            Tar::new().symlink("up", "../witness").file("up/evil", "x").end(),
            Has(&["witness/evil"]),
        ),
        case(
            "link to /, then through it",
            Tar::new().symlink("root", "/").file("root/evil", "x").end(),
            Has(&["evil"]),
        ),
        case(
            "link to /., then through it",
            Tar::new().symlink("root", "/.").file("root/evil", "x").end(),
            Has(&["evil"]),
        ),
        case(
            "absolute link, in the root a link to itself",
            Tar::new().symlink("etc", "/etc").file("etc/evil", "x").end(),
            Refused("too many symbolic links"),
        ),
        case("link to itself", Tar::new().symlink("a", "a").file("a/b", "x").end(), Refused("too many symbolic links")),
        case(
            "two links in a circle",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x").end(),
            Refused("too many symbolic links"),
        ),
        case("chain of sixty links", chain.file("l0/x", "x").end(), Refused("too many symbolic links")),
        case(
            "link growing as it is followed",
            Tar::new().symlink("a", "a/a").file("a/b", "x").end(),
            Refused("too many symbolic links"),
        ),
        case(
            "links stacked to climb",
            Tar::new().dir("a").symlink("a/b", "..").symlink("a/b/c", "../..").file("c/witness/evil", "x").end(),
            Has(&["witness/evil"]),
        ),
        case(
            "link, then a directory in its place, then through it",
            Tar::new().symlink("d", "../witness").dir("d").file("d/evil", "x").end(),
            Has(&["d/evil"]),
        ),
        case(
            "directory, then a link in its place, then through it",
            Tar::new().dir("d").symlink("d", "../witness").file("d/evil", "x").end(),
            Has(&["witness/evil"]),
        ),
        case(
            "file through a link of its own name",
            Tar::new().symlink("file", "../witness/file").file("file", "evil").end(),
            Has(&["file"]),
        ),
        case(
            "device through a link of its own name",
            Tar::new().symlink("n", "../witness/n").entry(spec("n", b'3').device(1, 3)).end(),
            Has(&["n"]),
        ),
        case(
            "mode through a link",
            Tar::new().symlink("w", "../witness").entry(spec("w", b'5').mode(0o777)).end(),
            Has(&["w"]),
        ),
        case("lower link that leads out", Tar::new().file("out/evil", "x").end(), Has(&["witness/evil"])),
        case("lower absolute link", Tar::new().file("abs-out/evil", "x").end(), Has(&["etc/evil"])),
        case(
            "through a proc link",
            Tar::new().symlink("p", "/proc/self/root").file("p/evil", "x").end(),
            Has(&["proc/self/root/evil"]),
        ),
        case("empty target", Tar::new().symlink("l", "").end(), Refused("link to nothing")),
        case(
            "endless target",
            Tar::new().entry(spec("l", b'2').pax("linkpath", "t".repeat(5000))).end(),
            Refused("l: "),
        ),
        case(
            "a file is no directory",
            Tar::new().file("f", "x").file("f/x", "x").end(),
            Refused("f is not a directory"),
        ),
        case(
            "a device is no directory",
            Tar::new().entry(spec("n", b'3').device(1, 3)).file("n/x", "x").end(),
            Refused("not a directory"),
        ),
        case(
            "a FIFO is no directory",
            Tar::new().entry(spec("p", b'6')).file("p/x", "x").end(),
            Refused("not a directory"),
        ),
        case("writing into a FIFO", Tar::new().entry(spec("p", b'6')).file("p", "x").end(), Has(&["p"])),
        case(
            "hard link to a FIFO, then a file",
            Tar::new().entry(spec("p", b'6')).hardlink("q", "p").file("q", "x").end(),
            Has(&["p", "q"]),
        ),
    ]);
}

#[test]
fn hard_links_that_lead_out() {
    run(vec![
        case("hard link up", Tar::new().hardlink("h", "../witness/file").end(), Refused("\"..\"")),
        case("hard link to an absolute path", Tar::new().hardlink("h", "/etc/passwd").end(), Refused("no such file")),
        case(
            "hard link through a link",
            Tar::new().symlink("w", "../witness").hardlink("h", "w/file").end(),
            Refused("no such file"),
        ),
        case(
            "hard link to a link that leads out",
            Tar::new().symlink("w", "../witness/file").hardlink("h", "w").file("h", "evil").end(),
            Has(&["h", "w"]),
        ),
        case("hard link to nothing", Tar::new().hardlink("h", "missing").end(), Refused("no such file")),
        case("hard link to itself", Tar::new().hardlink("h", "h").end(), Refused("no such file")),
        case("hard link to itself that is there", Tar::new().file("h", "x").hardlink("h", "h").end(), Has(&["h"])),
        case("hard link to a directory", Tar::new().dir("d").hardlink("h", "d").end(), Refused("a directory")),
        case("hard link to a lower directory", Tar::new().hardlink("h", "lower-dir").end(), Refused("a directory")),
        case("hard link to the root", Tar::new().hardlink("h", "/").end(), Refused("a directory")),
        case("hard link with an empty target", Tar::new().hardlink("h", "").end(), Refused("a directory")),
        case(
            "hard link to a whiteout",
            Tar::new().file(".wh.lower-file", "").hardlink("h", "lower-file").end(),
            Refused("deletes it"),
        ),
        case(
            "hard link to a whiteout's file",
            Tar::new().file(".wh.x", "").hardlink("h", ".wh.x").end(),
            Refused("no such file"),
        ),
        case(
            "hard link over its target's directory",
            Tar::new().dir("d").file("d/f", "x").hardlink("d", "d/f").end(),
            Refused("hard link to d/f"),
        ),
        case(
            "hard link claims contents",
            Tar::new().file("a", "x").entry(spec("h", b'1').link("a").size(512)).file("b", "").end(),
            Has(&["a", "h", "b"]),
        ),
        case(
            "hard link then the original replaced by a link out",
            Tar::new().file("a", "x").hardlink("h", "a").symlink("a", "/etc/passwd").file("h", "y").end(),
            Has(&["a", "h"]),
        ),
        case(
            "writing through a lower hard link",
            Tar::new().hardlink("h", "lower-file").file("h", "evil").end(),
            Has(&["h", "lower-file"]),
        ),
    ]);
}

#[test]
fn whiteouts_that_delete_too_much() {
    run(vec![
        case("whiteout of .", Tar::new().dir("d").file("d/.wh..", "").end(), Refused("names no entry")),
        case("whiteout of ..", Tar::new().dir("d").file("d/.wh...", "").end(), Refused("names no entry")),
        case("whiteout of nothing", Tar::new().dir("d").file("d/.wh.", "").end(), Refused("names no entry")),
        case("entry below a whiteout", Tar::new().file(".wh.a/b", "").end(), Refused("below a whiteout")),
        case("entry below an opaque marker", Tar::new().file(".wh..wh..opq/b", "").end(), Refused("below a whiteout")),
        case(
            "whiteout through a link",
            Tar::new().symlink("w", "../witness").file("w/.wh.file", "").end(),
            Has(&["witness/file"]),
        ),
        case(
            "opaque marker through a link",
            Tar::new().symlink("w", "../witness").file("w/.wh..wh..opq", "").end(),
            Has(&["witness"]),
        ),
        case("whiteout of a name with dots", Tar::new().file(".wh..a", "").end(), Has(&[".a"])),
        case("whiteout of a whiteout", Tar::new().file(".wh..wh.a", "").end(), Has(&["."])),
        case("whiteout as a link", Tar::new().symlink(".wh.a", "/etc").end(), Has(&["a"])),
        case("whiteout as a directory", Tar::new().dir(".wh.a").end(), Has(&["a"])),
        case("whiteout with contents", Tar::new().file(".wh.a", "surplus").file("b", "x").end(), Has(&["a", "b"])),
        case("two whiteouts of one name", Tar::new().file(".wh.a", "").file(".wh.a", "").end(), Has(&["a"])),
        case("whiteout in a file", Tar::new().file("f", "x").file("f/.wh.a", "").end(), Refused("not a directory")),
        case(
            "whiteout of the lower parent, then a file in it",
            Tar::new().file(".wh.lower-dir", "").file("lower-dir/x", "").end(),
            Has(&["lower-dir/x"]),
        ),
        case("opaque root", Tar::new().file(".wh..wh..opq", "").end(), Has(&["."])),
    ]);
}

#[test]
fn smuggled_marks_and_devices() {
    let xattr = |name: &str, value: &str| spec("f", b'0').pax(format!("SCHILY.xattr.{name}"), value);
    run(vec![
        case("character device 0:0", Tar::new().entry(spec("n", b'3')).end(), Refused("0:0")),
        case(
            "character device 0:0 over a lower file",
            Tar::new().entry(spec("lower-file", b'3')).end(),
            Refused("0:0"),
        ),
        case("block device 0:0", Tar::new().entry(spec("n", b'4')).end(), Has(&["n"])),
        case(
            "device number out of range",
            Tar::new().entry(spec("n", b'3').device(0o7777777, 0o7777777)).end(),
            Refused("device number is out of range"),
        ),
        case(
            "trusted.overlay.redirect",
            Tar::new().entry(xattr("trusted.overlay.redirect", "/etc")).end(),
            Has(&["f"]),
        ),
        case("trusted.overlay.metacopy", Tar::new().entry(xattr("trusted.overlay.metacopy", "")).end(), Has(&["f"])),
        case("user.overlay.whiteout", Tar::new().entry(xattr("user.overlay.whiteout", "y")).end(), Has(&["f"])),
        case("override_stat", Tar::new().entry(xattr("user.containers.override_stat", "0:0:4755")).end(), Has(&["f"])),
        case(
            "libarchive's form of a mark",
            Tar::new().entry(spec("f", b'0').pax("LIBARCHIVE.xattr.trusted%2Eoverlay%2Eredirect", "L2V0Yw")).end(),
            Has(&["f"]),
        ),
        case("attribute without a name space", Tar::new().entry(xattr("evil", "x")).end(), Has(&["f"])),
        case(
            "attribute with an endless name",
            Tar::new().entry(xattr(&format!("user.{}", "n".repeat(300)), "x")).end(),
            Refused("attribute"),
        ),
        case(
            "attribute of 70,000 bytes",
            Tar::new().entry(xattr("user.big", &"x".repeat(70_000))).end(),
            Refused("xattr"),
        ),
        case("attribute with a NUL in its name", Tar::new().entry(xattr("user.a\0b", "x")).end(), Refused("PAX")),
        case(
            "capability that is none",
            Tar::new().entry(xattr("security.capability", "junk")).end(),
            Refused("security.capability"),
        ),
        case("ACL that is none", Tar::new().entry(xattr("system.posix_acl_access", "junk")).end(), Has(&["f"])),
        case("owner 4294967295", Tar::new().entry(spec("f", b'0').owner(u64::from(u32::MAX), 0)).end(), Refused("uid")),
        case("owner beyond 32 bits", Tar::new().entry(spec("f", b'0').pax("gid", "99999999999")).end(), Refused("gid")),
        case("negative owner", Tar::new().entry(spec("f", b'0').owner(u64::MAX, 0)).end(), Refused("uid")),
    ]);
}

#[test]
fn headers_that_lie() {
    let mut bad_sum = spec("a", b'0').block();
    bad_sum[0] = b'b';
    let mut not_octal = spec("a", b'0').block();
    not_octal[100..104].copy_from_slice(b"9999");
    seal(&mut not_octal);
    let mut negative = spec("a", b'0').block();
    negative[124..136].copy_from_slice(&number(-512, 12));
    seal(&mut negative);
    let extension_of = |size: u64| Tar::new().raw(&spec("x", b'x').size(size).block());
    let pax = |bytes: &[u8]| Tar::new().extension(b'x', bytes).file("f", "x").end();
    run(vec![
        case("wrong checksum", Tar::new().raw(&bad_sum).end(), Refused("checksum")),
        case("text", b"this is not a tar archive at all\n".repeat(40), Refused("checksum")),
        case("xz that is none", [&b"\xfd7zXZ\0"[..], &[7; 600]].concat(), Refused("xz")),
        case("bzip2 that is none", [&b"BZh91AY&SY"[..], &[7; 600]].concat(), Refused("bzip2")),
        case("lz4", [&b"\x04\x22\x4d\x18"[..], &[7; 600]].concat(), Refused("lz4")),
        case("short text", b"hello".to_vec(), Refused("not a tar archive")),
        case("nothing at all", b"".to_vec(), Has(&["."])),
        case("zeros", vec![0; 10240], Has(&["."])),
        case("one zero block, then an entry", Tar::new().raw(&[0; 512]).file("a", "").end(), Refused("zero block")),
        case(
            "entries after the end",
            [Tar::new().file("a", "").end(), Tar::new().file("hidden", "").end()].concat(),
            Has(&["a"]),
        ),
        case("mode is not octal", Tar::new().raw(&not_octal).end(), Refused("mode")),
        case("negative size", Tar::new().raw(&negative).end(), Refused("negative")),
        case(
            "size beyond the stream",
            Tar::new().raw(&spec("a", b'0').size(1 << 33).block()).end(),
            Refused("cut off"),
        ),
        case(
            "size of 8 EiB",
            Tar::new().entry(spec("a", b'0').pax("size", "9223372036854775807")).end(),
            Refused("size"),
        ),
        case(
            "file beyond the limit",
            Tar::new().entry(spec("a", b'0').pax("size", "2000000000000")).end(),
            Refused("file"),
        ),
        case("unknown type", Tar::new().entry(spec("a", b'M')).end(), Refused("type")),
        case("extension header of 1 GiB", extension_of(1 << 30).end(), Refused("extension")),
        case(
            "extension header of 8 EiB",
            Tar::new().raw(&spec("x", b'x').size(i64::MAX as u64).block()).end(),
            Refused("extension"),
        ),
        case(
            "GNU long name of 1 GiB",
            Tar::new().raw(&spec("x", b'L').gnu().size(1 << 30).block()).end(),
            Refused("extension"),
        ),
        case(
            "global header of 1 GiB",
            Tar::new().raw(&spec("x", b'g').size(1 << 30).block()).end(),
            Refused("extension"),
        ),
        case(
            "extension header and nothing",
            Tar::new().extension(b'x', &record(b"path", b"a")).end(),
            Refused("extension header"),
        ),
        case("long name and nothing", Tar::new().extension(b'L', b"a\0").end(), Refused("extension header")),
        case("record longer than its header", pax(b"99 path=a\n"), Refused("longer")),
        case("record of length zero", pax(b"0 path=a\n"), Refused("PAX")),
        case("record of endless length", pax(b"99999999999999999999999 path=a\n"), Refused("PAX")),
        case("record without an equals sign", pax(b"9 patha\n\n"), Refused("PAX")),
        case("record without a newline", pax(b"9 path=abc"), Refused("PAX")),
        case("record with a negative length", pax(b"-9 path=a\n"), Refused("PAX")),
        case("record without a key", pax(b"5 =a\n"), Refused("PAX")),
        case(
            "records twice: the last counts",
            pax(&[record(b"path", b"../evil"), record(b"path", b"good")].concat()),
            Has(&["good"]),
        ),
        case(
            "two PAX headers: the last counts",
            Tar::new()
                .extension(b'x', &record(b"path", b"../evil"))
                .extension(b'x', &record(b"path", b"good"))
                .file("f", "")
                .end(),
            Has(&["good"]),
        ),
        case(
            "PAX size is larger than the header's",
            Tar::new().entry(spec("a", b'0').content("x".repeat(600)).size(1).pax("size", "600")).file("b", "").end(),
            Has(&["a", "b"]),
        ),
        case("PAX size is not a number", Tar::new().entry(spec("a", b'0').pax("size", "-1")).end(), Refused("size")),
        case("PAX time is not a time", Tar::new().entry(spec("a", b'0').pax("mtime", "now")).end(), Refused("mtime")),
        case(
            "global path is not applied",
            Tar::new().extension(b'g', &record(b"path", b"../evil")).file("f", "").end(),
            Has(&["f"]),
        ),
        case(
            "GNU long name in a header that is not GNU's",
            Tar::new().entry(spec("x", b'L').content("good\0")).file("f", "").end(),
            Has(&["good"]),
        ),
        case("empty GNU long name", Tar::new().extension(b'L', b"\0").file("f", "").end(), Has(&["f"])),
        case(
            "global header between a name and its entry",
            Tar::new().extension(b'x', &record(b"path", b"lost")).extension(b'g', b"").file("f", "").end(),
            Has(&["f"]),
        ),
        case(
            "old GNU sparse file in a header that is not GNU's",
            Tar::new().entry(spec("s", b'S').content("x")).end(),
            Refused("not GNU's"),
        ),
        case(
            "directory claims contents",
            Tar::new().entry(spec("d", b'5').size(512)).file("b", "").end(),
            Has(&["d", "b"]),
        ),
        case(
            "link claims contents",
            Tar::new().entry(spec("l", b'2').link("x").size(512)).file("b", "").end(),
            Has(&["l", "b"]),
        ),
        case(
            "two thousand and one entries",
            (0..2001).fold(Tar::new(), |tar, _| tar.file("f", "")).end(),
            Refused("entries"),
        ),
    ]);
}

fn sparse_10(map: &str, real: &str, content: &str) -> Vec<u8> {
    let mut stored = map.as_bytes().to_vec();
    stored.resize(stored.len().next_multiple_of(512), 0);
    stored.extend_from_slice(content.as_bytes());
    let spec =
        spec("s", b'0').pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.realsize", real);
    Tar::new().entry(spec.content(stored)).end()
}

fn sparse_01(map: &str, real: &str, content: &str) -> Vec<u8> {
    let spec = spec("s", b'0').pax("GNU.sparse.size", real).pax("GNU.sparse.map", map);
    Tar::new().entry(spec.content(content)).end()
}

#[test]
fn sparse_maps_that_lie() {
    let mut endless = spec("s", b'S').gnu().block();
    endless[482] = 1;
    seal(&mut endless);
    let mut extension = [0_u8; 512];
    extension[504] = 1;
    run(vec![
        case("overlapping parts", sparse_01("0,4,2,4", "100", "abcdefgh"), Refused("overlaps")),
        case("parts out of order", sparse_01("50,4,0,4", "100", "abcdefgh"), Refused("overlaps")),
        case("part beyond the end", sparse_01("98,4", "100", "abcd"), Refused("beyond")),
        case("parts that need more than is stored", sparse_01("0,4,10,90", "100", "abcd"), Refused("covers")),
        case("parts that need less than is stored", sparse_01("0,1", "100", "abcd"), Refused("covers")),
        case("map of an odd count", sparse_01("0,4,5", "100", "abcd"), Refused("sparse map")),
        case("map of words", sparse_01("zero,four", "100", "abcd"), Refused("not a number")),
        case("offset overflow", sparse_01("18446744073709551615,4", "100", "abcd"), Refused("beyond")),
        case("real size of 16 EiB", sparse_01("0,4", "18446744073709551615", "abcd"), Refused("file")),
        case("map without end", sparse_10("9999999\n0\n1\n", "100", "x"), Refused("sparse")),
        case("map of ten million pairs", sparse_10("10000000\n", "100", "x"), Refused("sparse_segments")),
        case("map of letters", sparse_10("x\n", "100", "x"), Refused("not a number")),
        case("map without a newline", sparse_10(&"1".repeat(600), "100", "x"), Refused("does not end")),
        case("map longer than the entry", sparse_10("1\n0\n", "100", ""), Refused("does not end")),
        case(
            "version 2.0",
            Tar::new()
                .entry(
                    spec("s", b'0')
                        .pax("GNU.sparse.major", "2")
                        .pax("GNU.sparse.minor", "0")
                        .pax("GNU.sparse.realsize", "1"),
                )
                .end(),
            Refused("sparse format"),
        ),
        case(
            "no real size",
            Tar::new().entry(spec("s", b'0').pax("GNU.sparse.map", "0,1").content("x")).end(),
            Refused("real size"),
        ),
        case("endless GNU map", Tar::new().raw(&endless).raw(&extension.repeat(50)).bytes, Refused("cut off")),
        case(
            "lengths before offsets",
            Tar::new().entry(spec("s", b'0').pax("GNU.sparse.size", "9").pax("GNU.sparse.numbytes", "1")).end(),
            Refused("out of turn"),
        ),
        case(
            "fewer pairs than promised",
            Tar::new()
                .entry(
                    spec("s", b'0')
                        .pax("GNU.sparse.size", "9")
                        .pax("GNU.sparse.numblocks", "2")
                        .pax("GNU.sparse.map", "0,1")
                        .content("x"),
                )
                .end(),
            Refused("pairs"),
        ),
    ]);
}

#[test]
fn streams_that_lie() {
    let tar = Tar::new().file("a", "hello").end();
    let zeros_then = |len: usize| Tar::new().file("zeros", vec![0; len]).end();
    let ones = Tar::new().file("ones", vec![1; 32 << 20]).end();
    let mut bad_crc = gzip(&tar);
    let at = bad_crc.len() - 8;
    bad_crc[at] ^= 1;
    let mut corrupt = gzip(&tar);
    corrupt[20] ^= 0xff;
    let mut bad_zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let middle = bad_zstd.len() / 2;
    bad_zstd[middle] ^= 0xff;
    let mut bad_xz = packed("xz", &tar);
    let at = bad_xz.len() - 45;
    bad_xz[at] ^= 1;
    let mut bad_bzip2 = packed("bzip2", &tar);
    bad_bzip2[30] ^= 1;
    run(vec![
        case("gzip bomb on disk", gzip(&ones), Refused("ratio")),
        case("zstd bomb on disk", zstd::encode_all(ones.as_slice(), 1).unwrap(), Refused("ratio")),
        case("gzip bomb of stream", gzip(&zeros_then(80 << 20)), Refused("stream")),
        case("zstd bomb of stream", zstd::encode_all(zeros_then(80 << 20).as_slice(), 1).unwrap(), Refused("stream")),
        case("bomb behind the archive's end", gzip(&[tar.clone(), vec![0; 80 << 20]].concat()), Refused("stream")),
        case("gzip with a wrong checksum", bad_crc, Refused("gzip")),
        case("damaged gzip", corrupt, Refused("")),
        case("damaged zstd", bad_zstd, Refused("")),
        case("zeros are no bomb", gzip(&zeros_then(48 << 20)), Has(&["zeros"])),
        case("xz bomb on disk", packed("xz", &ones), Refused("ratio")),
        case("bzip2 bomb on disk", packed("bzip2", &ones), Refused("ratio")),
        case("xz bomb of stream", packed("xz", &zeros_then(80 << 20)), Refused("stream")),
        case("xz with a wrong checksum", bad_xz, Refused("xz")),
        case("damaged bzip2", bad_bzip2, Refused("bzip2")),
        case("xz header alone", b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec(), Refused("xz")),
        case("xz cut short", packed("xz", &tar)[..80].to_vec(), Refused("xz")),
        case("bzip2 cut short", packed("bzip2", &tar)[..80].to_vec(), Refused("bzip2")),
        case("gzip header alone", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], Refused("gzip")),
        case("zstd magic alone", vec![0x28, 0xb5, 0x2f, 0xfd], Refused("zstd")),
        case("gzip in gzip", gzip(&gzip(&tar)), Refused("layer tar")),
        case("zstd window of 2 GiB", vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0], Refused("zstd")),
        case("skippable frame without end", vec![0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff], Refused("zstd")),
        case("gzip, garbage after it", [gzip(&tar), b"garbage".to_vec()].concat(), Has(&["a"])),
    ]);
}

/// Every prefix of a layer is refused, or is a layer of the entries up to an entry's end.
#[test]
fn cut_at_every_block() {
    let tar = Tar::new()
        .dir("d")
        .file("d/f", "x".repeat(1500))
        .entry(spec("long", b'0').pax("path", "n".repeat(200)).content("y"))
        .extension(b'L', format!("{}\0", "m".repeat(700)).as_bytes())
        .symlink("l", "d")
        .raw(&{
            let mut block = spec("s", b'S').gnu().content("z").block();
            block[386..397].copy_from_slice(&number(600, 12));
            block[398..409].copy_from_slice(&number(1, 12));
            block[482] = 1;
            block[483..494].copy_from_slice(&number(1000, 12));
            seal(&mut block);
            block
        })
        .raw(&[0; 512])
        .raw(b"z")
        .pad()
        .hardlink("h", "d/f")
        .file(".wh.gone", "");
    // The long name has a component of 700 bytes, which is refused; build the rest without it.
    assert!(unpack_over(&tar.clone().end(), &[]).is_err());
    let tar = Tar::new()
        .dir("d")
        .file("d/f", "x".repeat(1500))
        .entry(spec("long", b'0').pax("path", "n".repeat(200)).content("y"))
        .extension(b'L', format!("{}\0", "m/".repeat(350)).as_bytes())
        .file("x", "y")
        .hardlink("h", "d/f")
        .file(".wh.gone", "")
        .end();
    let whole = unpack(&tar);
    let mut accepted = 0;
    for len in (0..tar.len()).step_by(512).flat_map(|len| [len, len + 1, len + 511]) {
        for stream in [tar[..len].to_vec(), gzip(&tar[..len])] {
            if let Ok(layer) = unpack_over(&stream, &[]) {
                accepted += 1;
                assert!(layer.unpacked.entries <= whole.unpacked.entries);
                assert_ne!(layer.unpacked.diff_id, whole.unpacked.diff_id, "the DiffID tells");
                assert_eq!(reassembled(&layer).unwrap(), &tar[..len]);
            }
        }
    }
    // Between entries, and inside what follows the end.
    assert!(accepted > 0);
    let compressed = gzip(&tar);
    for len in (4..compressed.len()).step_by(5) {
        assert!(unpack_over(&compressed[..len], &[]).is_err(), "gzip cut at {len}");
    }
}

#[test]
fn another_process_swapping_directories_and_links() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    std::fs::create_dir(dir.path().join("witness")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Each step may fail, because it is a race.
                drop(std::fs::rename(layer.join("d"), layer.join("moved")));
                drop(std::os::unix::fs::symlink("../witness", layer.join("d")));
                drop(std::fs::remove_file(layer.join("d")));
                drop(std::fs::rename(layer.join("moved"), layer.join("d")));
            }
        });
        let fd = std::fs::File::open(&layer).unwrap();
        for round in 0..25 {
            let tar = (0..80).fold(Tar::new(), |tar, index| {
                let other = (0..70)
                    .fold(tar.dir("d"), |tar, other| if index == 0 { tar.dir(format!("o{other}")) } else { tar });
                other.file(format!("d/{round}-{index}"), "x").dir(format!("d/sub{index}"))
            });
            drop(stratafs::image::unpack::unpack_layer(
                &mut tar.end().as_slice(),
                std::os::fd::AsFd::as_fd(&fd),
                &[],
                None,
                &UnpackOptions::default(),
            ));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(tree(&dir.path().join("witness")).len(), 1, "something was written outside");
}

/// All cases again in a separate process, where nothing else takes memory.
#[test]
fn memory_is_bounded() {
    if std::env::var_os(MEASURE).is_some() {
        return;
    }
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--test-threads", "1", "--nocapture"])
        .env(MEASURE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    let most = told.lines().filter_map(|line| line.split_once(" bytes: ")?.0.parse().ok()).max();
    let cases = told.matches(" bytes: ").count();
    println!("{cases} cases, {most:?} bytes at most");
    assert!(cases > 100 && most > Some(0_usize), "{told}");
}
