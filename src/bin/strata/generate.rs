//! Man pages and completions, from the same definitions as the command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use stratafs::config::manual;

use super::args::{Cli, Completions, Man};
use super::output::tell;

/// Asks `strata __complete` for names of images and containers first; where there are none, the generated function goes on.
/// readline completes what stands after the last `:` or `=` of a word, and what begins with its last `@`.
const BASH: &str = r#"
_strata_names() {
    local line=${COMP_LINE:0:COMP_POINT} words=() names breaks='' prefix='' character
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=('')
    while ((${#words[@]} > 1)) && [[ ${words[0]} != "$1" ]]; do words=("${words[@]:1}"); done
    names=$("$1" __complete -- "${words[@]:1}" 2>/dev/null)
    if [[ -z $names ]]; then
        _strata "$@"
        return
    fi
    for character in : = @; do
        [[ $COMP_WORDBREAKS == *"$character"* ]] && breaks+=$character
    done
    [[ -n $breaks ]] && prefix=${words[-1]%"${words[-1]##*[$breaks]}"}
    prefix=${prefix%@}
    mapfile -t COMPREPLY <<<"$names"
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
"#;

const ZSH: &str = r#"
_strata() {
    local -a names
    names=(${(f)"$(${words[1]} __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#names )); then
        compadd -a names
    else
        _strata_static "$@"
    fi
}

"#;

const FISH: &str = r#"
function __strata_names
    set -l words (commandline -opc)
    command $words[1] __complete -- $words[2..-1] (commandline -ct | string collect --allow-empty) 2>/dev/null
end
complete -c strata -k -a '(__strata_names)'
"#;

/// What the user's shell must source.
fn script(shell: Shell) -> Result<String> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "strata", &mut bytes);
    let text = String::from_utf8(bytes).context("completions")?;
    Ok(match shell {
        Shell::Bash => {
            // Defined before it is named.
            let at = text.rfind("\nif [[").context("completions")?;
            format!("{}{BASH}{}", &text[..at], text[at..].replace("complete -F _strata ", "complete -F _strata_names "))
        }
        Shell::Zsh => {
            let text = text.replacen("\n_strata() {", "\n_strata_static() {", 1);
            let at = text.rfind("\nif [ \"$funcstack").context("completions")?;
            format!("{}{ZSH}{}", &text[..at], text[at..].trim_start())
        }
        Shell::Fish => format!("{text}{FISH}"),
        _ => text,
    })
}

pub fn completions(args: &Completions) -> Result<()> {
    Ok(io::stdout().write_all(script(args.shell)?.as_bytes())?)
}

pub fn man(args: &Man) -> Result<()> {
    match &args.dir {
        Some(dir) => write_pages(dir),
        None => install(&share()?),
    }
}

/// Writes the page of `strata` and one for each verb.
fn write_pages(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_page(&command, "strata", dir)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(verb, &format!("strata-{}", verb.get_name()), dir)?;
    }
    Ok(())
}

/// The directory for files that a user or root installs without a package.
fn share() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/usr/local/share"));
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let share = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    share.context("neither XDG_DATA_HOME nor HOME is set; give a directory")
}

/// Installs manuals of both programs and completions in the usual places below `share`.
fn install(share: &Path) -> Result<()> {
    let pages = share.join("man/man1");
    write_pages(&pages)?;
    let page = manual::man_page(env!("CARGO_PKG_VERSION")).into_bytes();
    let mut files = vec![(pages.join("stratafs.1"), page)];
    let bash = share.join("bash-completion/completions");
    files.push((bash.join("stratafs"), manual::bash_completion().into_bytes()));
    for (shell, path) in [
        (Shell::Bash, bash.join("strata")),
        (Shell::Zsh, share.join("zsh/site-functions/_strata")),
        (Shell::Fish, share.join("fish/vendor_completions.d/strata.fish")),
    ] {
        files.push((path, script(shell)?.into_bytes()));
    }
    for (path, text) in files {
        let place = || path.display().to_string();
        path.parent().map_or(Ok(()), std::fs::create_dir_all).with_context(place)?;
        std::fs::write(&path, text).with_context(place)?;
    }
    tell(&format!("manuals and completions are below {}; read them with `man strata`", share.display()));
    Ok(())
}

/// The generator puts the text after the help under EXTRA; readers of manuals expect other headings.
fn write_page(command: &clap::Command, name: &str, dir: &Path) -> Result<()> {
    let source = concat!("strata ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).source(source).render(&mut page)?;
    let page = String::from_utf8(page).context("man page")?;
    let page = page
        .replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n")
        .replace(".SH EXTRA\nExit codes: ", ".SH \"EXIT STATUS\"\n")
        .replace(".SH EXTRA\n", ".SH NOTES\n")
        .replace("\nExamples:\n", "\n.SH EXAMPLES\n");
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| path.display().to_string())
}
