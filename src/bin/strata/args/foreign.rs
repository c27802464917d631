//! Options of docker's `run` and `create` that have no effect here, or are refused with advice. `--help` does not show them.

use clap::Args;

#[derive(Args)]
pub struct ForeignArgs {
    #[arg(long, hide = true, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    #[arg(long, hide = true, value_name = "TIME")]
    pub health_interval: Option<String>,
    #[arg(long, hide = true, value_name = "TIME")]
    pub health_timeout: Option<String>,
    #[arg(long, hide = true, value_name = "TIME")]
    pub health_start_period: Option<String>,
    #[arg(long, hide = true, value_name = "TIME")]
    pub health_start_interval: Option<String>,
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub health_retries: Option<u32>,
    #[arg(long, hide = true)]
    pub no_healthcheck: bool,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub disable_content_trust: Option<bool>,
    #[arg(long, hide = true, value_name = "KIND")]
    pub isolation: Option<String>,
    #[arg(long, hide = true, value_name = "BYTES")]
    pub kernel_memory: Option<String>,
    #[arg(long, hide = true, value_name = "DRIVER")]
    pub volume_driver: Option<String>,
    #[arg(long, hide = true, value_name = "CONTAINER[:ALIAS]")]
    pub link: Vec<String>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub ip: Option<String>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub ip6: Option<String>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub link_local_ip: Vec<String>,
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub mac_address: Option<String>,
    #[arg(long, visible_alias = "net-alias", hide = true, value_name = "NAME")]
    pub network_alias: Vec<String>,
    #[arg(long, hide = true, value_name = "RULE")]
    pub device_cgroup_rule: Vec<String>,
}

impl ForeignArgs {
    /// The first option that is refused, with its value and what to do instead.
    pub fn refused(&self) -> Option<String> {
        let apart = "containers do not see each other by name; publish a port (-p)";
        let address = "pasta gives the container the host's address; publish a port (-p)";
        let rule = "name the device (--device)";
        let single =
            |name: &'static str, value: &Option<String>, advice| value.clone().map(|value| (name, value, advice));
        let list =
            |name: &'static str, values: &[String], advice| values.first().cloned().map(|value| (name, value, advice));
        let unusual = |value: &Option<String>, usual: &str| value.clone().filter(|value| value != usual);
        let found = list("link", &self.link, apart)
            .or_else(|| list("network-alias", &self.network_alias, apart))
            .or_else(|| single("ip", &self.ip, address))
            .or_else(|| single("ip6", &self.ip6, address))
            .or_else(|| list("link-local-ip", &self.link_local_ip, address))
            .or_else(|| single("mac-address", &self.mac_address, address))
            .or_else(|| list("device-cgroup-rule", &self.device_cgroup_rule, rule))
            .or_else(|| single("isolation", &unusual(&self.isolation, "default"), "there is only default"))
            .or_else(|| single("volume-driver", &unusual(&self.volume_driver, "local"), "there is only local"));
        found.map(|(name, value, advice)| format!("--{name} {value}: not supported; {advice}"))
    }

    /// The options that were given and have no effect, with the reason.
    pub fn without_effect(&self) -> Option<&'static str> {
        self.health_cmd.is_some().then_some("--health-cmd has no effect: there are no health checks")
    }
}
