//! `__complete`, which the shells' completions call: prints the names of images, containers, checkpoints or volumes that
//! may stand at the cursor. The value's name in the definition of the command line tells which of these may stand there.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Arg, Command, CommandFactory};
use stratafs::container::named::NamedVolume;
use stratafs::container::{Container, Status};
use stratafs::store::{Image, Store, short_id};

use super::args::Cli;
use super::images::names;
use super::output::print_line;

/// Where the cursor is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// The value of `--root`.
    root: Option<PathBuf>,
    /// The verb; `rm` also for `container rm`.
    verb: String,
    /// The name of the value that stands there: `IMAGE`, `CONTAINER[@CHECKPOINT]`.
    value: String,
    /// The first word after the verb that is no option.
    first: Option<String>,
}

/// The words before the cursor, without the program, if `strata __complete -- WORD...` was called.
pub fn asked() -> Option<Vec<String>> {
    let mut words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let is_asked = words.next().as_deref() == Some("__complete") && words.next().as_deref() == Some("--");
    is_asked.then(|| words.collect())
}

/// Prints the names that the last word may become. Errors are not reported, because the user is typing.
pub fn complete(words: &[String]) {
    let Some((current, before)) = words.split_last() else { return };
    let mut command = Cli::command();
    command.build();
    let Some(place) = place(&command, before, current) else { return };
    let root = place.root.clone().or_else(|| std::env::var_os("STRATA_ROOT").map(PathBuf::from));
    let found = root.map_or_else(Store::default_root, Ok).and_then(|root| Store::open_for_reading(&root));
    let Ok(store) = found else { return };
    let mut candidates = candidates(&store, &place, current).unwrap_or_default();
    candidates.retain(|name| name.starts_with(current.as_str()));
    candidates.sort();
    candidates.dedup();
    candidates.iter().try_for_each(|name| print_line(name)).unwrap_or(());
}

/// Finds out where the cursor is. Returns `None` if no name may stand there.
fn place(command: &Command, before: &[String], current: &str) -> Option<Place> {
    let mut place = Place::default();
    let (mut at, mut option, mut count, mut options_end) = (command, None::<&Arg>, 0, false);
    for word in before {
        if let Some(arg) = option.take() {
            if arg.get_id() == "root" {
                place.root = Some(word.into());
            }
        } else if !options_end && word == "--" {
            options_end = true;
        } else if !options_end && word.starts_with('-') && word.len() > 1 {
            if let Some(root) = word.strip_prefix("--root=") {
                place.root = Some(root.into());
            }
            option = option_that_waits(at, word);
        } else if count == 0
            && let Some(verb) = at.find_subcommand(word)
        {
            at = verb;
        } else {
            place.first.get_or_insert_with(|| word.clone());
            // The words after the image or the container belong to the container.
            options_end |= at.get_positionals().any(Arg::is_trailing_var_arg_set);
            count += 1;
        }
    }
    place.verb = at.get_name().to_owned();
    if at.has_subcommands() {
        return None;
    }
    place.value = match option {
        Some(arg) if arg.get_id() == "volume" => "VOLUME".to_owned(),
        Some(_) => return None,
        None if !options_end && current.starts_with('-') => return None,
        None => value_at(at, count)?,
    };
    Some(place)
}

/// The option whose value is the next word.
fn option_that_waits<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let waits = |arg: &&Arg| arg.get_num_args().is_some_and(|range| range.min_values() > 0);
    if let Some(long) = word.strip_prefix("--") {
        let is_meant = |arg: &&Arg| {
            arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
        };
        return command.get_opts().find(is_meant).filter(waits);
    }
    // In `-itv`, the rest of the word is the value of the first letter that takes one.
    let mut letters = word.chars().skip(1);
    while let Some(letter) = letters.next() {
        let found = command.get_opts().find(|arg| arg.get_short() == Some(letter)).filter(waits);
        if found.is_some() {
            return found.filter(|_| letters.next().is_none());
        }
    }
    None
}

