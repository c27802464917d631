//! Mistakes that users of image tools reported, by kind: one file for each kind, each with a table of cases. Cases that
//! another tool can judge are also given to it.
//!
//! | kind | tests |
//! |---|---|
//! | strict where the Go tools normalise | `careless_configurations` `careless_bytes_of_documents` `careless_lists_of_archives` `careless_manifests_and_indexes` |
//! | changes of a Dockerfile | `changes_are_applied_as_a_dockerfile_is` |
//! | the caller's environment leaks in | `the_callers_umask_changes_nothing` `empty_variables_are_as_unset` `a_directory_that_is_gone_and_closed_streams` |
//! | the caller's limits and signals leak in | `a_limit_of_file_sizes_is_one_error_and_loses_nothing` `a_limit_of_file_sizes_in_commit_and_export` `masks_and_dispositions_of_the_caller` |
//! | odd paths and links | `odd_characters_in_paths` `a_volume_on_the_root_is_refused_before_anything_is_made` `a_dangling_link_at_resolv_conf` |
//! | words after IMAGE | `words_after_the_image_are_the_containers` |
//! | check, then act | `names_that_are_chosen_for_containers_do_not_collide` `a_name_that_the_user_chose_is_taken_once` `one_container_mounted_unmounted_and_removed_by_many` `loads_tags_removals_and_collections_at_once` |
//! | one bad item ends all | `a_damaged_container_ends_nothing_else` `a_running_container_whose_record_is_lost_is_removed_by_force` `a_damaged_image_ends_nothing_else` `a_damaged_layer_ends_nothing_else` `strangers_in_the_store_end_nothing` `a_lost_index_is_made_again` `what_was_asked_for_beside_a_mistake_is_done` `what_may_not_be_read_is_not_removed` |
//! | repairs of users | `inventories_that_a_users_repair_made_stay_used` |
//! | a repair takes what is in use, or was mended meanwhile | `a_layer_that_is_mounted_is_not_repaired_away` `a_repair_looks_again` |
//! | a run ends and its mount stays | `a_signal_at_any_moment_leaves_no_mount` `an_interrupt_of_the_whole_group_leaves_no_mount` `a_runtime_that_fails_leaves_no_mount` `a_signal_while_it_is_being_detached_ends_it` `an_interrupted_export_leaves_no_mount` `an_export_into_a_full_pipe_can_be_interrupted` |
//! | programs that cannot be started | `exit_codes_of_run_and_exec` `programs_are_found_by_links_into_volumes` |
//! | references by digest | `a_reference_by_digest_is_removed_alone` |
//! | text of others is printed raw | `nothing_harmful_is_printed` `json_output_is_the_same_text` `columns_are_as_wide_as_they_look` |
//! | choice of platform | `a_single_image_of_another_platform_is_refused_unless_asked_for` `the_best_image_of_an_index_is_taken` `skopeo_takes_the_same_image_of_an_index` `run_says_why_it_cannot` |
//! | one thing met in two places means two things | `an_entry_means_the_same_in_an_archive_and_in_a_layer` `sparse_archives_of_images` `every_compression_of_archives_and_layers` `zeros_are_no_bomb_anywhere` `the_same_layer_twice_in_one_image` |

mod damage;
mod documents;
mod ends;
mod environment;
mod limits;
mod platform;
mod printing;
mod programs;
mod races;
mod same_everywhere;
mod words;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use stratafs::image::digest::Digest;

use super::fixture::*;

/// Runs the program on a store.
fn strata(root: &Path, args: &[&str]) -> Output {
    command(root, args).output().unwrap()
}

fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.arg("--root").arg(root).args(args).stdin(Stdio::null());
    command
}

/// Runs a command that must succeed; returns its output.
fn ok(root: &Path, args: &[&str]) -> String {
    let output = strata(root, args);
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The output on standard error.
fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An OCI layout with one image of this configuration and these layers.
fn layout(name: &str, config: &[u8], layers: &[Vec<u8>]) -> Files {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let manifest = add_manifest(&mut files, config, layers, &|layer| layer.to_vec(), "");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files
}
