//! Makes Elklet's man pages and completions. Both come from what the agent itself goes by: the tables of its command line, and the
//! example of its settings' file, which has every key.
//!
//!     elklet-manual OUT
//!
//! writes `OUT/man/man1/*.1`, `OUT/man/man5/*.5` and `OUT/completions/{bash,zsh,fish}/*`. `ELKLET_VERSION` and
//! `SOURCE_DATE_EPOCH` say what the pages name, as in the other steps of a build.

mod center;
mod completions;
mod keys;
mod pages;

use std::error::Error;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use std::{env, fs};

use elklet_agent::commands::{ELKEIDCTL, ELKLET};

fn main() -> Result<(), Box<dyn Error>> {
    let out = env::args_os().nth(1).ok_or("usage: elklet-manual OUT")?;
    let out = Path::new(&out);
    let version = env::var("ELKLET_VERSION").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned());
    let edition = pages::Edition { version, date: date()? };
    let write = |name: String, content: &str| {
        let path = out.join(name);
        fs::create_dir_all(path.parent().unwrap_or(out))?;
        fs::write(path, content)
    };
    for program in [&ELKLET, &ELKEIDCTL] {
        write(format!("man/man1/{}.1", program.name), &pages::program(program, &edition))?;
        for (shell, file, content) in completions::of(program) {
            write(format!("completions/{shell}/{file}"), &content)?;
        }
    }
    write("man/man1/elklet-center.1".to_owned(), &center::page(&edition))?;
    for (shell, file, content) in completions::generated(center::PROGRAM, &mut center::described()) {
        write(format!("completions/{shell}/{file}"), &content)?;
    }
    for (name, program, example) in
        [("elklet.toml", "elklet", keys::EXAMPLE), ("center.toml", center::PROGRAM, center::EXAMPLE)]
    {
        write(format!("man/man5/{name}.5"), &pages::settings(name, program, &keys::sections(example), &edition))?;
    }
    Ok(())
}

/// The day of the build, which a build that is to be repeated says itself. Without it there is none.
fn date() -> Result<String, Box<dyn Error>> {
    let Ok(seconds) = env::var("SOURCE_DATE_EPOCH") else { return Ok(String::new()) };
    let time = UNIX_EPOCH + Duration::from_secs(seconds.parse()?);
    Ok(humantime::format_rfc3339_seconds(time).to_string().split('T').next().unwrap_or_default().to_owned())
}
