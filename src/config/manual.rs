//! The manual of `stratafs` in its different forms: man page, tables of `docs/options.md`, help, completions. All of them are
//! made from the `catalogue`.

use std::fmt::Write;

use super::catalogue::{self, Entry};

/// The man page before the options.
const ABOUT: &str = r#".SH NAME
stratafs \- mount a union of directories
.SH SYNOPSIS
.B stratafs
.RI [ SOURCE ]
.I MOUNTPOINT
.B \-o lowerdir=\fILOWER\fR[:\fILOWER\fR...][,upperdir=\fIUPPER\fR,workdir=\fIWORK\fR][,\fIOPTION\fR...]
.RB [ \-\- " " \fICOMMAND\fR... ]
.br
.B mount \-t fuse.stratafs
.I SOURCE MOUNTPOINT
.B \-o
.I OPTIONS
.SH DESCRIPTION
.B stratafs
shows an ordered stack of directories as one tree.
The lower layers are only read.
What is changed goes to the upper directory: a file of a lower layer is copied there before its first change, what is
deleted leaves a mark there.
Without an upper directory the mount is read-only.
.PP
A
.I MOUNTPOINT
of the form
.BI /dev/fd/ N
stands for a descriptor of
.I /dev/fuse
that the caller has opened and mounted (its mount options count, and should have
.BR default_permissions );
it is only served.
.PP
The program returns when the mount answers; a second process serves it until it is unmounted with
.BR umount (8)
or
.BR fusermount3 (1).
While it is mounted nothing else may change the layers.
.PP
Options and marks are those of the kernel's overlayfs and of
.BR fuse-overlayfs (1);
an upper directory can be used by either before and after.
.SH OPTIONS
.TP
.BI \-o " OPTION" \fR[\fB,\fIOPTION\fR...]
Mount options, see below. Can be given several times; later options override earlier ones.
.TP
.B \-f
Stay in the foreground.
.TP
.BR \-d ", " \-\-debug
Stay in the foreground and log every request.
.TP
.BR \-\- " \fICOMMAND\fR..."
Run a command while the mount is there. When the command ends, the mount ends.
.TP
.BR \-V ", " \-\-version
Print the version.
.TP
.BR \-h ", " \-\-help
Print a summary.
.PP
.BR \-n ", " \-s ", " \-v " and " \-t
are accepted from
.BR mount (8)
and mean nothing.
An unknown mount option gives a warning and is ignored; if it looks like a misspelt one, it is an error.
.SH MOUNT OPTIONS
"#;

/// The man page after the options.
const REST: &str = r#".SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT ", " SIGHUP ", " SIGQUIT
Unmount and end, as do SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT and real-time signals.
All but SIGTERM stay ignored if the caller ignores them, as with
.BR nohup (1).
.TP
.B SIGUSR1
Log how many requests of each kind there were.
.SH ENVIRONMENT
.TP
.B STRATAFS_LOG
What is logged: a level
.RB ( error ", " warn ", " info ", " debug ", " trace )
or a filter such as
.BR stratafs::fuse=trace .
.TP
.B STRATAFS_LOG_FILE
A file to append the log to. Without it the log of a daemon ends when the mount is ready.
.SH EXIT STATUS
0: mounted. 1: not mounted; one line on standard error says why. 2: the command line is wrong.
With a command: its exit status, 128 and the number of the signal that ended it, 127 if it was not found, 126 if it could not
be run.
.SH EXAMPLES
.EX
mkdir upper work merged
stratafs \-o lowerdir=/srv/top:/srv/base,upperdir=upper,workdir=work merged
umount merged
.EE
.PP
A line of
.BR fstab (5):
.PP
.EX
union  /mnt  fuse.stratafs  lowerdir=/srv/base,upperdir=/srv/up,workdir=/srv/work  0  0
.EE
.SH SEE ALSO
.BR strata (1),
.BR mount (8),
.BR fusermount3 (1),
.BR fuse (4)
"#;

/// `stratafs.1`.
pub fn man_page(version: &str) -> String {
    let mut page = format!(".TH STRATAFS 1 \"\" \"stratafs {version}\" \"User Commands\"\n{ABOUT}");
    for group in catalogue::GROUPS {
        line(&mut page, &format!(".SS {}", group.title));
        for entry in group.entries {
            line(&mut page, ".TP");
            line(&mut page, &format!(".B {}", roff(&entry.usage())));
            line(&mut page, &roff(&in_bold(entry.text)));
            if !entry.default.is_empty() {
                line(&mut page, &format!("Default: {}.", roff(&in_bold(entry.default))));
            }
        }
    }
    page + REST
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Escapes text for roff; `\x01` and `\x02` are the changes of font made by [`in_bold`].
fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...").replace('\u{1}', "\\fB").replace('\u{2}', "\\fR")
}

/// Turns backquotes into marks for bold face.
fn in_bold(text: &str) -> String {
    text.split('`').enumerate().fold(String::new(), |mut marked, (number, part)| {
        if number > 0 {
            marked.push(if number % 2 == 1 { '\u{1}' } else { '\u{2}' });
        }
        marked.push_str(part);
        marked
    })
}

/// The tables of `docs/options.md`, one for each group.
pub fn markdown() -> String {
    let mut text = String::new();
    for group in catalogue::GROUPS {
        line(&mut text, &format!("| {} | default | |\n|---|---|---|", group.title));
        for entry in group.entries {
            let usage = entry.usage().replace('|', "\\|");
            let usage = usage.split(", ").map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ");
            line(&mut text, &format!("| {usage} | {} | {} |", entry.default, entry.text.replace('|', "\\|")));
        }
        text.push('\n');
    }
    text
}