/// The name of the value at this place among the values that are not options.
fn value_at(command: &Command, mut index: usize) -> Option<String> {
    for arg in command.get_positionals() {
        let most = arg.get_num_args().map_or(1, |range| range.max_values());
        if index < most {
            let names = arg.get_value_names().unwrap_or_default();
            let name = names.get(index).or(names.last()).map(ToString::to_string);
            return Some(name.unwrap_or_else(|| arg.get_id().as_str().to_uppercase()));
        }
        index -= most;
    }
    None
}

fn candidates(store: &Store, place: &Place, current: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let is_about = |word: &str| place.value.split(['|', '[', ':', ']']).any(|part| part == word);
    if store.is_nothing() {
        return Ok(found);
    }
    if is_about("IMAGE") || is_about("REPOSITORY") {
        let of_image = |image: &Image| if image.names.is_empty() { vec![short_id(&image.id())] } else { names(image) };
        found.extend(store.images()?.iter().flat_map(of_image));
    }
    if is_about("@CHECKPOINT")
        && let Some((name, _)) = current.split_once('@')
    {
        found.extend(checkpoints(store, name)?.into_iter().map(|checkpoint| format!("{name}@{checkpoint}")));
    } else if is_about("CONTAINER") {
        let wanted =
            Container::list(store)?.containers.into_iter().filter(|container| is_wanted(&place.verb, container));
        found.extend(wanted.map(|container| container.name().to_owned()));
    }
    if let (true, Some(name)) = (is_about("CHECKPOINT"), &place.first) {
        found.extend(checkpoints(store, name)?);
    }
    if is_about("VOLUME") {
        found.extend(NamedVolume::list(store)?.into_iter().map(|volume| volume.name));
    }
    Ok(found)
}

fn checkpoints(store: &Store, container: &str) -> Result<Vec<String>> {
    let all = Container::open(store, container)?.checkpoints(store)?;
    Ok(all.into_iter().map(|checkpoint| checkpoint.name).collect())
}

/// True if the verb works on a container in this state.
fn is_wanted(verb: &str, container: &Container) -> bool {
    let Ok(status) = container.status() else { return true };
    match verb {
        "exec" | "attach" | "top" | "kill" | "stop" | "port" | "wait" => status.is_running(),
        "pause" => status == Status::Running,
        "unpause" => status == Status::Paused,
        "start" => !status.is_running(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Option<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (current, before) = words.split_last().expect("words");
        let mut command = Cli::command();
        command.build();
        place(&command, before, current).map(|place| place.value)
    }

    #[test]
    fn each_place_wants_its_names() {
        for (line, wanted) in [
            ("run ", Some("IMAGE")),
            ("run --rm -it ", Some("IMAGE")),
            ("run -e A=1 --name x deb", Some("IMAGE")),
            ("run --name ", None),
            ("run -v ", Some("VOLUME")),
            ("run -itv ", Some("VOLUME")),
            ("run debian:12 ", Some("COMMAND")),
            ("run debian:12 -", Some("COMMAND")),
            ("run --", None),
            ("container run ", Some("IMAGE")),
            ("exec ", Some("CONTAINER")),
            ("exec -it web ", Some("COMMAND")),
            ("rm a b ", Some("CONTAINER")),
            ("--root /x rm ", Some("CONTAINER")),
            ("commit ", Some("CONTAINER[@CHECKPOINT]")),
            ("rollback web ", Some("CHECKPOINT")),
            ("checkpoint rm web a ", Some("CHECKPOINT")),
            ("diff web ", Some("CONTAINER[@CHECKPOINT]|IMAGE")),
            ("tag ", Some("IMAGE")),
            ("tag debian:12 ", Some("NAME[:TAG]")),
            ("volume rm ", Some("VOLUME")),
            ("volume ", None),
            ("logs --tail ", None),
            ("logs --tail=3 ", Some("CONTAINER")),
            ("history --human ", Some("IMAGE")),
            ("", None),
        ] {
            assert_eq!(value(line).as_deref(), wanted, "{line:?}");
        }
    }

    #[test]
    fn the_store_on_the_line_is_used() {
        let mut command = Cli::command();
        command.build();
        for before in [&["--root", "/x", "rm"][..], &["rm", "--root=/x"]] {
            let before: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
            let place = place(&command, &before, "").expect("a place");
            assert_eq!(place.root.as_deref(), Some(std::path::Path::new("/x")));
        }
    }
}
