//! Parses the command line; `strata --help` shows the verbs in groups.

use clap::{CommandFactory, FromArgMatches};

use super::args::Cli;

/// The verbs that `--help` shows, in groups.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Containers",
        &[
            "run",
            "create",
            "start",
            "stop",
            "restart",
            "kill",
            "exec",
            "attach",
            "ps",
            "logs",
            "top",
            "stats",
            "port",
            "wait",
            "pause",
            "unpause",
            "rename",
            "rm",
            "diff",
            "cp",
            "commit",
            "export",
            "mount",
            "umount",
            "checkpoint",
            "rollback",
            "fork",
            "volume",
            "container",
        ],
    ),
    ("Images", &["images", "inspect", "history", "tag", "rmi", "load", "save", "import", "flatten", "image"]),
    ("Registries", &["pull", "push", "login", "logout"]),
    ("Layers", &["layers", "report", "which", "unpack", "snapshot", "inventory"]),
    (
        "Store and machine",
        &["df", "gc", "verify", "info", "version", "mounts", "doctor", "completions", "man", "system", "snapshotter"],
    ),
];

/// Verbs of docker that another program does, or that mean nothing without a daemon, with what to do.
const ELSEWHERE: [(&str, &str); 26] = [
    ("build", "use buildah or podman build, then strata load or pull"),
    ("buildx", "use buildah or podman build, then strata load or pull"),
    ("builder", "use buildah; strata has no cache of builds"),
    ("compose", "use podman compose, or a systemd unit for each container"),
    ("swarm", "use Kubernetes with strata snapshotter"),
    ("service", "use Kubernetes with strata snapshotter"),
    ("stack", "use Kubernetes with strata snapshotter"),
    ("node", "use Kubernetes with strata snapshotter"),
    ("secret", "use a file: -v ./secret:/run/secrets/secret:ro"),
    ("config", "use a file: -v ./config:/etc/config:ro"),
    ("network", "there are no networks to manage; --network of run is host, none or pasta"),
    ("context", "there is no daemon to choose; --root chooses a store"),
    ("manifest", "use skopeo inspect --raw"),
    ("search", "use skopeo list-tags"),
    ("events", "no daemon sees events; use ps and wait"),
    ("update", "limits are set when a container is made"),
    ("plugin", "there are no plugins"),
    ("trust", "use cosign"),
    ("scout", "use trivy or grype on strata save"),
    ("pod", "there are no pods; run --network container:NAME shares a network"),
    ("kube", "use podman kube, or Kubernetes with strata snapshotter"),
    ("play", "use podman kube, or Kubernetes with strata snapshotter"),
    ("generate", "write a systemd unit with ExecStart=strata start -a NAME"),
    ("machine", "there is no virtual machine; strata runs on Linux"),
    ("healthcheck", "there are no health checks; use exec"),
    ("unshare", "use unshare(1) with --map-auto"),
];

/// What to do instead of a verb that strata does not have.
pub fn elsewhere(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let (_, advice) = ELSEWHERE.iter().find(|(known, _)| known == verb)?;
    Some(format!("{verb}: {advice}"))
}

/// What is wrong with the command line, in one line; `None` for the text of `--help` and `--version`.
pub fn complaint(error: &clap::Error) -> Option<String> {
    use clap::error::ErrorKind;
    if error.exit_code() == 0 || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.render().to_string();
    let lines =
        text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let mut complaint = String::new();
    for line in lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("tip: to pass")) {
        let between = if complaint.is_empty() {
            ""
        } else if line.starts_with("tip:") {
            "; "
        } else {
            " "
        };
        complaint = format!("{complaint}{between}{}", line.strip_prefix("error: ").unwrap_or(line));
    }
    Some(complaint)
}

/// Parses the command line.
///
/// # Errors
/// Wrong usage, and the text of `--help` and `--version`.
pub fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&grouped(Cli::command()).try_get_matches()?)
}

/// The command with the groups in its help.
fn grouped(command: clap::Command) -> clap::Command {
    let mut text = String::from("{about}\n\n{usage-heading} {usage}\n");
    let widest = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter()).map(|verb| verb.len()).max().unwrap_or(0);
    for (group, verbs) in GROUPS {
        text.push_str(&format!("\n\u{1b}[1m\u{1b}[4m{group}:\u{1b}[0m\n"));
        for verb in verbs {
            // This program may have been built without some features.
            let Some(found) = command.find_subcommand(verb) else { continue };
            let about = found.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  \u{1b}[1m{verb:widest$}\u{1b}[0m  {about}\n"));
        }
    }
    text.push_str("\n\u{1b}[1m\u{1b}[4mOptions:\u{1b}[0m\n{options}{after-help}");
    command.help_template(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group() {
        let command = Cli::command();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        grouped.retain(|verb| *verb != "snapshotter" || cfg!(feature = "snapshotter"));
        let mut all: Vec<&str> =
            command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
    }

    /// A heading of a group of options goes on to what is defined after it.
    #[test]
    fn headings_are_of_options_only() {
        for verb in Cli::command().get_subcommands() {
            for arg in verb.get_positionals() {
                assert_eq!(arg.get_help_heading(), None, "{} {}", verb.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn verbs_that_are_elsewhere_say_where() {
        let told = |verb: &str| match Cli::command().try_get_matches_from(["strata", verb]) {
            Err(error) => elsewhere(&error),
            Ok(_) => panic!("{verb} is a verb"),
        };
        for (verb, advice) in ELSEWHERE {
            assert_eq!(told(verb), Some(format!("{verb}: {advice}")));
        }
        assert_eq!(told("nosuch"), None);
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