/// The list of options at the end of `--help`.
pub fn summary() -> String {
    const WIDTH: usize = 96;
    let mut text = String::new();
    for group in catalogue::GROUPS {
        line(&mut text, &format!("{}:", group.title));
        let mut row = String::new();
        for usage in group.entries.iter().map(Entry::usage) {
            if !row.is_empty() && row.chars().count() + usage.chars().count() + 4 > WIDTH {
                line(&mut text, &format!("  {}", row.trim_end()));
                row.clear();
            }
            row.push_str(&usage);
            row.push_str("  ");
        }
        line(&mut text, &format!("  {}", row.trim_end()));
    }
    text
}

/// A completion function for bash: flags, directories, and the words after `-o`.
pub fn bash_completion() -> String {
    let mut words = String::new();
    let mut choices = String::new();
    for entry in catalogue::entries() {
        for name in entry.names {
            let needs_value = !entry.value.is_empty() && !entry.value.starts_with('[');
            let ending = if needs_value { "=" } else { "" };
            write_word(&mut words, &format!("{name}{ending}"));
        }
        let values = entry.value.trim_matches(['[', ']']);
        if values.contains('|') && !values.contains(':') {
            for value in values.split('|') {
                write_word(&mut choices, &format!("{}={value}", entry.names.first().unwrap_or(&"")));
            }
        }
    }
    BASH.replace("@WORDS@", &words).replace("@CHOICES@", &choices)
}

fn write_word(words: &mut String, word: &str) {
    let separator = if words.is_empty() { "" } else { " " };
    // Writing to a String cannot fail.
    write!(words, "{separator}{word}").unwrap_or(());
}

const BASH: &str = r#"# bash completion for stratafs
_stratafs() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    # The line is split at '=' and ':': what the user sees as one word is put together again.
    local start=$COMP_CWORD
    while [ "$start" -gt 1 ] && [ "${COMP_WORDS[start - 1]}" != -o ] && [[ ${COMP_WORDS[start]} != -* ]]; do
        start=$((start - 1))
    done
    if [ "${COMP_WORDS[start - 1]}" = -o ]; then
        local whole
        whole=$(IFS=; echo "${COMP_WORDS[*]:start:COMP_CWORD - start + 1}")
        local last=${whole##*,} before=
        [ "$whole" = "$last" ] || before=${whole%,*},
        case $last in
            *dir=* | *dir+=*)
                mapfile -t COMPREPLY < <(compgen -d -- "${last##*[:=]}")
                compopt -o nospace -o filenames
                return ;;
            *=*) mapfile -t COMPREPLY < <(compgen -W "@CHOICES@" -- "$last")
                COMPREPLY=("${COMPREPLY[@]#*=}")
                return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -P "$before" -W "@WORDS@" -- "$last")
        compopt -o nospace
        return
    fi
    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W "-o -f -d --debug -V --version -h --help" -- "$current") ;;
        *) [ "$previous" = -o ] || { mapfile -t COMPREPLY < <(compgen -d -- "$current"); compopt -o filenames; } ;;
    esac
}
complete -F _stratafs stratafs
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::MountOptions;

    /// A valid value.
    fn sample(entry: &Entry) -> String {
        match entry.value {
            "" => String::new(),
            value if value.starts_with('"') => "=\"a,b\"".to_owned(),
            value if value.starts_with("ON-DISK") => "=0:1000:10".to_owned(),
            "ID" | "N" | "SECONDS" | "BYTES" => "=7".to_owned(),
            "NAME" => "=name".to_owned(),
            value if value.contains("DIR") => "=/l".to_owned(),
            value => format!("={}", value.trim_matches(['[', ']']).split('|').next().unwrap_or_default()),
        }
    }

    #[test]
    fn the_parser_knows_every_option_of_the_table() {
        for entry in catalogue::entries() {
            for name in entry.names {
                let text = format!("lowerdir=/l,upperdir=/u,workdir=/w,metacopy,{name}{}", sample(entry));
                let options = MountOptions::parse([&text], true).unwrap_or_else(|error| panic!("{text}: {error}"));
                assert_eq!(options.warnings, Vec::<String>::new(), "{text}");
            }
        }
    }

    #[test]
    fn every_choice_of_the_table_is_one() {
        for entry in catalogue::entries().filter(|entry| entry.value.contains('|') && !entry.value.contains(':')) {
            for value in entry.value.trim_matches(['[', ']']).split('|') {
                let text = format!("lowerdir=/l,{}={value}", entry.names[0]);
                assert!(MountOptions::parse([&text], true).is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn no_option_stands_twice() {
        let mut names: Vec<&str> = catalogue::entries().flat_map(|entry| entry.names).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn man_page_is_escaped() {
        let page = man_page("1.2.3");
        assert!(page.starts_with(".TH STRATAFS 1 \"\" \"stratafs 1.2.3\""));
        assert!(page.contains(".B lowerdir=DIR[:DIR...][::DATA...]\n"), "{page}");
        assert!(page.contains("\\fB\\e:\\fR"), "{page}");
        assert!(!page.contains('`') && !page.contains('…'));
    }

    #[test]
    fn the_documentation_has_the_tables() {
        let page = include_str!("../../docs/options.md");
        let (_, rest) = page.split_once("<!-- options -->\n").expect("docs/options.md has no <!-- options -->");
        let (shown, _) = rest.split_once("<!-- /options -->").expect("docs/options.md has no <!-- /options -->");
        assert!(
            shown.trim() == markdown().trim(),
            "docs/options.md differs: put what `stratafs --generate markdown` prints between the marks"
        );
    }
}
