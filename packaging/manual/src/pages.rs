//! Man pages.

use elklet_agent::commands::{Command, ENVIRONMENT, Flag, PLACE_FLAGS, PLACES, Program, all};
use roff::{Inline, Roff, bold, italic, roman};

use crate::keys::Section;

/// What the foot of a page names.
#[derive(Debug)]
pub(crate) struct Edition {
    /// The program's version.
    pub(crate) version: String,
    /// The day as YYYY-MM-DD, or nothing.
    pub(crate) date: String,
}

/// The page of a program, in section 1.
pub(crate) fn program(program: &Program, edition: &Edition) -> String {
    let Program { name, summary, details, commands, .. } = *program;
    let mut page = begin(name, "1", edition);
    page.control("SH", ["NAME"]).text([roman(format!("{name} - {summary}"))]);
    page.control("SH", ["SYNOPSIS"]);
    for command in commands {
        synopsis(&mut page, name, command);
    }
    page.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut page, details);

    page.control("SH", ["COMMANDS"]);
    for (words, command) in all(commands) {
        page.control("SS", [&*words.join(" ")]);
        let about = sentence(command.summary);
        page.text([roman(about)]);
        if !command.details.is_empty() && command.details != details {
            page.control("PP", []);
            paragraphs(&mut page, command.details);
        }
        for flag in own_flags(command) {
            page.control("TP", []).text(option(flag)).text(quoted(&sentence(flag.help)));
        }
        if !command.exits.is_empty() {
            page.control("PP", []).text([roman("Exit codes:")]);
            for (code, meaning) in command.exits {
                page.control("TP", []).text([bold(*code)]).text(quoted(&sentence(meaning)));
            }
        }
    }

    page.control("SH", ["OPTIONS"]);
    for flag in PLACE_FLAGS {
        page.control("TP", []).text(option(flag)).text(quoted(&sentence(flag.help)));
    }
    for (short, long, help) in
        [("-h", "--help", "describe the program or the command"), ("-V", "--version", "print the version")]
    {
        page.control("TP", []).text([bold(short), roman(", "), bold(long)]).text([roman(sentence(help))]);
    }
    page.control("SH", ["FILES"]);
    page.text([
        roman("Every command finds things in the same places. A key of "),
        bold("elklet.toml"),
        roman("(5) moves each of them, and "),
        bold("--workdir"),
        roman(" puts all of them into one directory. By the names "),
        bold("elkeid-agent"),
        roman(" and "),
        bold("elkeidctl"),
        roman(" the program has everything in "),
        italic("/etc/elkeid"),
        roman("."),
    ]);
    for [what, place, directory, key] in PLACES {
        let key = if key.starts_with("--") { key.to_owned() } else { format!("key {key}") };
        page.control("TP", []).text([italic(place)]);
        page.text([roman(format!("{}, with --workdir {directory} ({key}).", capital(what)))]);
    }
    page.control("SH", [&*ENVIRONMENT.title.to_uppercase()]);
    for (name, meaning) in ENVIRONMENT.entries {
        page.control("TP", []).text([bold(*name)]).text(quoted(&sentence(meaning)));
    }
    page.control("SH", ["SIGNALS"]);
    for (signal, meaning) in [
        ("SIGHUP", "The agent reads settings and certificates again. A mistake in them changes nothing."),
        ("SIGTERM, SIGINT", "The agent stops its plugins, sends what they have written, and ends."),
    ] {
        page.control("TP", []).text([bold(signal)]).text([roman(meaning)]);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("elklet.toml"), roman("(5)")]);
    page.render()
}

