//! Opaque directories: read from every layer, written when a directory takes a removed one's place.

use crate::common::Stack;
use crate::common::sys;
use crate::on_both;

on_both! {
    fn in_any_layer(driver) {
        let mount = Stack::new()
            .lower("file d/zero \"0\"\nfile e/zero \"0\"")
            .lower("dir d trusted.overlay.opaque=y\nfile d/one \"1\"\nfile e/one \"1\"")
            .lower("file d/two \"2\"\nfile e/two \"2\"")
            .upper("dir e trusted.overlay.opaque=y\nfile e/up \"u\"\ndir d")
            .mount(driver);
        mount.assert_tree("file d/zero \"0\"\nfile d/one \"1\"\nfile e/up \"u\"");
    }

    /// What is below an opaque directory is hidden at every depth.
    fn hides_at_every_depth(driver) {
        let mount = Stack::new()
            .lower("dir a trusted.overlay.opaque=y\nfile a/b/c/top \"0\"")
            .lower("file a/b/c/bottom \"1\"\nfile a/b/other \"1\"")
            .mount(driver);
        mount.assert_tree("file a/b/c/top \"0\"");
        sys::create(&mount.at("a/b/other"), b"mine").unwrap();
        mount.assert_tree_everywhere("file a/b/c/top \"0\"\nfile a/b/other \"mine\"");
    }

    fn unknown_values_mean_no(driver) {
        for value in ["n", "yes", "", "Y"] {
            let mount = Stack::new().lower(&format!("dir d trusted.overlay.opaque={value}\nfile d/a")).lower("file d/b").mount(driver);
            assert_eq!(sys::names(&mount.at("d")), ["a", "b"], "{value:?}");
        }
    }

    /// The mark matters on directories only.
    fn on_other_entries(driver) {
        let mount = Stack::new().lower("file f \"0\" trusted.overlay.opaque=y\nlink l -> x trusted.overlay.opaque=y").lower("file f \"1\"\nfile l \"1\"").mount(driver);
        mount.assert_tree("file f \"0\"\nlink l -> x");
    }

    fn nested_replacements(driver) {
        let mount = Stack::new().lower("file a/b/c \"low\"").mount(driver);
        std::fs::remove_dir_all(mount.at("a/b")).unwrap();
        sys::mkdir(&mount.at("a/b"), 0o755).unwrap();
        std::fs::remove_dir_all(mount.at("a")).unwrap();
        std::fs::create_dir_all(mount.at("a/b")).unwrap();
        sys::create(&mount.at("a/b/d"), b"new").unwrap();
        assert_eq!(sys::getxattr(&mount.upper("a"), "trusted.overlay.opaque").unwrap(), b"y");
        mount.assert_tree_everywhere("file a/b/d \"new\"");
    }

    /// An opaque directory stays so when it is renamed to where a lower one is.
    fn renamed(driver) {
        let mount = Stack::new().lower("file a/x \"low\"\nfile b/x \"low\"").mount(driver);
        std::fs::remove_dir_all(mount.at("a")).unwrap();
        std::fs::remove_dir_all(mount.at("b")).unwrap();
        sys::mkdir(&mount.at("a"), 0o755).unwrap();
        sys::create(&mount.at("a/y"), b"new").unwrap();
        sys::rename(&mount.at("a"), &mount.at("b")).unwrap();
        mount.assert_upper("whiteout a\ndir b trusted.overlay.opaque=y\nfile b/y \"new\"");
        mount.assert_tree_everywhere("file b/y \"new\"");
    }
}
