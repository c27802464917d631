//! `stats`: resources used by running containers.
//!
//! The numbers are those of the container's cgroup if it has its own, otherwise those of the processes in the
//! process namespace of its first one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use stratafs::container::Container;
use stratafs::store::Store;

use super::args::Stats;
use super::format::{Headings, Template};
use super::output::{print_json, size};
use super::ps::{self, Listed};

const HEADINGS: Headings = &[
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

const TABLE: &str =
    "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// Interval between two samples, over which a processor share is measured.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same if only one answer is wanted.
const SHORT_INTERVAL: Duration = Duration::from_millis(250);

/// A container's use of resources at one time.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Processor time in nanoseconds.
    cpu: u64,
    memory: u64,
    pids: u64,
    read: u64,
    written: u64,
    received: u64,
    sent: u64,
}

pub fn run(store: &Store, args: &Stats) -> Result<()> {
    let once = args.no_stream || args.json;
    let clears = !once && args.format.is_none() && io::stdout().is_terminal();
    let mut before: BTreeMap<String, (Instant, Sample)> = BTreeMap::new();
    let mut first = true;
    loop {
        let containers = wanted(store, args)?;
        let mut rows = Vec::new();
        for listed in &containers {
            let (now, sample) = (Instant::now(), Sample::of(listed.condition.pid));
            let id = listed.container.id();
            let share =
                before.insert(id, (now, sample)).map(|(then, earlier)| share(earlier.cpu, sample.cpu, now - then));
            rows.push(row(args, &listed.container, &sample, share, limit(&listed.container)));
        }
        let measured = !first || containers.is_empty();
        if once && measured || !once && !first {
            show(args, &rows, clears)?;
        }
        if once && measured {
            return Ok(());
        }
        std::thread::sleep(if once || first { SHORT_INTERVAL } else { INTERVAL });
        first = false;
    }
}

fn show(args: &Stats, rows: &[Value], clears: bool) -> Result<()> {
    if args.json {
        return Ok(print_json(&rows.to_vec().into())?);
    }
    if clears {
        // Moves the cursor home and clears everything below.
        write!(io::stdout(), "\u{1b}[H\u{1b}[J")?;
    }
    match &args.format {
        Some(template) => template.print(rows, HEADINGS),
        None => Template::built_in(TABLE)?.print(rows, HEADINGS),
    }
}

/// The containers that the user named, or else the running ones.
fn wanted(store: &Store, args: &Stats) -> Result<Vec<Listed>> {
    let all = ps::with_conditions(store)?;
    if args.containers.is_empty() {
        let is_wanted = |listed: &Listed| args.all || listed.condition.pid != 0;
        return Ok(all.into_iter().filter(is_wanted).collect());
    }
    let mut wanted = Vec::new();
    for name in &args.containers {
        let container = Container::open(store, name)?;
        let found = all.iter().position(|listed| listed.container.name() == container.name());
        wanted.extend(found);
    }
    let mut all: Vec<Option<Listed>> = all.into_iter().map(Some).collect();
    let chosen: Vec<Listed> = wanted.into_iter().filter_map(|at| all.get_mut(at).and_then(Option::take)).collect();
    if chosen.is_empty() {
        bail!("no such container");
    }
    Ok(chosen)
}

/// Percentage of one processor.
fn share(before: u64, after: u64, time: Duration) -> f64 {
    after.saturating_sub(before) as f64 * 100.0 / (time.as_nanos() as f64).max(1.0)
}

fn row(args: &Stats, container: &Container, sample: &Sample, share: Option<f64>, limit: u64) -> Value {
    let id = container.id();
    let id = if args.no_trunc { id.as_str() } else { id.get(..12).unwrap_or(&id) };
    json!({
        "ID": id,
        "Container": id,
        "Name": container.name(),
        "CPUPerc": format!("{:.2}%", share.unwrap_or(0.0)),
        "MemUsage": format!("{} / {}", size(sample.memory), size(limit)),
        "MemPerc": format!("{:.2}%", sample.memory as f64 * 100.0 / (limit as f64).max(1.0)),
        "NetIO": format!("{} / {}", size(sample.received), size(sample.sent)),
        "BlockIO": format!("{} / {}", size(sample.read), size(sample.written)),
        "PIDs": sample.pids.to_string(),
    })
}

