//! The center's page and completions, made of what its `--help` says: a line `  --flag VALUE   text` is an option, and the lines below it that
//! are indented further go on with the text.

use clap::{Arg, ArgAction, Command};
use elklet_center::cli::helps;
use roff::{Roff, bold, italic, roman};

use crate::completions::hint;
use crate::pages::{Edition, begin};

/// The example of the settings, which a test of the center holds to have every key with its default.
pub(crate) const EXAMPLE: &str = include_str!("../../../center/center.example.toml");

/// The program.
pub(crate) const PROGRAM: &str = "elklet-center";

/// A part of a help text.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// A line in two columns, as options and commands are.
    Entry { what: String, about: String },
    /// Lines of words.
    Words(String),
}

/// A help text: what the program or the command does, how it is called, and the rest.
#[derive(Debug)]
struct Help {
    summary: String,
    usage: Vec<String>,
    parts: Vec<Part>,
}

impl Help {
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let summary = lines.next().and_then(|line| line.split_once(": ")).map_or("", |(_, summary)| summary).to_owned();
        let (mut usage, mut parts, mut ends) = (Vec::new(), Vec::new(), true);
        for line in lines {
            if let Some(call) =
                line.strip_prefix("usage: ").or_else(|| line.strip_prefix("       elklet").map(|_| line.trim()))
            {
                usage.push(call.to_owned());
            } else if line.is_empty() {
                ends = true;
            } else if let Some(entry) = line.strip_prefix("  ").filter(|entry| !entry.starts_with(' ')) {
                let (what, about) = entry.split_once("  ").unwrap_or((entry, ""));
                parts.push(Part::Entry { what: what.to_owned(), about: about.trim().to_owned() });
                ends = false;
            } else {
                match parts.last_mut() {
                    Some(Part::Words(text) | Part::Entry { about: text, .. }) if !ends => {
                        *text = format!("{text} {}", line.trim());
                    }
                    _ => parts.push(Part::Words(line.trim().to_owned())),
                }
                ends = false;
            }
        }
        Self { summary, usage, parts }
    }

    /// The options, each with its value if it takes one, and what it is for.
    fn options(&self) -> impl Iterator<Item = (&str, Option<&str>, &str)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Entry { what, about } => {
                let option = what.strip_prefix("--")?;
                let (name, value) = option.split_once(' ').map_or((option, None), |(name, value)| (name, Some(value)));
                Some((name, value, about.as_str()))
            }
            Part::Words(_) => None,
        })
    }

    fn write(&self, page: &mut Roff) {
        for part in &self.parts {
            match part {
                Part::Entry { what, about } => {
                    page.control("TP", []).text([bold(what)]).text([roman(about)]);
                }
                Part::Words(text) => {
                    page.control("PP", []).text([roman(text)]);
                }
            }
        }
    }
}

/// The page of the program, in section 1.
pub(crate) fn page(edition: &Edition) -> String {
    let (program, commands) = helps();
    let program = Help::read(program);
    let mut page = begin(PROGRAM, "1", edition);
    page.control("SH", ["NAME"]).text([roman(format!("{PROGRAM} - {}", program.summary))]);
    page.control("SH", ["SYNOPSIS"]);
    let commands: Vec<_> = commands.iter().map(|(name, help)| (*name, Help::read(help))).collect();
    for usage in commands.iter().flat_map(|(_, help)| &help.usage) {
        page.text([bold(usage)]).control("br", []);
    }
    page.control("SH", ["DESCRIPTION"]);
    program.write(&mut page);
    page.control("SH", ["COMMANDS"]);
    for (name, help) in &commands {
        page.control("SS", [*name]).text([roman(format!("{PROGRAM} {name}: {}.", help.summary))]);
        help.write(&mut page);
    }
    page.control("SH", ["FILES"]);
    for (file, about) in [
        ("/etc/elklet/center.toml", "The settings."),
        ("/etc/elklet/center", "Certificates: ca.crt, server.crt and server.key."),
        ("/var/lib/elklet-center", "Everything that is kept."),
    ] {
        page.control("TP", []).text([italic(file)]).text([roman(about)]);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("center.toml"), roman("(5), "), bold("elklet"), roman("(1)")]);
    page.render()
}

/// The program as clap describes one.
pub(crate) fn described() -> Command {
    let (program, commands) = helps();
    let described = Command::new(PROGRAM).about(Help::read(program).summary).version("").disable_help_subcommand(true);
    described.subcommands(commands.into_iter().map(|(name, help)| {
        let help = Help::read(&help);
        let arguments: Vec<Arg> = help.options().filter(|(name, ..)| *name != "help").map(argument).collect();
        Command::new(name).about(help.summary).disable_help_subcommand(true).args(arguments)
    }))
}

fn argument((name, value, about): (&str, Option<&str>, &str)) -> Arg {
    let argument = Arg::new(name.to_owned()).long(name.to_owned()).help(about.to_owned());
    match value {
        None => argument.action(ArgAction::SetTrue),
        Some(value) => argument.value_name(value.to_owned()).value_hint(hint(value)).action(ArgAction::Append),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_text_is_taken_apart() {
        let text = "p x: do it\n\nusage: p x A\n       elklet-center x B\n\nIntro of\ntwo lines.\n\n  --a FILE    first\n              and more\n  --b         second\n\nThe end.\n";
        let help = Help::read(text);
        assert_eq!((help.summary.as_str(), help.usage.len()), ("do it", 2));
        assert_eq!(help.options().collect::<Vec<_>>(), [("a", Some("FILE"), "first and more"), ("b", None, "second")]);
        assert_eq!(help.parts[0], Part::Words("Intro of two lines.".into()));
        assert_eq!(help.parts[3], Part::Words("The end.".into()));
    }

    #[test]
    fn the_page_and_the_completions_have_every_command_and_flag() {
        let page = page(&Edition { version: "1".into(), date: String::new() }).replace("\\-", "-");
        let described = described();
        for (name, help) in helps().1 {
            assert!(page.contains(&format!(".SS {name}")), "{page}");
            let command = described.find_subcommand(name).expect("it is described");
            let words = help.split([' ', '\n', ',']).filter(|word| word.starts_with("--") && word.len() > 2);
            let flags: Vec<_> = words
                .map(|word| word.trim_end_matches([';', ')', '.', ':']))
                .filter(|flag| *flag != "--help")
                .collect();
            for flag in flags {
                assert!(page.contains(flag), "{name} {flag}");
                let known = command.get_arguments().any(|argument| argument.get_long() == Some(&flag[2..]));
                assert!(known || name == "user" || flag == "--role", "{name} {flag}");
            }
        }
    }
}
