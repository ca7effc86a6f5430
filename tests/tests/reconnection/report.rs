//! The tables and the plot of `docs/reconnection.md`.

use std::fmt::Write;

use super::MOST;
use super::fleet::{Course, LARGE};

/// One outage and what came of it.
#[derive(Debug)]
pub(crate) struct Case {
    /// How long the servers were away, and how.
    pub(crate) name: &'static str,
    /// Elkeid's own agent.
    pub(crate) reference: Course,
    /// Decorrelated jitter alone.
    pub(crate) jitter: Course,
    /// Elklet as it ships.
    pub(crate) elklet: Course,
}

/// Returns the page with another table between its marks.
pub(crate) fn with_table(page: &str, mark: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let (head, rest) = page.split_once(&begin).expect("the page has the mark");
    let (_, tail) = rest.split_once(&end).expect("the mark has an end");
    format!("{head}{begin}{table}{end}{tail}")
}

/// Writes a row for each outage and kind of agent.
pub(crate) fn summary(cases: &[Case]) -> String {
    let mut table = "| servers away | agents | most attempts within a second at one node | attempts of an agent | half are back after | 99 % | all |\n\
         |---|---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for Case { name, reference, jitter, elklet } in cases {
        for (agents, course) in [("reference, 5 s", reference), ("jitter, 1 to 60 s", jitter), ("Elklet", elklet)] {
            let back = |share| course.back_after(share).map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
            writeln!(
                table,
                "| {name} | {agents} | {} | {:.1} | {} | {} | {} |",
                course.peak,
                course.attempts_of_an_agent(),
                back(0.5),
                back(0.99),
                back(1.0),
            )
            .expect("a string takes everything");
        }
    }
    table
}

/// Writes what the fleet does in the seconds after it has lost its servers.
pub(crate) fn second_by_second(case: &Case) -> String {
    let mut table = "| second | reference | jitter | Elklet |\n|---:|---:|---:|---:|\n".to_owned();
    for second in (0..20).chain((20..80).step_by(5)) {
        let at = |course: &Course| course.attempts[second];
        let (reference, jitter, elklet) = (at(&case.reference), at(&case.jitter), at(&case.elklet));
        writeln!(table, "| {second} | {reference} | {jitter} | {elklet} |").expect("a string takes everything");
    }
    table
}

/// Seconds that the plot shows.
const SHOWN: usize = 130;
const PANEL_WIDTH: f64 = 330.0;
const PANEL_HEIGHT: f64 = 190.0;
/// The plot's logarithmic axis goes from this share of the fleet to all of it.
const LEAST: f64 = 0.001;

/// Plots attempts a second over time, a panel for each case, with the share of the fleet on a logarithmic axis.
pub(crate) fn plot(cases: &[Case]) -> String {
    let width = 60.0 + cases.len() as f64 * (PANEL_WIDTH + 30.0);
    let height = PANEL_HEIGHT + 90.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>Attempts to reconnect in each second, as a share of {} agents</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        LARGE.agents
    );
    for (number, case) in cases.iter().enumerate() {
        let left = 55.0 + number as f64 * (PANEL_WIDTH + 30.0);
        writeln!(svg, "<g transform=\"translate({left} 40)\">").expect("a string takes everything");
        panel(case, &mut svg).expect("a string takes everything");
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn x(second: usize) -> f64 {
    PANEL_WIDTH * second as f64 / SHOWN as f64
}

fn y(share: f64) -> f64 {
    PANEL_HEIGHT * (share.max(LEAST).log10() / LEAST.log10())
}

fn panel(case: &Case, svg: &mut String) -> std::fmt::Result {
    writeln!(svg, "<text x=\"0\" y=\"-14\" font-weight=\"bold\">servers away for {}</text>", case.name)?;
    for share in [1.0, 0.1, 0.01, LEAST] {
        let at = y(share);
        writeln!(svg, "<path d=\"M0 {at:.1}H{PANEL_WIDTH}\" stroke=\"#ddd\"/>")?;
        writeln!(svg, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{} %</text>", at + 4.0, 100.0 * share)?;
    }
    for second in (0..=SHOWN).step_by(20) {
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            x(second),
            PANEL_HEIGHT + 16.0
        )?;
    }
    let limit = y(f64::from(MOST) * LARGE.nodes as f64 / LARGE.agents as f64);
    writeln!(svg, "<path d=\"M0 {limit:.1}H{PANEL_WIDTH}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>")?;
    writeln!(
        svg,
        "<text x=\"{PANEL_WIDTH}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{MOST} at each node</text>",
        limit - 4.0
    )?;
    for (name, course, colour, width, label_at) in [
        ("reference", &case.reference, "#c0392b", 1.0, 0.0),
        ("jitter", &case.jitter, "#d9a441", 1.0, 70.0),
        ("Elklet", &case.elklet, "#1f6fb2", 1.8, 115.0),
    ] {
        let mut path = String::new();
        let mut is_down = false;
        for second in 0..SHOWN {
            let share = course.share(second);
            // The plot leaves out what is below the axis.
            if share >= LEAST {
                let command = if is_down { 'L' } else { 'M' };
                write!(path, "{command}{:.1} {:.1}h{:.1}", x(second), y(share), x(1))?;
            }
            is_down = share >= LEAST;
        }
        writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>")?;
        writeln!(svg, "<text x=\"{label_at}\" y=\"{}\" fill=\"{colour}\">{name}</text>", PANEL_HEIGHT + 38.0)?;
    }
    Ok(())
}
