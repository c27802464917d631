//! Annotations of the entries of `index.json`, other than names.

use crate::image::digest::Digest;

/// Annotation of an index entry: digest of the manifest that the image was loaded with, if it is kept.
pub(crate) const ORIGINAL_MANIFEST: &str = "io.strata.original-manifest";

/// Annotation of an index entry: the repositories and digests that the image was pulled from or pushed to, in
/// docker's form, separated by spaces.
pub(crate) const REPO_DIGESTS: &str = "io.strata.repo-digests";

/// Annotation of an index entry: those blobs of its original manifest that were verified to be the layers named by the
/// config, as [`blob_mark`]s separated by spaces. A manifest may claim any blob as a layer that is already in the
/// store and is therefore not read.
pub(crate) const VERIFIED_BLOBS: &str = "io.strata.verified-blobs";

/// States that this blob is that layer.
pub fn blob_mark(blob: &Digest, diff_id: &Digest) -> String {
    Digest::of(format!("{blob} {diff_id}").as_bytes()).hex().chars().take(32).collect()
}
