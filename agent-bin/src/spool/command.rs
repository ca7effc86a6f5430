//! `elklet spool ls` and `elklet spool verify`, which show a spool whether or not an agent is running.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use elklet_core::delivery::spool::format::read_manifest;
use elklet_core::record::manifest::{Manifest, Row, Sources};

use super::segment::Segment;
use super::{numbers, path};

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// List what is there, going by the heads alone.
    List,
    /// Check that every byte is what was written.
    Verify,
}

/// Describes the spool in a directory. The second value is true when something is damaged.
///
/// # Errors
/// When the directory or a file cannot be read.
pub(crate) fn look(directory: &Path, what: Look) -> io::Result<(String, bool)> {
    let mut out = String::new();
    let mut total = Contents::default();
    let mut sources = Sources::default();
    for number in numbers(directory)? {
        let contents = match File::open(path(directory, number)).and_then(Segment::new) {
            Ok(Some(segment)) => Contents::read(&segment, what, &mut sources)?,
            Ok(None) => Contents { damage: vec!["no segment of a spool".to_owned()], ..Contents::default() },
            // The agent has deleted it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let _ = writeln!(out, "{number:016x}  {contents}");
        for damage in &contents.damage {
            let _ = writeln!(out, "                  DAMAGED: {damage}");
        }
        total.merge(contents);
    }
    if what == Look::List {
        for row in total.manifest.rows() {
            let _ = writeln!(out, "{:>16}  data type {}: {}", sources.name(row.source), row.data_type, span(row));
        }
    }
    let _ = writeln!(out, "{:>16}  {total}", "all");
    Ok((out, !total.damage.is_empty()))
}

#[derive(Debug, Default)]
struct Contents {
    batches: u64,
    bytes: u64,
    /// Counts records that are not confirmed.
    manifest: Manifest,
    confirmed: u64,
    damage: Vec<String>,
}

impl Contents {
    fn read(segment: &Segment, what: Look, sources: &mut Sources) -> io::Result<Self> {
        let mut contents = Self { bytes: segment.bytes(), ..Self::default() };
        if !segment.is_headed {
            contents.damage.push("its head is not that of a segment".to_owned());
        }
        let mut at = elklet_core::delivery::spool::format::SEGMENT_HEAD_BYTES as u64;
        while let Some(batch) = segment.batch_from(at)? {
            if batch.skipped > 0 {
                contents.damage.push(format!("{} bytes at {at} are no batch", batch.skipped));
            }
            contents.batches += 1;
            if batch.begin < segment.mark {
                contents.confirmed += u64::from(batch.head.records);
            } else {
                read_manifest(&batch.manifest, sources).iter().for_each(|row| contents.manifest.add(*row));
            }
            if what == Look::Verify && segment.payload(&batch)?.is_none() {
                contents.damage.push(format!("the batch of {} records at {}", batch.head.records, batch.begin));
            }
            at = batch.end;
        }
        if at < segment.bytes() {
            contents.damage.push(format!("{} bytes at its end are no whole batch", segment.bytes() - at));
        }
        Ok(contents)
    }

    fn merge(&mut self, other: Self) {
        self.batches += other.batches;
        self.bytes += other.bytes;
        self.confirmed += other.confirmed;
        other.manifest.rows().iter().for_each(|row| self.manifest.add(*row));
        self.damage.extend(other.damage);
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batches, bytes, confirmed, .. } = self;
        write!(f, "{bytes} bytes, {batches} batches; ")?;
        let all = self.manifest.rows().iter().copied().reduce(|mut all, row| {
            all.merge(&row);
            all
        });
        match all {
            Some(row) => write!(f, "to be sent: {}", span(&row))?,
            None => f.write_str("nothing is to be sent")?,
        }
        if *confirmed > 0 {
            write!(f, " ({confirmed} records more are confirmed)")?;
        }
        Ok(())
    }
}

fn span(row: &Row) -> String {
    format!("{} records from {} to {}", row.records, moment(row.first), moment(row.last))
}

/// Formats a plugin's timestamp, which may be any number.
fn moment(seconds: i64) -> String {
    /// The last second of the year 9999.
    const LATEST: u64 = 253_402_300_799;
    match u64::try_from(seconds) {
        Ok(seconds @ 0..=LATEST) => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        _ => seconds.to_string(),
    }
}
