//! Inventories of layers in a mount. `on_both!` makes sure that every other test passes with them;
//! `tests/inventory.rs` tests their content and when they are trusted.

use rustix::fs::OFlags;

use super::caching::{OTHERS, open_others};
use crate::common::{Stack, sys, tree, use_inventories};
use crate::on_stratafs;

on_stratafs! {
    /// A process that opens the file gets its present content, complete: the kernel asks again.
    fn a_file_changed_in_its_layer_is_read_whole(driver) {
        use_inventories();
        let mut layers = Stack::new().lower("file d/f \"short\"\nfile d/run \"#!/bin/sh\\n\" mode=755").build();
        sys::append(&layers.lowers[0].join("d/f"), b" and longer").unwrap();
        layers.originals = layers.lowers.iter().map(|path| tree::snapshot(path, true)).collect();
        let mount = layers.mount(driver);
        assert_eq!(sys::lstat(&mount.at("d/f")).unwrap().st_size, 5, "the inventory is not used");
        assert_eq!(sys::text(&mount.at("d/f")), "short and longer");
        assert_eq!(sys::lstat(&mount.at("d/f")).unwrap().st_size, 16);
        assert!(mount.log().contains("changed in its layer"), "{}", mount.log());
        sys::append(&mount.at("d/f"), b"!").unwrap();
        assert_eq!(sys::text(&mount.at("d/f")), "short and longer!");
        assert_eq!(sys::names(&mount.at("d")), ["f", "run"]);
    }

    /// A file that was opened before is opened again only when it is read.
    fn a_file_changed_after_it_was_opened_can_be_read(driver) {
        use_inventories();
        let lower: String = OTHERS.map(|n| format!("file e/{n}\n")).collect();
        let mut layers = Stack::new().lower(&format!("{lower}file d/f \"short\"")).descriptors(256).build();
        layers.originals.clear();
        let mount = layers.mount(driver);
        let path = mount.at("d/f");
        // Keeps the kernel's inode.
        let _first = sys::open(&path, OFlags::RDONLY, 0).unwrap();
        open_others(&mount);
        let again = sys::open(&path, OFlags::RDONLY, 0).unwrap();
        // Another file, as an editor makes it.
        std::fs::write(mount.lower(0, "d/new"), "quite another").unwrap();
        sys::rename(&mount.lower(0, "d/new"), &mount.lower(0, "d/f")).unwrap();
        assert_eq!(sys::read_file(&again).unwrap(), b"quite another");
        assert_eq!(sys::lstat(&path).unwrap().st_size, 13);
    }

    fn a_useless_one_is_told_of_once(driver) {
        use_inventories();
        let layers = Stack::new().read_only().lower("file f \"f\"\ndir d").lower("file g \"g\"").build();
        std::fs::write(layers.directory.path().join("lower1.inventory"), "not one").unwrap();
        let mount = layers.mount(driver);
        assert_eq!(sys::names(mount.root()), ["d", "f", "g"]);
        let log = mount.log();
        assert!(log.lines().count() == 1 && log.contains("lower1") && log.contains("inventory"), "{log}");
    }

    fn off(driver) {
        use_inventories();
        let mut layers = Stack::new().lower("file f \"short\"").build();
        sys::append(&layers.lowers[0].join("f"), b" and longer").unwrap();
        layers.originals = layers.lowers.iter().map(|path| tree::snapshot(path, true)).collect();
        layers.extra.push("inventory=off".to_owned());
        let mount = layers.mount(driver);
        assert_eq!(sys::lstat(&mount.at("f")).unwrap().st_size, 16);
    }

    /// A mounted layer in an engine's store gets an inventory, which the next mount uses; other layers get none.
    fn layers_of_engines_get_one(driver) {
        for (option, id, expected) in [
            ("inventory", "0123456789abcdef", true),
            ("inventory=use", "0123456789abcdef", false),
            ("inventory", "mine", false),
            ("inventory=make", "mine", true),
        ] {
            let mut layers = Stack::new().lower("file d/f \"content\"").stratafs_option(option).build();
            let own = layers.directory.path().join("overlay").join(if id == "mine" { id.to_owned() } else { id.repeat(4) });
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(own.join("link"), "L").unwrap();
            std::fs::rename(&layers.lowers[0], own.join("diff")).unwrap();
            layers.lowers[0] = own.join("diff");
            let mount = layers.mount(driver);
            let inventory = own.join("diff.inventory");
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(if expected { 60 } else { 2 });
            while !inventory.exists() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            assert_eq!(inventory.exists(), expected, "{option}, {id}");
            let mount = mount.remount(driver);
            assert_eq!(sys::text(&mount.at("d/f")), "content");
            assert_eq!(std::fs::read_dir(&own).unwrap().count(), 2 + usize::from(expected), "something is left");
        }
    }
}
