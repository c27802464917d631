//! Images as a whole: archives in and out, the store, new images, other tools. The rules of single layers are in
//! `tests/layer.rs`. Needs root (layers hold other users' files and devices), but no FUSE.
//!
//! | the store promises | tests |
//! |---|---|
//! | a layer once, shared; "Already exists" reads almost nothing | `a_known_layer_is_not_read` `a_layer_that_needs_those_below_belongs_to_its_chain` `saving_gives_back_what_was_loaded_in_every_format` |
//! | the original tar bit for bit, checked while it is written | `saved_layers_are_the_original_tars` `damage_is_found_and_not_saved` `random_damage_is_refused_or_kept_to_the_byte` |
//! | several images in one archive; every form and compression; the same bytes again | `several_images_share_layers_in_one_archive` `saving_gives_back_what_was_loaded_in_every_format` `every_shape_by_every_way_gives_the_same_image` `import_is_deterministic_and_keeps_the_tar` |
//! | `--keep-blobs`: an exact re-push | `kept_blobs_are_the_originals` |
//! | `export`, `flatten`, `import`, `unpack`, `snapshot` | `export_is_the_whole_tree` `a_flattened_image_has_one_layer_and_the_same_tree` `import_is_deterministic_and_keeps_the_tar` `every_shell_block_runs_from_an_empty_directory` `snapshot_and_unpack_are_each_other_s_inverse` |
//! | `diff` of containers and of images | `changes_tell_added_changed_and_untouched` `two_images_are_compared` |
//! | `verify` tells every damage by file, `--repair` drops it; no false alarms | `damage_to_anything_that_an_entry_made_is_found` `damage_to_a_layer_of_a_user_is_found` `what_was_added_is_found` `damage_behind_symbolic_links_is_found` `no_false_alarms` `no_false_alarms_at_random` `every_part_of_a_layer_that_is_damaged_is_told_and_repaired` `damage_is_told_and_repaired_by_loading_again` |
//! | `gc` removes what nothing refers to, safe beside loads and containers | `parallel_loads_and_gc_leave_a_whole_store` `a_container_keeps_its_image_from_being_removed` `a_shared_layer_stays_with_the_other_image` `everything_at_once` `a_collector_gets_its_turn_among_loads` |
//! | `df` | `they_come_with_the_layers_and_go_with_them` `what_is_shared_is_counted_once` |
//! | `commit`: unknown fields and bytes kept, consistent, the same again | `a_commit_is_one_more_layer` `a_commit_keeps_order_and_unknown_fields` `the_same_changes_give_the_same_bytes` `commit_changes_the_configuration` |
//! | checkpoints: back, forth and forks; layers merge without a change; refusals change nothing | `there_and_back` `removed_checkpoints_change_nothing` `a_checkpoint_becomes_an_image` `refused_in_one_line` `a_full_disk_makes_no_checkpoint` `checkpoints_killed_at_every_call` |
//! | rollback of what is mounted or runs: complete in caches too, open files as deleted ones, mounts stay | `a_mounted_container_is_rolled_back` `a_rollback_at_random_is_complete` `readers_beside_rollbacks_see_whole_states` `layers_are_merged_below_a_mount` `a_running_container_is_rolled_back` |
//! | nothing acknowledged is lost | `killed_at_every_call_that_adds` `killed_at_every_call_that_removes` `a_kill_loses_nothing_that_was_acknowledged` `a_full_disk_in_mid_load_leaves_nothing_behind` |
//! | other tools | `skopeo_copies_what_we_save_and_we_load_its_copies` `umoci_unpacks_what_we_save_to_the_same_tree` `podman_loads_what_we_save_and_we_load_what_it_saves` `docker_loads_what_we_save_and_we_load_what_it_saves` `buildah_takes_what_we_save_and_we_load_what_it_commits` `the_validator_of_the_specification_accepts_what_we_save` |

#![allow(clippy::unwrap_used)]

#[path = "../common/layer_dirs.rs"]
mod layer_dirs;
#[path = "../registry/liar.rs"]
#[allow(dead_code)]
mod liar;
#[path = "../common/terminal.rs"]
mod pty;
#[path = "../common/readme.rs"]
mod readme;
#[path = "../common/tar_build.rs"]
mod tar_build;

mod archives;
mod bad_input;
mod checkpoint;
mod checkpoint_crashes;
mod checkpoint_refusals;
mod checkpoint_rollback;
mod checkpoint_running;
mod cli;
mod completion;
mod container;
mod cp;
mod crashes;
mod create;
mod doctor;
mod engines;
mod failures;
mod fixture;
mod flags;
mod inspect;
mod interop;
mod inventory;
mod lifecycle;
mod listing;
mod network;
mod pictures;
mod reports;
mod run;
mod store;
mod terminal;
mod tour;

/// True if the kernel mounts overlayfs; otherwise the test is counted as skipped for `scripts/test`.
fn overlayfs_for(test: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.ends_with("\toverlay")) || skip(test, "the kernel has no overlayfs")
}

/// The same for stratafs. If it is missing, the test fails, unless the caller says otherwise.
fn fuse_for(test: &str) -> bool {
    let there = std::path::Path::new("/dev/fuse").exists();
    let may_skip = std::env::var_os("STRATAFS_TEST_NO_FUSE").is_some();
    assert!(there || may_skip, "there is no /dev/fuse; STRATAFS_TEST_NO_FUSE=1 skips the tests that mount");
    there || skip(test, "there is no /dev/fuse")
}

fn skip(test: &str, reason: &str) -> bool {
    use std::io::Write;
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
    writeln!(file, "{test}: {reason}").unwrap();
    false
}
