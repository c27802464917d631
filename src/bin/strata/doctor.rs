//! `doctor`: finds out what this machine lacks. It tries what can be tried: it mounts a union and runs a container.

mod probe;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use rustix::fs::Access;
use serde_json::{Value, json};
use stratafs::container::{Runtime, rootless, stratafs_program};
use stratafs::store::Store;

use super::args::Doctor;
use super::output::{print_json, print_line};
use probe::Probe;

/// One requirement.
struct Check {
    name: &'static str,
    /// What does not work without it.
    needed_for: &'static str,
    /// The problem and its remedy; `None` if there is none.
    problem: Option<String>,
    /// True if mounts and containers work without it.
    is_optional: bool,
}

impl Check {
    fn needed(name: &'static str, needed_for: &'static str, problem: Option<String>) -> Self {
        Self { name, needed_for, problem, is_optional: false }
    }

    fn optional(name: &'static str, needed_for: &'static str, problem: Option<String>) -> Self {
        Self { name, needed_for, problem, is_optional: true }
    }

    fn json(&self) -> Value {
        json!({"Name": self.name, "NeededFor": self.needed_for, "Ok": self.problem.is_none(),
            "Optional": self.is_optional, "Problem": self.problem})
    }
}

pub fn run(store: Option<PathBuf>, args: &Doctor) -> Result<ExitCode> {
    let root = store.map_or_else(Store::default_root, Ok)?;
    let mut checks = basics(&root);
    // Nothing can be tried if nothing can be written.
    match Probe::new(&root) {
        Ok(probe) => checks.extend(tried(&probe, &checks)),
        Err(error) => checks.push(Check::needed("store", "everything", Some(error))),
    }
    checks.extend([
        Check::optional("init", "run --init", init_problem()),
        Check::optional("rings", "faster mounts with stratafs", rings_problem()),
    ]);
    let lacking = checks.iter().any(|check| check.problem.is_some() && !check.is_optional);
    if args.json {
        print_json(&checks.iter().map(Check::json).collect())?;
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

/// Checks that need no trial.
fn basics(root: &Path) -> Vec<Check> {
    let mut checks = vec![
        Check::needed("store", "everything", store_problem(root)),
        Check::needed("/dev/fuse", "mounting with stratafs", fuse_problem()),
        Check::needed(
            "stratafs",
            "mounting with stratafs",
            program_problem(&stratafs_program(), "install it beside strata"),
        ),
    ];
    if !is_root() {
        let fusermount = program_problem(Path::new("fusermount3"), "apt-get install fuse3");
        checks.push(Check::needed("fusermount3", "strata mount and stratafs as a user", fusermount));
        checks.push(Check::needed("user namespaces", "run as a user", namespace_problem()));
        checks.extend(subordinate_ids());
    }
    checks
}

/// The results of the trials: each comes after those that it depends on; if one of these failed, that is reported instead.
fn tried(probe: &Probe, basics: &[Check]) -> Vec<Check> {
    let lacks = |name: &str| basics.iter().any(|check| check.name == name && check.problem.is_some());
    let mut checks = Vec::new();
    if !["/dev/fuse", "stratafs", "fusermount3"].into_iter().any(lacks) {
        checks.push(Check::needed("mount", "mounting with stratafs", probe.mount().err()));
    }
    let runtime = runtime_problem(&probe.root());
    let can_run = runtime.is_none() && !["stratafs", "/dev/fuse", "user namespaces"].into_iter().any(lacks);
    checks.push(Check::needed("OCI runtime", "run and exec", runtime));
    if can_run {
        let ran = probe.run(&[]);
        let runs = ran.is_ok();
        checks.push(Check::needed("container", "run and exec", ran.err()));
        if runs {
            checks.push(Check::optional("pasta", "run -p and --network pasta", pasta_problem(probe)));
            checks.push(Check::optional("limits", "run -m, --cpus and --pids-limit; pause", limits_problem(probe)));
        }
    }
    checks.push(Check::optional("overlayfs", "strata run --driver overlay", overlay_problem(probe)));
    checks
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An existing store is opened; for one that does not exist yet, [`Probe`] tries its place.
fn store_problem(root: &Path) -> Option<String> {
    if !root.exists() {
        return None;
    }
    if let Err(error) = rustix::fs::access(root, Access::WRITE_OK) {
        return Some(format!("{}: {error}", root.display()));
    }
    let opened = Store::open_for_reading(root);
    let tried = opened.and_then(|store| if store.is_nothing() { Ok(()) } else { store.begin().map(drop) });
    tried.err().map(|error| error.to_string())
}

fn fuse_problem() -> Option<String> {
    let device = Path::new("/dev/fuse");
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some("missing; run modprobe fuse; in a container, pass the device in (--device /dev/fuse)".to_owned())
        }
        // fusermount3 is set-user-id and opens it for the driver.
        Err(error) if is_root() => Some(format!("cannot be opened: {error}; in a container, pass the device in")),
        Err(_) if rustix::fs::access(device, Access::EXISTS).is_ok() => {
            Some("cannot be opened by this user; run chmod 666 /dev/fuse as root".to_owned())
        }
        Err(error) => Some(error.to_string()),
    }
}

fn program_problem(program: &Path, remedy: &str) -> Option<String> {
    let found = match program.is_absolute() {
        true => program.is_file(),
        false => in_path(program).is_some(),
    };
    (!found).then(|| format!("not found; {remedy}"))
}

/// The path of a program in `PATH`.
pub fn in_path(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn overlay_problem(probe: &Probe) -> Option<String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known.lines().any(|line| line.trim_end().ends_with("\toverlay")) {
        true if is_root() => probe.mount_overlay().err(),
        true => Some("needs root".to_owned()),
        false => Some("modprobe overlay".to_owned()),
    }
}

fn runtime_problem(root: &Path) -> Option<String> {
    let store = match Store::open(root) {
        Ok(store) => store,
        Err(error) => return Some(error.to_string()),
    };
    let wanted = std::env::var("STRATA_RUNTIME").ok();
    match Runtime::find(&store, wanted.as_deref()) {
        Ok(runtime) => super::usage::version_of(runtime.program())
            .is_none()
            .then(|| format!("{} cannot be run", runtime.program().display())),
        Err(error) => Some(error.to_string()),
    }
}

fn pasta_problem(probe: &Probe) -> Option<String> {
    program_problem(Path::new("pasta"), "apt-get install passt").or_else(|| probe.run(&["--network", "pasta"]).err())
}

/// Limits need a control group that this user can create.
fn limits_problem(probe: &Probe) -> Option<String> {
    match is_root() {
        true => probe.run(&["--memory", "64m", "--pids-limit", "100"]).err(),
        false => Some("limits of a user's containers have no effect; run them as root".to_owned()),
    }
}

fn init_problem() -> Option<String> {
    let programs = ["catatonit", "tini-static", "docker-init", "tini"];
    let found = programs.iter().any(|program| in_path(Path::new(program)).is_some());
    (!found).then(|| "no init program was found; apt-get install catatonit".to_owned())
}

/// Why requests cannot come through rings (`transport=`).
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
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let forbidden = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").unwrap_or_default();
    let off = limit.trim() == "0" || forbidden.trim() == "0";
    off.then(|| "switched off; sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone".to_owned())
}

/// Without ranges, or the programs that set them, a user's containers have a single id.
fn subordinate_ids() -> Vec<Check> {
    let has_ranges = rootless::has_ranges();
    let ids = (!has_ranges).then(|| {
        "no lines for this user in /etc/subuid and /etc/subgid; usermod --add-subuids 100000-165535 --add-subgids \
         100000-165535 USER"
            .to_owned()
    });
    let mut checks = vec![Check::optional("subordinate ids", "several users in containers run without root", ids)];
    if has_ranges {
        let missing =
            rootless::missing_program().map(|program| format!("{program}: not found; apt-get install uidmap"));
        checks.push(Check::optional("newuidmap", "several users in containers run without root", missing));
    }
    checks
}
