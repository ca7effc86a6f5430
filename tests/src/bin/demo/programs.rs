//! Builds the programs that the demo starts, if they are not up to date.

use elklet_tests::binaries::Binaries;
use std::env;
use std::time::{Duration, Instant};

use crate::screen::{Screen, Style};

/// The demo says how long a build took if it took longer than this.
const QUICK: Duration = Duration::from_secs(3);

/// Builds the agent and the plugin in the release profile, unless the environment names others.
pub(crate) fn build(screen: &mut Screen) -> Result<Binaries, String> {
    let given = |variable| env::var_os(variable).is_some();
    if given("ELKLET_BIN") && given("PROCWATCH_BIN") {
        return Binaries::build("release").map_err(|error| error.to_string());
    }
    screen
        .styled(Style::Faint, "building elklet and procwatch (release profile); the first time takes a minute or two");
    screen.flush();
    let start = Instant::now();
    let built = Binaries::build("release").map_err(|error| format!("the programs cannot be built: {error}"))?;
    if start.elapsed() > QUICK {
        screen.styled(Style::Faint, &format!("built in {:.0} s", start.elapsed().as_secs_f64()));
    }
    Ok(built)
}
