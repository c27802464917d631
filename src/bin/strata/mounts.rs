//! `mounts`: the mounts of stratafs on this machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::io::Errno;
use serde_json::{Value, json};
use stratafs::config::options::MountOptions;
use stratafs::confined::mountinfo;
use stratafs::control::SOCKET;
use stratafs::fuse::stats::STATS_XATTR;
use stratafs::text::shown_path;

use super::args::Mounts;
use super::output::{print_json, print_line, print_path, print_table, size};

/// A mount that does not answer within this time is reported as such.
const PATIENCE: Duration = Duration::from_secs(5);

/// File system types of stratafs: its own, and those under which engines look it up.
const TYPES: [&[u8]; 2] = [b"fuse.stratafs", b"fuse.fuse-overlayfs"];

/// One mount.
struct Mount {
    point: PathBuf,
    /// Its answer, or why there is none: `dead`, `no answer`, `not permitted`.
    answer: Result<Value, &'static str>,
}

pub fn run(args: &Mounts) -> Result<()> {
    let mounts = match &args.mountpoint {
        Some(point) => vec![one(point)?],
        None => mountpoints()?.into_iter().filter_map(ask).collect(),
    };
    if args.json {
        let list: Vec<Value> = mounts.iter().map(Mount::json).collect();
        return Ok(print_json(&list.into())?);
    }
    if args.quiet {
        return Ok(mounts.iter().try_for_each(|mount| print_path(&mount.point))?);
    }
    match (&args.mountpoint, mounts.as_slice()) {
        (Some(_), [mount]) => mount.print(),
        _ => print_list(&mounts),
    }
}

fn one(point: &Path) -> Result<Mount> {
    let point = point.canonicalize().unwrap_or_else(|_| point.to_owned());
    match ask(point.clone()) {
        Some(mount) => Ok(mount),
        None => bail!("{}: not a mount of stratafs; strata mounts lists them", point.display()),
    }
}

/// The work directory of a mount, which has its control socket: one of the driver's open directories.
pub fn work_dir_of(point: &Path) -> Result<PathBuf> {
    let mount = one(point)?;
    let pid = mount.answer.as_ref().ok().and_then(|value| value["pid"].as_u64());
    let Some(pid) = pid else { bail!("{}: {}", point.display(), mount.state()) };
    let opened =
        fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    match opened.into_iter().find(|dir| dir.is_absolute() && dir.join(SOCKET).exists()) {
        Some(work) => Ok(work),
        None => bail!("{}: is read-only, or its driver takes no requests", point.display()),
    }
}

/// Mountpoints of all mounts that may be stratafs', without duplicates.
fn mountpoints() -> Result<Vec<PathBuf>> {
    let table = fs::read(mountinfo::OWN)?;
    let ours = mountinfo::parse(&table).filter(|mount| TYPES.contains(&mount.kind.as_slice()));
    let mut points: Vec<PathBuf> = ours.map(|mount| mount.point).collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// Asks the mount; `None` if it is not one of ours. In a separate thread, because a stopped driver does not answer.
fn ask(point: PathBuf) -> Option<Mount> {
    let (sender, answer) = channel();
    let asked = point.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let got = rustix::fs::getxattr(&asked, STATS_XATTR, buffer.as_mut_slice());
        // The receiver may be gone.
        sender.send(got.map(|length| buffer[..length].to_vec())).unwrap_or(());
    });
    let answer = match answer.recv_timeout(PATIENCE) {
        Ok(Ok(text)) => serde_json::from_slice(&text).map_err(|_| "no answer"),
        // ECANCELED: a driver with rings has just died.
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)) => Err("dead"),
        Ok(Err(Errno::ACCESS | Errno::PERM)) => Err("not permitted"),
        // Another driver's mount, or a mount of another user that this one may enter but not query.
        Ok(Err(_)) => return None,
        Err(_) => Err("no answer"),
    };
    Some(Mount { point, answer })
}

impl Mount {
    fn state(&self) -> &str {
        match &self.answer {
            Ok(value) => value["state"].as_str().unwrap_or_default(),
            Err(why) => why,
        }
    }

    fn number(&self, field: &str) -> u64 {
        self.answer.as_ref().map_or(0, |value| value[field].as_u64().unwrap_or(0))
    }

