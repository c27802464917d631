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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