/// The page of the settings' file, in section 5.
pub(crate) fn settings(name: &str, program: &str, sections: &[Section], edition: &Edition) -> String {
    let mut page = begin(name, "5", edition);
    page.control("SH", ["NAME"]).text([roman(format!("{name} - settings of {program}"))]);
    page.control("SH", ["SYNOPSIS"]).text([italic(format!("/etc/elklet/{name}"))]);
    for section in sections {
        let title = if section.name.is_empty() { "DESCRIPTION" } else { &section.name };
        page.control("SH", [title]);
        if !section.about.is_empty() {
            page.text(quoted(&section.about));
        }
        for key in &section.keys {
            page.control("TP", []).text([bold(&*key.name), roman(format!(" = {}", key.default))]);
            page.text(quoted(if key.about.is_empty() { "As above." } else { &key.about }));
        }
    }
    page.control("SH", ["SEE ALSO"]).text([bold(program), roman("(1)")]);
    page.render()
}

/// A page with its head.
pub(crate) fn begin(title: &str, section: &str, Edition { version, date }: &Edition) -> Roff {
    let mut page = Roff::new();
    page.control("TH", [title, section, date, &*format!("elklet {version}"), "Elklet"]);
    // Long words of the command line are not hyphenated, and lines are not stretched.
    page.control("nh", []).control("ad", ["l"]);
    page
}

fn synopsis(page: &mut Roff, program: &str, command: &Command) {
    let mut line = vec![bold(program)];
    line.push(bold(format!(" {}", command.name)));
    if !command.commands.is_empty() {
        line.push(italic(" COMMAND"));
    }
    line.extend(command.operand.map(|operand| italic(format!(" {operand}"))));
    for flag in own_flags(command) {
        line.push(roman(" ["));
        line.extend(option(flag));
        line.push(roman(if flag.is_repeated { "]..." } else { "]" }));
    }
    page.text(line).control("br", []);
}

/// The options that not every command has.
fn own_flags(command: &Command) -> impl Iterator<Item = &'static Flag> {
    command.flags.iter().filter(|flag| !PLACE_FLAGS.iter().any(|other| other.name == flag.name))
}

fn option(flag: &Flag) -> Vec<Inline> {
    let mut option = vec![bold(format!("--{}", flag.name))];
    option.extend(flag.value.map(|value| italic(format!(" {value}"))));
    option
}

fn paragraphs(page: &mut Roff, text: &str) {
    for (number, paragraph) in text.split("\n\n").enumerate() {
        if number > 0 {
            page.control("PP", []);
        }
        page.text(quoted(paragraph));
    }
}

/// Text in which what stands between backquotes is bold.
fn quoted(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

fn sentence(text: &str) -> String {
    let text = capital(text);
    if text.ends_with('.') { text } else { format!("{text}.") }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use elklet_agent::commands::{ELKEIDCTL, ELKLET};

    use super::*;
    use crate::keys::{EXAMPLE, sections};

    /// The page without what only a formatter reads.
    fn plain(page: &str) -> String {
        page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\*(Aq", "'")
    }

    fn edition() -> Edition {
        Edition { version: "1.2.3".into(), date: "2026-11-26".into() }
    }

    #[test]
    fn a_programs_page_has_every_command_option_and_place() {
        for of in [&ELKLET, &ELKEIDCTL] {
            let page = plain(&program(of, &edition()));
            assert!(page.contains("elklet 1.2.3") && page.contains("2026-11-26"), "{page}");
            for (words, command) in all(of.commands) {
                assert!(page.contains(&words.join(" ")), "{words:?}: {page}");
                for flag in command.flags {
                    assert!(page.contains(&flag.usage()), "{flag:?}: {page}");
                }
            }
            assert!(PLACES.iter().all(|[_, place, ..]| page.contains(place)), "{page}");
            assert!(ENVIRONMENT.entries.iter().all(|(name, _)| page.contains(name)), "{page}");
        }
    }

    #[test]
    fn the_page_of_the_settings_has_every_section_and_key() {
        let sections = sections(EXAMPLE);
        let page = plain(&settings("elklet.toml", "elklet", &sections, &edition()));
        for section in &sections {
            assert!(page.contains(&section.name));
            assert!(section.keys.iter().all(|key| page.contains(&format!("{} = {}", key.name, key.default))), "{page}");
        }
    }
}
