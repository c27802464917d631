//! Resource limits of a container: memory, processors, processes, files.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::image::{ImageError, Result};

/// Resource limits of processes (getrlimit(2)).
const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// The period, in microseconds, in which processor shares are counted.
const PERIOD: f64 = 100_000.0;

/// A limit of the container's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    name: String,
    soft: u64,
    hard: u64,
}

impl Ulimit {
    /// Its name, as in docker's `ulimit`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The soft limit; `u64::MAX`: none.
    pub fn soft(&self) -> u64 {
        self.soft
    }

    /// The hard limit; `u64::MAX`: none.
    pub fn hard(&self) -> u64 {
        self.hard
    }
}

impl std::str::FromStr for Ulimit {
    type Err = ImageError;

    /// Parses `nofile=1024:2048`, `core=-1`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || ImageError::malformed(text, format!("a limit reads NAME=SOFT[:HARD]; names: {}", NAMES.join(" ")));
        let number = |word: &str| match word {
            "-1" | "unlimited" => Ok(u64::MAX),
            word => word.parse().map_err(|_| bad()),
        };
        let (name, values) = text.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if !NAMES.contains(&name) || soft > hard {
            return Err(bad());
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

/// The user's limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Bytes of memory that it keeps when memory is scarce.
    pub memory_reservation: Option<i64>,
    /// Number of processes.
    pub pids: Option<i64>,
    /// Number of processors; fractions are allowed.
    pub cpus: Option<f64>,
    /// Microseconds of processors in each period, instead of `cpus`; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds of a period; 100000 by default.
    pub cpu_period: Option<u64>,
    /// Weight relative to other containers, 1024 by default.
    pub cpu_shares: Option<u64>,
    /// The processors that it may use, `0-2,4`.
    pub cpuset: Option<String>,
    /// The memory nodes that it may use, `0-2,4`.
    pub memory_nodes: Option<String>,
    /// Weight relative to other containers for block devices, 10 to 1000.
    pub block_weight: Option<u16>,
    /// How willingly the kernel swaps it out, 0 to 100; only version 1 of control groups has this.
    pub swappiness: Option<u64>,
    /// The kernel does not end it when its memory runs out; only version 1 of control groups has this.
    pub no_oom_kill: bool,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`.
    pub shm_size: Option<i64>,
    /// Adjusts how likely the kernel kills it when memory runs out.
    pub oom_score_adj: Option<i32>,
}

impl Limits {
    /// `linux.resources` of an OCI runtime's configuration, without devices.
    pub(super) fn resources(&self) -> Value {
        let mut resources = json!({});
        let mut memory = json!({});
        for (name, value) in
            [("limit", self.memory), ("swap", self.memory_swap), ("reservation", self.memory_reservation)]
        {
            if let Some(value) = value {
                memory[name] = json!(value);
            }
        }
        if let Some(swappiness) = self.swappiness {
            memory["swappiness"] = json!(swappiness);
        }
        if self.no_oom_kill {
            memory["disableOOMKiller"] = json!(true);
        }
        let mut cpu = json!({});
        if let Some(cpus) = self.cpus {
            cpu["quota"] = json!((cpus * PERIOD).round() as i64);
            cpu["period"] = json!(PERIOD as u64);
        }
        if let Some(quota) = self.cpu_quota {
            cpu["quota"] = json!(quota);
        }
        if let Some(period) = self.cpu_period {
            cpu["period"] = json!(period);
        }
        if let Some(shares) = self.cpu_shares {
            cpu["shares"] = json!(shares);
        }
        if let Some(set) = &self.cpuset {
            cpu["cpus"] = json!(set);
        }
        if let Some(nodes) = &self.memory_nodes {
            cpu["mems"] = json!(nodes);
        }
        let block = self.block_weight.map_or_else(|| json!({}), |weight| json!({ "weight": weight }));
        let pids = self.pids.map_or_else(|| json!({}), |limit| json!({ "limit": limit }));
        for (name, part) in [("memory", memory), ("cpu", cpu), ("pids", pids), ("blockIO", block)] {
            if part.as_object().is_some_and(|part| !part.is_empty()) {
                resources[name] = part;
            }
        }
        resources
    }

    /// `process.rlimits`
    pub(super) fn rlimits(&self) -> Value {
        let limit = |limit: &Ulimit| {
            json!({"type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
            "soft": limit.soft, "hard": limit.hard})
        };
        self.ulimits.iter().map(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_a_configuration() {
        let limits = Limits {
            memory: Some(1 << 20),
            cpus: Some(1.5),
            ulimits: vec!["nofile=10:20".parse().expect("a limit"), "core=-1".parse().expect("a limit")],
            ..Limits::default()
        };
        assert_eq!(
            limits.resources(),
            json!({"memory": {"limit": 1 << 20}, "cpu": {"quota": 150_000, "period": 100_000}})
        );
        assert_eq!(
            limits.rlimits(),
            json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
                {"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX}])
        );
        let limits = Limits {
            cpu_quota: Some(20_000),
            cpu_period: Some(40_000),
            memory_nodes: Some("0".to_owned()),
            block_weight: Some(500),
            swappiness: Some(0),
            no_oom_kill: true,
            ..Limits::default()
        };
        assert_eq!(
            limits.resources(),
            json!({"memory": {"swappiness": 0, "disableOOMKiller": true}, "blockIO": {"weight": 500},
                "cpu": {"quota": 20_000, "period": 40_000, "mems": "0"}})
        );
        for bad in ["nofile", "nofile=x", "files=1", "nofile=2:1", "="] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
    }
}
