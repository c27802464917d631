//! Redirects as read from layers.

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn absolute_and_relative(driver) {
        let mount = Stack::new()
            .lower("file old/x \"x\"\nfile deep/er/old/y \"y\"\nfile p/rel/z \"z\"")
            .upper(
                "whiteout old\ndir new trusted.overlay.redirect=/old\ndir far/new trusted.overlay.redirect=/deep/er/old\nwhiteout deep/er/old
                 whiteout p/rel\ndir p/moved trusted.overlay.redirect=rel\nfile p/moved/own \"u\"",
            )
            .mount(driver);
        mount.assert_tree(
            "file new/x \"x\"\nfile far/new/y \"y\"\ndir deep/er\nfile p/moved/z \"z\"\nfile p/moved/own \"u\"",
        );
    }

    /// In a middle layer: it redirects the search only in the layers below.
    fn in_lower_layers(driver) {
        let mount = Stack::new()
            .lower("file new/top \"0\"")
            .lower("whiteout old\ndir new trusted.overlay.redirect=/old\nfile new/own \"1\"")
            .lower("file old/x \"2\"\nfile new/hidden \"2\"")
            .lower("file old/y \"3\"\nfile new/hidden2 \"3\"")
            .mount(driver);
        mount.assert_tree("file new/top \"0\"\nfile new/own \"1\"\nfile new/x \"2\"\nfile new/y \"3\"");
    }

    /// A redirect in one layer followed by another further down.
    fn chains(driver) {
        let mount = Stack::new()
            .lower("whiteout b\ndir c trusted.overlay.redirect=/b\nfile c/zero \"0\"")
            .lower("whiteout a\ndir b trusted.overlay.redirect=/a\nfile b/one \"1\"")
            .lower("file a/two \"2\"\nfile a/s/deep \"2\"")
            .mount(driver);
        mount.assert_tree("file c/zero \"0\"\nfile c/one \"1\"\nfile c/two \"2\"\nfile c/s/deep \"2\"");
    }

    /// Below a redirected directory names are looked up under its former path, also through a second redirect.
    fn nested(driver) {
        let mount = Stack::new()
            .lower("file a/b/c/x \"x\"\nfile a/b/y \"y\"")
            .upper("whiteout a\ndir n trusted.overlay.redirect=/a\nwhiteout n/b\ndir n/m trusted.overlay.redirect=/a/b\nwhiteout n/m/c\ndir top trusted.overlay.redirect=/a/b/c")
            .mount(driver);
        mount.assert_tree("file n/m/y \"y\"\nfile top/x \"x\"");
    }

    fn to_nothing(driver) {
        let mount = Stack::new().lower("file f \"x\"").upper("dir d trusted.overlay.redirect=/none\nfile d/own \"u\"\ndir e trusted.overlay.redirect=/f").mount(driver);
        mount.assert_tree("file f \"x\"\nfile d/own \"u\"\ndir e");
    }

    /// A malformed redirect fails its entry, and has no other effect.
    fn malformed(driver) {
        for value in ["a/b", "/a//b", "..", "/a/../f", ""] {
            let mount = Stack::new()
                .lower("file a/b/x \"x\"\nfile ok \"ok\"")
                .upper(&format!("dir d trusted.overlay.redirect={value}\nfile d/own \"u\""))
                .mount(driver);
            assert_eq!(sys::text(&mount.at("ok")), "ok");
            match sys::readdir(&mount.at("d")) {
                Ok(list) => assert_eq!(list.iter().map(|entry| entry.name.to_str().unwrap()).collect::<Vec<_>>(), ["own"], "{value:?}"),
                Err(error) => assert!([Errno::IO, Errno::INVAL, Errno::ACCESS].contains(&error), "{value:?}: {error}"),
            }
        }
    }

    fn not_followed_when_told_so(driver) {
        let mount = Stack::new().lower("file old/x \"x\"").upper("dir new trusted.overlay.redirect=/old\nfile new/own").option("redirect_dir=nofollow").mount(driver);
        assert_eq!(sys::lstat(&mount.at("new")).err(), Some(Errno::PERM));
        mount.assert_upper("dir new trusted.overlay.redirect=/old\nfile new/own");
    }
}
