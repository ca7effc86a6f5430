//! Completions for the shells.

use clap::{Arg, ArgAction, Command, ValueHint};
use clap_complete::Shell;
use elklet_agent::commands::{self, Flag, Program};

/// The shell, the name under which it looks for the file, and the file.
pub(crate) fn of(program: &Program) -> Vec<(&'static str, String, String)> {
    generated(program.name, &mut described(program))
}

/// The same for a program as clap describes it.
pub(crate) fn generated(name: &str, described: &mut Command) -> Vec<(&'static str, String, String)> {
    let files = [
        ("bash", Shell::Bash, name.to_owned()),
        ("zsh", Shell::Zsh, format!("_{name}")),
        ("fish", Shell::Fish, format!("{name}.fish")),
    ];
    files
        .map(|(directory, shell, file)| {
            let mut content = Vec::new();
            clap_complete::generate(shell, &mut *described, name, &mut content);
            (directory, file, String::from_utf8(content).expect("what was given is UTF-8"))
        })
        .into()
}

/// The program as clap describes one.
fn described(program: &Program) -> Command {
    let described = Command::new(program.name).about(program.summary).version("").disable_help_subcommand(true);
    described.args(program.flags.iter().map(argument)).subcommands(program.commands.iter().map(command))
}

fn command(command: &commands::Command) -> Command {
    let described = Command::new(command.name).about(command.summary).disable_help_subcommand(true);
    let operand = command.operand.map(|operand| Arg::new("operand").value_name(operand).value_hint(hint(operand)));
    described
        .args(operand)
        .args(command.flags.iter().map(argument))
        .subcommands(command.commands.iter().map(self::command))
}

fn argument(flag: &Flag) -> Arg {
    let argument = Arg::new(flag.name).long(flag.name).help(flag.help);
    match flag.value {
        None => argument.action(ArgAction::SetTrue),
        Some(value) => {
            let action = if flag.is_repeated { ArgAction::Append } else { ArgAction::Set };
            argument.value_name(value).value_hint(hint(value)).action(action)
        }
    }
}

/// What a shell offers in the place of a value, which help texts name by these words.
pub(crate) fn hint(value: &str) -> ValueHint {
    match value {
        "FILE" | "ENTRY" => ValueHint::FilePath,
        "DIR" => ValueHint::DirPath,
        "HOST:PORT" => ValueHint::Hostname,
        _ => ValueHint::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use elklet_agent::commands::{ELKEIDCTL, ELKLET};

    use super::*;

    /// What bash offers for the last word of a line.
    fn offered(program: &Program, line: &str) -> Option<Vec<String>> {
        let words: Vec<_> = line.split(' ').collect();
        let (_, _, script) = of(program).into_iter().find(|(shell, ..)| *shell == "bash").expect("it is made");
        let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let script = format!(
            "{script}\nCOMP_WORDS=({}) COMP_CWORD={last}\n_{} {} '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            program.name,
            program.name,
            words[last],
            words[last - 1],
        );
        let output = match Command::new("bash").args(["-c", &script]).output() {
            Ok(output) => output,
            Err(error) => {
                // What a test prints by other means is seen only if it fails.
                let said = format!("SKIPPED bash_completes_commands_and_options: there is no bash: {error}\n");
                std::io::stderr().write_all(said.as_bytes()).expect("it is open");
                return None;
            }
        };
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect())
    }

    #[test]
    fn bash_completes_commands_and_options() {
        for (program, line, expected) in [
            (&ELKLET, "elklet st", &["status"][..]),
            (&ELKLET, "elklet spool ", &["ls", "verify"]),
            (&ELKLET, "elklet adopt --u", &["--undo"]),
            (&ELKLET, "elklet sign --v", &["--version"]),
            (&ELKLET, "elklet ctl un", &["unset"]),
            (&ELKEIDCTL, "elkeidctl set --re", &["--region"]),
        ] {
            let Some(offered) = offered(program, line) else { return };
            assert!(expected.iter().all(|word| offered.iter().any(|offered| offered == word)), "{line}: {offered:?}");
        }
        let Some(offered) = offered(&ELKLET, "elklet st") else { return };
        assert_eq!(offered, ["status"], "and nothing that does not begin so");
    }
}
