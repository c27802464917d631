//! One thing that is met in two places means the same in both: a layer twice in one image, an entry of an outer
//! archive and of a layer.

use std::path::Path;

use super::super::container::worlds;
use super::super::crashes::one_image;
use super::super::tar_build::Tar;

/// overlayfs refuses one directory twice (ELOOP). The topmost of two equal layers shows all that both would show.
#[test]
fn the_same_layer_twice_in_one_image() {
    let twice = Tar::new().dir("d/").file("d/a", "twice").file(".wh.gone", "").end();
    let between = Tar::new().dir("d/").file("d/.wh.a", "").file("d/b", "between").file("gone", "").end();
    let top = Tar::new().file("top", "").end();
    for world in worlds() {
        let driver = world.driver;
        for (name, layers) in [
            ("x:1", vec![twice.clone(), between.clone(), twice.clone()]),
            ("x:2", vec![twice.clone(), between.clone(), twice.clone(), top.clone(), between.clone(), twice.clone()]),
            ("x:3", vec![twice.clone(), twice.clone()]),
        ] {
            let archive = world.dir.path().join("archive");
            std::fs::write(&archive, one_image(name, &layers)).unwrap();
            world.ok(&["load", "-i", archive.to_str().unwrap()]);
            for access in [&["--read-only"][..], &[]] {
                let merged = world.ok(&[&["mount", "--name", "c"][..], access, &[name]].concat());
                let merged = Path::new(merged.trim());
                assert_eq!(std::fs::read_to_string(merged.join("d/a")).unwrap(), "twice", "{driver} {name} {access:?}");
                assert_eq!(merged.join("d/b").exists(), name != "x:3", "{driver} {name} {access:?}");
                assert!(!merged.join("gone").exists(), "{driver} {name} {access:?}");
                world.ok(&["umount", "--rm", "c"]);
            }
        }
    }
}
