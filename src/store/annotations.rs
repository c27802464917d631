//! What the entries of `index.json` are annotated with, beside their names.

use crate::image::digest::Digest;

/// Annotation of an index entry: digest of the manifest that the image was loaded with, if it was to be kept.
pub(crate) const ORIGINAL_MANIFEST: &str = "io.strata.original-manifest";

/// Annotation of an index entry: the repositories and digests that the image was pulled from or pushed to, as docker
/// shows them, with spaces between.
pub(crate) const REPO_DIGESTS: &str = "io.strata.repo-digests";

/// Annotation of an index entry: which of the blobs of its original manifest were seen to be the layers that the config
/// names, as [`blob_mark`]s with spaces between. A manifest may claim any blob for a layer that is in the store already
/// and therefore is not read.
pub(crate) const VERIFIED_BLOBS: &str = "io.strata.verified-blobs";

/// Stands for "this blob is that layer".
pub fn blob_mark(blob: &Digest, diff_id: &Digest) -> String {
    Digest::of(format!("{blob} {diff_id}").as_bytes()).hex().chars().take(32).collect()
}
