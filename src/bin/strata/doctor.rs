//! `doctor`: what this machine has and lacks.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use rustix::fs::Access;
use serde_json::json;
use stratafs::container::{Runtime, stratafs_program};
use stratafs::store::Store;

use super::args::Doctor;
use super::output::{print_json, print_line};

/// One thing that something needs.
struct Check {
    name: &'static str,
    /// What works without it does not.
    needed_for: &'static str,
    /// What is wrong and what to do; none: all is well.
    problem: Option<String>,
    /// Everything works without it, only slower.
    is_optional: bool,
}

pub fn run(store: Option<PathBuf>, args: &Doctor) -> Result<ExitCode> {
    let root = store.map_or_else(Store::default_root, Ok)?;
    let checks = [
        check("store", "everything", store_problem(&root)),
        check("/dev/fuse", "mounting with stratafs", fuse_problem()),
        check("stratafs", "mounting with stratafs", program_problem(&stratafs_program(), "install it beside strata")),
        check(
            "fusermount3",
            "mounting with stratafs as a user",
            helper_problem("fusermount3", "apt-get install fuse3"),
        ),
        check("overlayfs", "--driver overlay", overlay_problem()),
        check("OCI runtime", "run and exec", runtime_problem(&root)),
        check("user namespaces", "run as a user", namespace_problem()),
        Check { is_optional: true, ..check("rings", "faster mounts with stratafs", rings_problem()) },
    ];
    let lacking = checks.iter().any(|check| check.problem.is_some() && !check.is_optional);
    if args.json {
        let value = |Check { name, needed_for, problem, is_optional }: &Check| json!({"Name": name, "NeededFor": needed_for, "Ok": problem.is_none(), "Optional": is_optional, "Problem": problem});
        print_json(&checks.iter().map(value).collect())?;
    }
    for Check { name, needed_for, problem, is_optional } in checks.iter().filter(|_| !args.json) {
        match problem {
            None if args.quiet => {}
            None => print_line(&format!("ok       {name}"))?,
            Some(_) if *is_optional && args.quiet => {}
            Some(problem) => {
                let lack = if *is_optional { "optional" } else { "missing " };
                print_line(&format!("{lack} {name} (for {needed_for}): {problem}"))?;
            }
        }
    }
    Ok(if lacking { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check(name: &'static str, needed_for: &'static str, problem: Option<String>) -> Check {
    Check { name, needed_for, problem, is_optional: false }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn store_problem(root: &Path) -> Option<String> {
    Store::open(root).and_then(|store| store.begin().map(drop)).err().map(|error| error.to_string())
}

fn fuse_problem() -> Option<String> {
    let device = Path::new("/dev/fuse");
    match rustix::fs::access(device, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => None,
        Err(rustix::io::Errno::NOENT) => Some("modprobe fuse; in a container, pass the device in".to_owned()),
        // fusermount3 is set-user-id and opens it for us.
        Err(_) if is_root() => Some("cannot be opened".to_owned()),
        Err(error) => Some(format!("{error}; chmod 666 /dev/fuse")),
    }
}

fn program_problem(program: &Path, remedy: &str) -> Option<String> {
    let found = match program.is_absolute() {
        true => program.is_file(),
        false => in_path(program).is_some(),
    };
    (!found).then(|| format!("not found; {remedy}"))
}

/// Where the program is in `PATH`.
pub fn in_path(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn helper_problem(program: &str, remedy: &str) -> Option<String> {
    program_problem(Path::new(program), remedy).filter(|_| !is_root())
}

fn overlay_problem() -> Option<String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known.lines().any(|line| line.trim_end().ends_with("\toverlay")) {
        true if is_root() => None,
        true => Some("needs root".to_owned()),
        false => Some("modprobe overlay".to_owned()),
    }
}

fn runtime_problem(root: &Path) -> Option<String> {
    let store = Store::open(root).ok()?;
    Runtime::find(&store, None).err().map(|error| error.to_string())
}

/// What keeps requests from coming through rings (`transport=`).
fn rings_problem() -> Option<String> {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    match read(SWITCH).as_deref() {
        Ok("Y") => {}
        Ok(_) => return Some(format!("switched off; as root: echo Y >{SWITCH}")),
        Err(_) => return Some("the kernel has no FUSE over io_uring (Linux 6.14), or fuse is not loaded".to_owned()),
    }
    let forbidden = read("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let is_forbidden = forbidden == "2" || forbidden == "1" && !is_root();
    is_forbidden.then(|| format!("io_uring is switched off; kernel.io_uring_disabled is {forbidden}"))
}

fn namespace_problem() -> Option<String> {
    if is_root() {
        return None;
    }
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let forbidden = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").unwrap_or_default();
    let off = limit.trim() == "0" || forbidden.trim() == "0";
    off.then(|| "switched off; sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone".to_owned())
}
