//! The reference of the command line, `docs/reference/cli.md`, from the same definitions that parse it.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use super::Cli;
use crate::pages::{agree, cell};

const PAGE: &str = "docs/reference/cli.md";

const HEAD: &str = "# The command line

<!-- Generated from src/cli; `make docs` writes it anew. -->

What every command can and takes. Names, JSON fields and [exit codes](../operating.md#exit-codes-of-the-command-line) change only with a new
major version. `p8broker COMMAND --help` says the same at a terminal. An option that names a variable is taken from it where it is
not given.

";

/// What an option is given as: `--shares <NUMBER>`, or `<FILE>` for one that has no name.
fn usage(arg: &Arg) -> String {
    let values: Vec<String> = match arg.get_value_names() {
        Some(names) if arg.get_action().takes_values() => names.iter().map(|name| format!("<{name}>")).collect(),
        _ => Vec::new(),
    };
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let name = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
    [name].into_iter().chain(values).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn meaning(arg: &Arg) -> String {
    let mut out =
        arg.get_long_help().or_else(|| arg.get_help()).map(|help| cell(&help.to_string())).unwrap_or_default();
    let listed = |values: Vec<String>| values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !values.is_empty() && arg.get_action().takes_values() {
        let _ = write!(out, ". One of {}", listed(values));
    }
    let defaults =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let _ = write!(out, ". Default: {}", listed(defaults));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(out, ". Variable: `{}`", variable.to_string_lossy());
    }
    if arg.is_required_set() {
        out.push_str(". Required");
    }
    out
}

fn table(out: &mut String, args: &[&Arg]) {
    if args.is_empty() {
        return;
    }
    out.push_str("\n| option | meaning |\n| --- | --- |\n");
    for arg in args {
        let _ = writeln!(out, "| `{}` | {} |", usage(arg), meaning(arg));
    }
}

fn section(out: &mut String, path: &str, command: &Command) {
    let inside: Vec<&Command> = command.get_subcommands().filter(|it| it.get_name() != "help").collect();
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    if inside.is_empty() {
        let shown = command.clone().bin_name(path).override_help("").render_usage().to_string();
        let shown = shown.trim_start_matches("Usage:").split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = write!(out, "\n## {path}\n\n{}.\n\n    {shown}\n", about.trim_end_matches('.'));
        let own = |arg: &&Arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help" | "version");
        table(out, &command.get_arguments().filter(own).collect::<Vec<_>>());
    }
    for command in inside {
        section(out, &format!("{path} {}", command.get_name()), command);
    }
}

#[test]
fn the_page_is_of_this_command_line() {
    let mut command = Cli::command();
    let global: Vec<Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    command.build();
    let mut out = HEAD.to_owned();
    out.push_str("## options of every command\n");
    table(&mut out, &global.iter().collect::<Vec<_>>());
    section(&mut out, "p8broker", &command);
    agree(PAGE, &out);
}
