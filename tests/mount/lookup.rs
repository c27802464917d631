//! Which layer's entry a name shows.

use crate::common::sys;
use crate::common::{Errno, Stack};
use crate::on_both;

on_both! {
    fn topmost_layer_wins(driver) {
        let mount = Stack::new()
            .lower("file a \"first\"\nfile only1 \"1\"")
            .lower("file a \"second\"\nfile only2 \"2\"")
            .upper("file up \"u\"\nfile only2 \"upper\"")
            .mount(driver);
        mount.assert_tree("file a \"first\"\nfile only1 \"1\"\nfile only2 \"upper\"\nfile up \"u\"");
    }

    fn directories_merge(driver) {
        let mount = Stack::new()
            .lower("dir d mode=700 uid=5 user.k=top\nfile d/x \"0\"\nfile d/sub/p \"0\"")
            .lower("dir d mode=755 uid=6 user.k=low user.other=hidden\nfile d/y \"1\"\nfile d/sub/q \"1\"")
            .lower("file d/x \"2\"\nfile d/z \"2\"\nfile d/sub/r \"2\"")
            .mount(driver);
        mount.assert_tree(
            "dir d mode=700 uid=5 user.k=top\nfile d/x \"0\"\nfile d/y \"1\"\nfile d/z \"2\"
             file d/sub/p \"0\"\nfile d/sub/q \"1\"\nfile d/sub/r \"2\"",
        );
    }
}
