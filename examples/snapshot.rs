//! Writes what an upper directory changes as the tar of an image layer, and prints the layer's DiffID.
//!
//! ```sh
//! cargo run --example snapshot -- upper layer.tar top base
//! ```

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use stratafs::image::snapshot::{SnapshotOptions, changes, snapshot};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [upper, tar, layers @ ..] = arguments.as_slice() else {
        return Err("usage: snapshot UPPER TAR LOWER... (the topmost lower layer first)".into());
    };
    // Directories are handed over as descriptors.
    let upper = File::open(upper)?;
    let layers = layers.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
    let lowers: Vec<_> = layers.iter().map(AsFd::as_fd).collect();
    for change in changes(upper.as_fd(), &lowers)? {
        println!("{} {}", change.kind, String::from_utf8_lossy(&change.path));
    }
    let written = snapshot(upper.as_fd(), &lowers, &mut File::create(tar)?, &SnapshotOptions::default())?;
    println!("{}: {} entries, {} bytes", written.diff_id, written.entries, written.size);
    Ok(())
}
