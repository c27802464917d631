//! Makes a checkpoint of a mount, changes a file, and shows the file in the checkpoint and now.
//!
//! ```sh
//! mkdir base upper work merged old
//! echo one >base/file
//! cargo run --example checkpoint -- upper work merged before old base
//! ```

use std::fs;
use std::path::PathBuf;

use stratafs::Mount;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [upper, work, mountpoint, layer, old, layers @ ..] = arguments.as_slice() else {
        return Err("usage: checkpoint UPPER WORK MOUNTPOINT NEW-LAYER OLD-MOUNTPOINT LOWER...".into());
    };
    let mount = Mount::builder().lowers(layers).upper(upper, work).mount(mountpoint)?;
    fs::write(mountpoint.join("file"), "before\n")?;
    // The upper directory becomes the layer, at once. The mount goes on with an empty one.
    let checkpoint = mount.checkpoint(layer)?;
    println!("{} layers, {} files copied", checkpoint.layers.len(), checkpoint.copied_files);
    fs::write(mountpoint.join("file"), "after\n")?;
    // A second mount shows the checkpoint.
    mount.share(&checkpoint.layers)?;
    let remembered = Mount::builder().lowers(checkpoint.layers).mount(old)?;
    print!("then: {}", fs::read_to_string(old.join("file"))?);
    print!("now: {}", fs::read_to_string(mountpoint.join("file"))?);
    remembered.unmount()?;
    mount.unmount()?;
    Ok(())
}
