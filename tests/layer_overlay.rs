//! The kernel's overlayfs as the judge: layer directories mount unchanged, and a snapshot of an upper
//! directory from the kernel gives a layer with the tree that the kernel showed. Needs root, not FUSE.

#![allow(clippy::unwrap_used)]

#[path = "common/layer_dirs.rs"]
mod layer_dirs;
#[path = "common/tar_build.rs"]
mod tar_build;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use layer_dirs::*;
use stratafs::image::layer;
use stratafs::image::snapshot::{self, SnapshotOptions};
use stratafs::image::unpack;
use tar_build::*;

/// A mounted overlay, unmounted when dropped.
struct Overlay {
    dir: tempfile::TempDir,
}

impl Overlay {
    fn mount(lowers: &[&Layer], options: &str, writable: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["merged", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::set_permissions(dir.path().join("upper"), fs::Permissions::from_mode(0o755)).unwrap();
        let lower: Vec<String> = lowers.iter().map(|layer| layer.path().display().to_string()).collect();
        let mut arguments = format!("lowerdir={}{options}", lower.join(":"));
        if writable {
            arguments += &format!(",upperdir={0}/upper,workdir={0}/work", dir.path().display());
        }
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &arguments])
            .arg(dir.path().join("merged"))
            .status();
        assert!(status.unwrap().success(), "mounting overlayfs with {arguments}");
        Self { dir }
    }

    fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    fn unmount(&self) {
        assert!(Command::new("umount").arg(self.merged()).status().unwrap().success());
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // It may be unmounted already.
        drop(Command::new("umount").arg("-q").arg(self.merged()).status());
    }
}

/// The stack as the kernel shows it, without the root, whose time depends on the layer on top.
fn seen(lowers: &[&Layer]) -> BTreeMap<String, String> {
    let empty = unpack(&Tar::new().end());
    let overlay = Overlay::mount(&[lowers, &[&empty]].concat(), "", false);
    let mut found = tree(&overlay.merged());
    found.remove(".");
    found
}

fn base() -> Layer {
    unpack(
        &Tar::new()
            .dir("etc/")
            .file("etc/conf", "lower conf")
            .file("etc/other", "lower other")
            .dir("etc/conf.d/")
            .file("etc/conf.d/one", "1")
            .dir("usr/")
            .dir("usr/lib/")
            .entry(
                spec("usr/lib/big", b'0')
                    .content(vec![7; 100_000])
                    .owner(5, 6)
                    .mode(0o4755)
                    .pax("SCHILY.xattr.user.k", "v"),
            )
            .symlink("lib", "usr/lib")
            .hardlink("usr/lib/big2", "usr/lib/big")
            .entry(spec("null", b'3').device(1, 3))
            .end(),
    )
}

#[test]
fn layer_directories_mount_as_they_are() {
    let bottom = base();
    let top = unpack_over(
        &Tar::new()
            .dir("etc/")
            .file("etc/.wh.conf", "")
            .file(".wh.usr", "")
            .dir("usr/")
            .file("usr/new", "n")
            .dir("etc/conf.d/")
            .file("etc/conf.d/.wh..wh..opq", "")
            .file("etc/conf.d/two", "2")
            .entry(spec("marked", b'0').content("m").pax("SCHILY.xattr.trusted.overlay.opaque", "y"))
            .end(),
        &[&bottom],
    )
    .unwrap();
    let found = seen(&[&top, &bottom]);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["etc", "etc/conf.d", "etc/conf.d/two", "etc/other", "lib", "marked", "null", "usr", "usr/new"]);
    assert!(found["marked"].contains("trusted.overlay.opaque=y"), "unescaped by the kernel: {}", found["marked"]);
    assert!(found["null"].starts_with("char 1:3"));
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let bottom = base();
    let top =
        unpack_over(&Tar::new().file(".wh..wh..opq", "").dir("etc/").file("etc/mine", "m").end(), &[&bottom]).unwrap();
    assert!(top.unpacked.depends_on_lower);
    assert_eq!(seen(&[&top, &bottom]).keys().collect::<Vec<_>>(), ["etc", "etc/mine"]);
    // And it stays one, for layers above that are unpacked later.
    let above = unpack_over(&Tar::new().hardlink("h", "null").end(), &[&top, &bottom]);
    assert!(above.is_err());
}

