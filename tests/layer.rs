//! Layers between tar streams and directories: one test for each rule of the format.

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use layer_dirs::*;
use stratafs::image::layer::{self, SnapshotOptions};
use tar_build::*;

fn lines(layer: &Layer) -> Vec<String> {
    layer.tree().into_iter().map(|(path, line)| format!("{path}: {line}")).collect()
}

#[test]
fn files_of_every_type() {
    let tar = Tar::new()
        .dir("d/")
        .file("d/f", "hello")
        .symlink("d/s", "../x")
        .hardlink("h", "d/f")
        .entry(spec("c", b'3').device(1, 3).mode(0o666))
        .entry(spec("b", b'4').device(8, 1).owner(0, 6))
        .entry(spec("p", b'6').mode(0o600))
        .entry(spec("suid", b'0').content("x").mode(0o6755).owner(1, 2))
        .end();
    let layer = unpack(&tar);
    assert_eq!(
        lines(&layer),
        [
            ".: dir 755 0:0 @0",
            "b: block 8:1 644 0:6 @1000000000",
            "c: char 1:3 666 0:0 @1000000000",
            "d: dir 755 0:0 @1000000000",
            "d/f: file \"hello\" 644 0:0 @1000000000",
            "d/s: link ../x 777 0:0 @1000000000",
            "h: file \"hello\" 644 0:0 @1000000000",
            "p: fifo 600 0:0 @1000000000",
            "suid: file \"x\" 6755 1:2 @1000000000",
        ]
    );
    assert_eq!(reassembled(&layer).unwrap(), tar);
    let mut out = Vec::new();
    let snapshot = layer::snapshot(layer.as_fd(), &[], &mut out, &SnapshotOptions::default()).unwrap();
    let again = unpack(&out);
    assert_eq!(again.tree(), layer.tree());
    assert_eq!(again.unpacked.diff_id, snapshot.diff_id);
}
