//! The table's main column as a picture: seconds of CPU per million records, a bar for each row that has them.

use std::fmt::Write as _;

use crate::table::Row;

const WIDTH: f64 = 760.0;
const NAMES: f64 = 240.0;
const VALUES: f64 = 110.0;
const BAR: f64 = 16.0;
const STEP: f64 = 20.0;
const GAP: f64 = 10.0;

pub(crate) fn svg(rows: &[Row]) -> String {
    let bulk = rows.iter().filter(|row| !row.urgent);
    let bars: Vec<(&Row, f64)> = bulk.filter_map(|row| Some((row, row.cpu_per_million()?))).collect();
    let most = bars.iter().map(|(_, seconds)| *seconds).fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    let (mut y, mut before) = (40.0, "");
    for (row, seconds) in bars {
        if row.load != before {
            y += GAP;
            text(NAMES - 8.0, y + BAR - 4.0, "end", row.load, &mut body);
            before = row.load;
        }
        let colour = match row.program {
            "Elklet" => "#2a78b8",
            "limit" => "#9a9a9a",
            _ => "#d98b2b",
        };
        let width = ((WIDTH - NAMES - VALUES) * seconds / most).max(1.0);
        write!(body, r#"<rect x="{NAMES}" y="{y}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"#)
            .expect("strings grow");
        text(NAMES + width + 6.0, y + BAR - 4.0, "start", &format!("{seconds:.2} s, {}", row.program), &mut body);
        y += STEP;
    }
    let height = y + GAP;
    let mut head = String::new();
    text(NAMES, 26.0, "start", "CPU seconds per million records delivered (less is better)", &mut head);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>{head}{body}</svg>\n"
    )
}

fn text(x: f64, y: f64, anchor: &str, words: &str, out: &mut String) {
    writeln!(out, r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="#222222">{words}</text>"##)
        .expect("strings grow");
}