    fn total(&self, field: &str) -> u64 {
        let counts = self.answer.as_ref().ok().and_then(|value| value[field].as_object());
        counts.map_or(0, |counts| counts.values().filter_map(Value::as_u64).sum())
    }

    /// How long requests waited for checkpoints; nothing before the first one.
    fn pauses(&self) -> Option<String> {
        let pauses = &self.answer.as_ref().ok()?["pauses"];
        let [count, last, longest] = ["count", "last_us", "longest_us"].map(|field| pauses[field].as_u64());
        let (count, last, longest) = (count.filter(|&count| count > 0)?, last?, longest?);
        Some(format!("pauses       {count}, the last {last} \u{b5}s, the longest {longest} \u{b5}s"))
    }

    /// The layers with which the driver was started, topmost first; empty if they cannot be read.
    fn layers(&self) -> Option<MountOptions> {
        let pid = self.answer.as_ref().ok()?["pid"].as_u64()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<&OsStr> = line.split(|&byte| byte == 0).map(OsStr::from_bytes).collect();
        let groups = arguments.windows(2).filter(|pair| pair[0] == "-o").map(|pair| pair[1]);
        MountOptions::parse(groups, true).ok()
    }

    fn json(&self) -> Value {
        let mut value = match &self.answer {
            Ok(value) => value.clone(),
            Err(why) => json!({ "state": why }),
        };
        value["mountpoint"] = self.point.to_string_lossy().into();
        if let Some(options) = self.layers() {
            let shown = |path: &PathBuf| Value::from(path.to_string_lossy());
            value["lowers"] = options.overlay.lowers.iter().map(shown).collect();
            value["upper"] = options.overlay.upper.as_ref().map(shown).into();
            value["work"] = options.overlay.work.as_ref().map(shown).into();
        }
        value
    }

    fn print(&self) -> Result<()> {
        print_line(&format!("{}: {}", shown_path(&self.point), self.state()))?;
        if self.answer.is_err() {
            return Ok(());
        }
        if let Some(options) = self.layers() {
            for (what, layers) in [
                ("upper", options.overlay.upper.iter().collect::<Vec<_>>()),
                ("work", options.overlay.work.iter().collect()),
                ("lower", options.overlay.lowers.iter().collect()),
            ] {
                for layer in layers {
                    print_line(&format!("{what:<12} {}", shown_path(layer)))?;
                }
            }
        }
        print_line(&format!("process      {}, for {} s", self.number("pid"), self.number("uptime_seconds")))?;
        let (now, peak) = (self.number("memory_kib") * 1024, self.number("peak_memory_kib") * 1024);
        print_line(&format!("memory       {}, {} at most", size(now), size(peak)))?;
        for field in ["threads", "descriptors", "nodes", "handles"] {
            print_line(&format!("{field:<12} {}", self.number(field)))?;
        }
        if let Some(pauses) = self.pauses() {
            print_line(&pauses)?;
        }
        for field in ["requests", "errors"] {
            print_line(&format!("{field:<12} {}", self.total(field)))?;
            let counts = self.answer.as_ref().ok().and_then(|value| value[field].as_object());
            for (name, count) in counts.into_iter().flatten() {
                print_line(&format!("  {name} {count}"))?;
            }
        }
        Ok(())
    }
}

fn print_list(mounts: &[Mount]) -> Result<()> {
    let row = |mount: &Mount| {
        let counted = |number: u64| if mount.answer.is_ok() { number.to_string() } else { "-".to_owned() };
        let memory = if mount.answer.is_ok() { size(mount.number("memory_kib") * 1024) } else { "-".to_owned() };
        vec![
            shown_path(&mount.point),
            mount.state().to_owned(),
            counted(mount.number("pid")),
            counted(mount.total("requests")),
            counted(mount.total("errors")),
            counted(mount.number("nodes")),
            counted(mount.number("handles")),
            memory,
        ]
    };
    let rows: Vec<Vec<String>> = mounts.iter().map(row).collect();
    Ok(print_table(&["MOUNTPOINT", "STATE", "PID", "REQUESTS", "ERRORS", "NODES", "HANDLES", "MEMORY"], &rows)?)
}