#[test]
fn xattr_whiteouts_delete_in_the_kernel_too() {
    let bottom = base();
    let marks = layer::MarkStyle { whiteouts: layer::WhiteoutForm::Xattr, ..layer::MarkStyle::default() };
    let options = unpack::UnpackOptions { marks, ..Default::default() };
    let tar = Tar::new().dir("etc/").file("etc/.wh.conf", "").file(".wh.usr", "").end();
    let top = unpack_with(&tar, &[&bottom], &options).unwrap();
    let found = seen(&[&top, &bottom]);
    assert!(!found.contains_key("etc/conf") && found.contains_key("etc/other"), "{found:#?}");
    assert!(!found.contains_key("usr"), "{found:#?}");
}

/// Changes a writable mount; returns nothing, because the kernel's tree is the result.
fn change_everything(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::remove_file(at("etc/conf")).unwrap();
    fs::write(at("etc/new"), "new").unwrap();
    fs::remove_dir_all(at("etc/conf.d")).unwrap();
    fs::create_dir(at("etc/conf.d")).unwrap();
    fs::write(at("etc/conf.d/two"), "2").unwrap();
    fs::set_permissions(at("usr/lib/big"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::remove_file(at("lib")).unwrap();
    fs::create_dir(at("lib")).unwrap();
    symlink("target", at("link")).unwrap();
    fs::hard_link(at("etc/new"), at("etc/new2")).unwrap();
    fs::write(at(".wh"), "an honest name").unwrap();
}

/// Changes that need the kernel's redirects.
fn rename_directories(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::rename(at("usr"), at("moved")).unwrap();
    fs::rename(at("moved/lib"), at("moved/lib2")).unwrap();
    fs::write(at("moved/lib2/added"), "a").unwrap();
    fs::remove_file(at("moved/lib2/big2")).unwrap();
    fs::create_dir(at("usr")).unwrap();
    fs::write(at("usr/fresh"), "f").unwrap();
}

fn round_trip(options: &str, changes: &[fn(&Path)]) {
    let bottom = base();
    let middle = unpack_over(
        &Tar::new().dir("etc/").file("etc/middle", "m").dir("usr/").dir("usr/share/").file("usr/share/s", "s").end(),
        &[&bottom],
    )
    .unwrap();
    let overlay = Overlay::mount(&[&middle, &bottom], options, true);
    for change in changes {
        change(&overlay.merged());
    }
    let mut shown = tree(&overlay.merged());
    shown.remove(".");
    overlay.unmount();
    let upper = fs::File::open(overlay.upper()).unwrap();
    let mut tar = Vec::new();
    snapshot::snapshot(upper.as_fd(), &[middle.as_fd(), bottom.as_fd()], &mut tar, &SnapshotOptions::default())
        .unwrap();
    let top = unpack_over(&tar, &[&middle, &bottom]).unwrap();
    assert_eq!(seen(&[&top, &middle, &bottom]), shown);
    // And the layer has the same meaning again.
    let mut again = Vec::new();
    snapshot::snapshot(top.as_fd(), &[middle.as_fd(), bottom.as_fd()], &mut again, &SnapshotOptions::default())
        .unwrap();
    assert_eq!(again, tar);
}

#[test]
fn a_snapshot_gives_the_tree_that_the_kernel_showed() {
    round_trip("", &[change_everything]);
}

#[test]
fn a_snapshot_expands_the_kernel_s_redirects() {
    round_trip(",redirect_dir=on", &[rename_directories]);
    round_trip(",redirect_dir=on", &[change_everything, rename_directories]);
}

#[test]
fn a_snapshot_fills_in_the_kernel_s_metacopies() {
    round_trip(",redirect_dir=on,metacopy=on", &[change_everything]);
    round_trip(
        ",redirect_dir=on,metacopy=on",
        &[rename_directories, |root| {
            fs::set_permissions(root.join("moved/lib2/big"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(root.join("moved/lib2/big"), root.join("big-moved")).unwrap();
        }],
    );
}
