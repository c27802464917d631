//! Unpacks an image archive into layer directories and mounts them, read-only, for as long as it takes to list them.
//!
//! ```sh
//! podman save -o image.tar debian:12
//! mkdir merged
//! cargo run --example unpack -- image.tar layers merged
//! ```

use std::path::PathBuf;

use stratafs::Mount;
use stratafs::image::archive::Archive;
use stratafs::image::unpack::{UnpackOptions, unpack_archive};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [archive, directory, mountpoint] = arguments.as_slice() else {
        return Err("usage: unpack ARCHIVE DIRECTORY MOUNTPOINT".into());
    };
    let options = UnpackOptions::for_this_user();
    let archive = Archive::open_file(archive)?;
    // The topmost layer comes first, as the builder takes them.
    let layers = unpack_archive(&archive, directory, None, &options)?;
    println!("{} layers", layers.len());

    let mount = Mount::builder().lowers(layers).mount(mountpoint)?;
    for entry in std::fs::read_dir(mount.mountpoint())? {
        println!("/{}", entry?.file_name().display());
    }
    mount.unmount()?;
    Ok(())
}