/// Its memory limit in bytes, or else the machine's memory.
fn limit(container: &Container) -> u64 {
    let machine = rustix::system::sysinfo();
    let machine = machine.totalram * u64::from(machine.mem_unit);
    let own = ps::bundle(container)["linux"]["resources"]["memory"]["limit"].as_u64();
    own.filter(|&bytes| bytes > 0).map_or(machine, |bytes| bytes.min(machine))
}

impl Sample {
    /// A sample of the container with this first process; zero if it does not run.
    fn of(pid: i32) -> Self {
        if pid <= 0 {
            return Self::default();
        }
        let mut sample = Self::of_processes(pid);
        if let Some(group) = own_cgroup(pid) {
            let number = |name: &str| -> Option<u64> { fs::read_to_string(group.join(name)).ok()?.trim().parse().ok() };
            let usage = keyed(&group.join("cpu.stat"), "usage_usec").map(|microseconds| microseconds * 1000);
            sample.cpu = usage.or_else(|| number("cpuacct.usage")).unwrap_or(sample.cpu);
            let cache = keyed(&group.join("memory.stat"), "inactive_file").unwrap_or(0);
            let memory = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
            sample.memory = memory.map_or(sample.memory, |bytes| bytes.saturating_sub(cache));
            sample.pids = number("pids.current").unwrap_or(sample.pids);
        }
        (sample.received, sample.sent) = network(pid);
        sample
    }

    /// The sum over the processes in the process namespace of `first`.
    fn of_processes(first: i32) -> Self {
        let mut sample = Self::default();
        let Ok(namespace) = fs::read_link(format!("/proc/{first}/ns/pid")) else { return sample };
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let page = rustix::param::page_size() as u64;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let dir = entry.path();
            if !fs::read_link(dir.join("ns/pid")).is_ok_and(|found| found == namespace) {
                continue;
            }
            let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
            // The program's name may contain anything; it ends with the last parenthesis.
            let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
            let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            sample.cpu += (field(11) + field(12)).saturating_mul(1_000_000_000 / ticks);
            sample.memory += field(21).saturating_mul(page);
            sample.pids += field(17);
            sample.read += keyed(&dir.join("io"), "read_bytes:").unwrap_or(0);
            sample.written += keyed(&dir.join("io"), "write_bytes:").unwrap_or(0);
        }
        sample
    }
}

/// The number after a word, in a file of lines `WORD NUMBER`.
fn keyed(path: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The container's cgroup, if it is not this process's own: that of version 2, or that of the memory controller in version 1.
fn own_cgroup(pid: i32) -> Option<PathBuf> {
    let group = |process: &str| -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let path = |line: &str| line.splitn(3, ':').nth(2).map(|path| path.trim_start_matches('/').to_owned());
        let unified = text.lines().find(|line| line.starts_with("0::")).and_then(path);
        match unified {
            Some(path) if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
                Some(Path::new("/sys/fs/cgroup").join(path))
            }
            _ => {
                let memory = text.lines().find(|line| line.contains(":memory:")).and_then(path)?;
                Some(Path::new("/sys/fs/cgroup/memory").join(memory))
            }
        }
    };
    let own = group(&pid.to_string())?;
    (Some(&own) != group("self").as_ref() && own.is_dir()).then_some(own)
}

/// Bytes received and sent on the interfaces that the process sees, without `lo`; zero if it uses the host's network.
fn network(pid: i32) -> (u64, u64) {
    let space = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if space(&pid.to_string()) == space("self") {
        return (0, 0);
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut both = (0, 0);
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        both.0 += numbers.first().copied().unwrap_or(0);
        both.1 += numbers.get(8).copied().unwrap_or(0);
    }
    both
}
