//! `--help`, from the tables of [`commands`](super::commands), in lines that fit a terminal of 80 columns.

use super::commands::{Command, ENVIRONMENT, Flag, PLACES, Program};

const COLUMNS: usize = 80;

/// Where the second column of a table begins at the latest.
const MAX_INDENT: usize = 26;

/// What `program --help` prints.
pub(super) fn program(program: &Program, version: &str) -> String {
    let Program { name, summary, details, commands, flags, .. } = *program;
    let mut text = format!("{name} {version} - {summary}\n\nUsage: {name}{} COMMAND [OPTION]...\n\n", usage(flags));
    paragraphs(&mut text, details);
    table(&mut text, "\nCommands", commands.iter().map(|command| (command.name.to_owned(), command.summary)));
    text.push_str(&format!("\n`{name} COMMAND --help` describes a command and its options.\n"));
    table(&mut text, "\nOptions", flags.iter().map(|flag| (flag.usage(), flag.help)).chain(common(flags)));
    text.push_str("\nWhere things lie, for every command:\n");
    let [place, default, directory, key] = ["", "by default", "with --workdir", "key of the file"];
    for [place, default, directory, key] in [[place, default, directory, key]].into_iter().chain(PLACES) {
        text.push_str(&format!("  {place:<21} {default:<23} {directory:<15} {key}\n"));
    }
    text.push('\n');
    paragraphs(
        &mut text,
        "Called by the name elkeid-agent or elkeidctl, the program has everything in /etc/elkeid; elkeid-agent needs no command to \
         run.",
    );
    let entries = ENVIRONMENT.entries.iter().map(|(name, meaning)| ((*name).to_owned(), *meaning));
    table(&mut text, &format!("\n{}", ENVIRONMENT.title), entries);
    text
}

/// What `--help` prints after the words that lead to a command.
pub(super) fn command(program: &Program, path: &[&'static Command]) -> String {
    let words: Vec<_> = path.iter().map(|command| command.name).collect();
    let words = format!("{} {}", program.name, words.join(" "));
    let Some(&&Command { summary, details, operand, commands, flags, exits, .. }) = path.last() else {
        return String::new();
    };
    let below = if commands.is_empty() {
        operand.map(|operand| format!(" {operand}")).unwrap_or_default()
    } else {
        " COMMAND".to_owned()
    };
    let mut text = String::new();
    wrap(&mut text, "", &format!("{words} - {summary}"), 0);
    text.push('\n');
    // Continued lines begin where the first option does.
    let start = format!("Usage: {words}");
    wrap(&mut text, &start, &format!("{below}{}", usage(flags)), start.len().min(MAX_INDENT) + 1);
    if !details.is_empty() {
        text.push('\n');
        paragraphs(&mut text, details);
    }
    table(&mut text, "\nCommands", commands.iter().map(|command| (command.name.to_owned(), command.summary)));
    table(&mut text, "\nOptions", flags.iter().map(|flag| (flag.usage(), flag.help)).chain(common(flags)));
    // A command of a command has the exit codes of that.
    let exits = path.iter().rev().map(|command| command.exits).find(|exits| !exits.is_empty()).unwrap_or(exits);
    table(&mut text, "\nExit codes", exits.iter().map(|(code, meaning)| ((*code).to_owned(), *meaning)));
    text
}

fn usage(flags: &[Flag]) -> String {
    flags.iter().map(|flag| format!(" [{}]{}", flag.usage(), if flag.is_repeated { "..." } else { "" })).collect()
}

/// The options that every command has, beside `flags`.
fn common(flags: &[Flag]) -> impl Iterator<Item = (String, &'static str)> {
    let version = if flags.iter().any(|flag| flag.name == "version") { "-V" } else { "-V, --version" };
    [("-h, --help", "this text"), (version, "the version")].map(|(name, help)| (name.to_owned(), help)).into_iter()
}

fn paragraphs(text: &mut String, details: &str) {
    for (number, paragraph) in details.split("\n\n").enumerate() {
        if number > 0 {
            text.push('\n');
        }
        wrap(text, "", paragraph, 0);
    }
}

/// Two columns below a heading, if there are entries.
fn table(text: &mut String, heading: &str, entries: impl Iterator<Item = (String, &'static str)>) {
    let entries: Vec<_> = entries.collect();
    let Some(longest) = entries.iter().map(|(name, _)| name.len()).max() else { return };
    let indent = (longest + 4).min(MAX_INDENT);
    text.push_str(&format!("{heading}:\n"));
    for (name, meaning) in entries {
        let mut start = format!("  {name}");
        if start.len() + 2 > indent {
            text.push_str(&start);
            text.push('\n');
            start.clear();
        }
        wrap(text, &format!("{start:<width$}", width = indent - 1), &format!(" {meaning}"), indent);
    }
}

/// Adds `start` and then the words of `rest`, in lines of at most [`COLUMNS`], where that is possible. All lines but the first are
/// indented. An option in brackets stays in one line.
fn wrap(text: &mut String, start: &str, rest: &str, indent: usize) {
    let mut line = start.to_owned();
    let mut is_empty = start.is_empty();
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let mut word = word.to_owned();
        while word.starts_with('[') && !word.contains(']') {
            let Some(next) = words.next() else { break };
            word = format!("{word} {next}");
        }
        if !is_empty && line.len() + 1 + word.len() > COLUMNS {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(&word);
        is_empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::commands::{ELKEIDCTL, ELKLET, all};
    use super::*;

    #[test]
    fn every_line_fits_a_terminal() {
        for of in [ELKLET, ELKEIDCTL] {
            let mut texts = vec![program(&of, "10.20.30")];
            for command in of.commands {
                texts.push(super::command(&of, &[command]));
                texts.extend(command.commands.iter().map(|below| super::command(&of, &[command, below])));
            }
            for line in texts.iter().flat_map(|text| text.lines()) {
                assert!(line.len() <= COLUMNS && line.trim_end() == line, "{} columns: {line:?}", line.len());
            }
        }
    }

    #[test]
    fn a_commands_help_has_each_of_its_options_and_codes() {
        for (words, command) in all(ELKLET.commands) {
            let path: Vec<_> = (1..=words.len())
                .map(|length| {
                    all(ELKLET.commands).into_iter().find(|(found, _)| *found == words[..length]).expect("a prefix").1
                })
                .collect();
            let text = super::command(&ELKLET, &path).replace('\n', " ");
            for flag in command.flags {
                assert!(text.contains(&flag.usage()), "{words:?}: {flag:?}");
            }
            assert!(command.exits.iter().all(|(code, _)| text.contains(&format!("  {code} "))), "{words:?}: {text}");
        }
    }
}
