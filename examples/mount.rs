//! Mounts a union and serves it until it is unmounted.
//!
//! ```sh
//! mkdir base top upper work merged
//! cargo run --example mount -- upper work merged top base
//! umount merged                        # in another terminal
//! ```

use std::path::PathBuf;

use stratafs::Mount;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [upper, work, mountpoint, layers @ ..] = arguments.as_slice() else {
        return Err("usage: mount UPPER WORK MOUNTPOINT LOWER... (the topmost lower layer first)".into());
    };
    let mount = Mount::builder().lowers(layers).upper(upper, work).fs_name("example").mount(mountpoint)?;
    println!("mounted on {}", mount.mountpoint().display());
    mount.wait()?;
    println!("unmounted");
    Ok(())
}
