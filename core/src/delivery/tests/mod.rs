//! The outbox against examples, and in a world of its own under random schedules of faults.

use alloc::vec;
use alloc::vec::Vec;

use super::world::rows;
use super::{Batch, Kind};

mod disk;
mod faults;
mod feed;
mod refusals;
mod room;

/// A batch of one record.
pub(super) fn batch(kind: Kind, message: u32, bytes: usize) -> Batch<u32> {
    Batch::new(kind, message, bytes, 0, rows(1))
}

/// A batch of records with these sizes.
pub(super) fn sized(records: &[usize]) -> Batch<Vec<usize>> {
    let bytes = records.iter().sum();
    let content = u32::try_from(bytes).expect("small");
    let fingerprint = u32::try_from(records[0]).expect("small");
    Batch::new(Kind::Bulk, records.to_vec(), bytes, content, rows(records.len() as u64)).with_fingerprint(fingerprint)
}

/// Cuts as the shell does: as many records as fit, at least one.
pub(super) fn cut(records: &[usize], limit: usize) -> Vec<Batch<Vec<usize>>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &record in records {
        match parts.last_mut() {
            Some(part) if part.iter().sum::<usize>() + record <= limit => part.push(record),
            _ => parts.push(vec![record]),
        }
    }
    parts.iter().map(|part| sized(part)).collect()
}

/// A batch of so many records that takes 400 bytes.
fn of_records(records: u64) -> Batch<u32> {
    Batch::new(Kind::Bulk, 0, 400, 0, rows(records))
}
