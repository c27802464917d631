//! What remains after a power failure: the file system below is stopped and loses everything that it has not written.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::common::{Stack, sys, tree};
use crate::layers::{loop_mount, upper_on};
use crate::on_both;

const FILES: usize = 40;

/// Longer than a page, so that a part of it could be missing; different for every file.
fn content(number: usize) -> String {
    format!("{number:>8} ").repeat(900)
}

/// Stops the file system at `place` without writing its journal (`xfs_io(8)`, `shutdown`; ext4 knows the call, too).
fn cut_power(place: &Path) {
    let cut = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(place).output().unwrap();
    assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
}

/// Commits the journal with the names made so far, but writes only the content of one new file.
fn commit(place: &Path) {
    let file = fs::File::create(place.join("other")).unwrap();
    file.sync_all().unwrap();
}

/// The unmount is not lazy: if the file system were mounted again before it is gone, it would still be stopped.
fn unmount(place: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match rustix::mount::unmount(place, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            done => return done.unwrap(),
        }
    }
}

on_both! {
    fn a_copied_up_file_is_whole_or_not_there(driver) {
        for kind in ["ext4", "xfs"] {
            let mut layers = Stack::new().lower("").build();
            let place = layers.directory.path().join("image");
            if !loop_mount(&place, kind, None) {
                crate::common::skip(&format!("power::{kind}"), "no such file system here");
                continue;
            }
            upper_on(&mut layers, &place);
            for number in 0..FILES {
                sys::create(&layers.lowers[0].join(format!("f{number}")), content(number).as_bytes()).unwrap();
            }
            layers.originals[0] = tree::snapshot(&layers.lowers[0], true);
            let upper = layers.upper.clone().unwrap();
            let mount = layers.mount(driver);
            for number in 0..FILES {
                let path = mount.at(&format!("f{number}"));
                // Copied up for writing, and for a change of attributes.
                match number % 2 {
                    0 => drop(fs::File::options().append(true).open(&path).unwrap()),
                    _ => sys::chmod(&path, 0o640).unwrap(),
                }
            }
            commit(&place);
            cut_power(&place);
            let layers = mount.crash();
            unmount(&place);
            let image = place.with_extension(kind);
            let again = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place).output().unwrap();
            assert!(again.status.success(), "{kind}: {}", String::from_utf8_lossy(&again.stderr));
            let mut found = 0;
            for number in 0..FILES {
                match fs::read_to_string(upper.join(format!("f{number}"))) {
                    Ok(text) => {
                        assert_eq!(text.len(), content(number).len(), "{kind}: f{number}");
                        assert!(text == content(number), "{kind}: f{number} has another content");
                        found += 1;
                    }
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{kind}: f{number}"),
                }
            }
            assert_eq!(found, FILES, "{kind}: the journal was written after the last one");
            unmount(&place);
            drop(layers);
        }
    }
}
