//! What users of image tools reported, as kinds of mistakes: one file a kind, each a table of cases. Cases that another
//! tool can judge are given to it too.
//!
//! | kind | tests |
//! |---|---|
//! | text of others is printed raw | `nothing_harmful_is_printed` `json_output_is_the_same_text` `columns_are_as_wide_as_they_look` |
//! | choice of platform | `a_single_image_of_another_platform_is_refused_unless_asked_for` `the_best_image_of_an_index_is_taken` `skopeo_takes_the_same_image_of_an_index` `run_says_why_it_cannot` |
//! | one thing met in two places means two things | `an_entry_means_the_same_in_an_archive_and_in_a_layer` `sparse_archives_of_images` `every_compression_of_archives_and_layers` `zeros_are_no_bomb_anywhere` `the_same_layer_twice_in_one_image` |

mod platform;
mod printing;
mod same_everywhere;

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

/// Runs what must succeed and returns its output.
fn ok(root: &Path, args: &[&str]) -> String {
    let output = strata(root, args);
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What was written to standard error.
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
