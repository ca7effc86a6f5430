//! Which runs to merge: pure decisions, without a file.
//!
//! A transaction stores what had gathered in some ten milliseconds, which may be one record. Merging makes runs of tens of
//! thousands of records of them, in which a host's records lie together. It costs little, because a record is rewritten a few
//! times at most: once into a final run, and before that only into runs that are four times as large as the one it was in.

/// What one transaction stored, or what merging made of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First and last sequence number.
    pub(super) seq: (u64, u64),
    pub(super) rows: usize,
    /// Bytes before compression.
    pub(super) bytes: usize,
}

/// A run of so many records or bytes stays as it is. Merging holds as many bytes in memory, twice.
const FINAL_ROWS: usize = 65_536;
const FINAL_BYTES: usize = 32 << 20;
/// So many small runs are merged before they make a final one, so that a quiet site has few runs as well.
const FANOUT: usize = 32;
/// A run that is not final yet grows at least so much by being merged.
const GROWTH: usize = 4;

impl Run {
    /// True if the run is never merged again.
    pub(super) fn is_final(&self) -> bool {
        self.rows >= FINAL_ROWS || self.bytes >= FINAL_BYTES
    }

    /// 0 for a run of fewer than 32 records, 1 for fewer than 1024, and so on.
    fn tier(&self) -> u32 {
        self.rows.max(1).ilog(FANOUT)
    }
}

/// Chooses runs to merge into one, of all runs since the last final one, oldest first.
pub(super) fn choose(runs: &[Run]) -> Option<&[Run]> {
    let stretches = || runs.chunk_by(|a, b| a.seq.1.checked_add(1) == Some(b.seq.0) && !a.is_final() && !b.is_final());
    for stretch in stretches() {
        let mut sum = Run { seq: (0, 0), rows: 0, bytes: 0 };
        for (at, run) in stretch.iter().enumerate() {
            sum.rows += run.rows;
            sum.bytes += run.bytes;
            if sum.is_final() && at > 0 {
                return stretch.get(..=at);
            }
        }
    }
    let highest = runs.iter().map(Run::tier).max()?;
    for tier in 0..=highest {
        for stretch in stretches() {
            for small in stretch.split(|run| run.tier() > tier) {
                let rows = small.iter().map(|run| run.rows);
                let largest = rows.clone().max().unwrap_or(0);
                if small.len() >= FANOUT && rows.sum::<usize>() >= GROWTH * largest {
                    return Some(small);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Stores runs of these sizes and merges as long as there is something to; returns what is left and how many records were
    /// written altogether.
    fn store(sizes: impl IntoIterator<Item = usize>) -> (Vec<Run>, usize) {
        let (mut runs, mut next, mut written) = (Vec::<Run>::new(), 0u64, 0);
        for rows in sizes {
            runs.push(Run { seq: (next, next + rows as u64 - 1), rows, bytes: rows * 500 });
            next += rows as u64;
            written += rows;
            // The merger does not look behind the last final run either.
            let newest = |runs: &[Run]| runs.iter().rposition(Run::is_final).map_or(0, |last| last + 1);
            while let Some(chosen) = choose(&runs[newest(&runs)..]).map(<[Run]>::to_vec) {
                assert!(chosen.len() > 1 && chosen.iter().all(|run| !run.is_final()));
                let at = runs.iter().position(|run| run == &chosen[0]).unwrap();
                let rows = chosen.iter().map(|run| run.rows).sum();
                let seq = (chosen[0].seq.0, chosen.last().unwrap().seq.1);
                assert_eq!(seq.1 - seq.0 + 1, rows as u64, "nothing lies between");
                runs.splice(at..at + chosen.len(), [Run { seq, rows, bytes: rows * 500 }]);
                written += rows;
            }
        }
        (runs, written)
    }

    #[test]
    fn a_busy_site_writes_every_record_three_times_at_most_and_has_few_runs() {
        let total = 4_000_000;
        let (runs, written) = store(std::iter::repeat_n(2000, total / 2000));
        assert!(written <= 3 * total, "{written}");
        assert!(runs.len() < total / 32_768 + 64, "{}", runs.len());
    }

    #[test]
    fn a_quiet_site_has_few_runs_as_well() {
        let total = 200_000;
        let (runs, written) = store(std::iter::repeat_n(1, total));
        assert!(written <= 6 * total, "{written}");
        assert!(runs.len() < 128, "{}", runs.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_comes_is_written_a_few_times_and_leaves_few_runs(
            sizes in prop::collection::vec(prop_oneof![1..5usize, 1..5000usize, 20_000..90_000usize], 1..3000)
        ) {
            let total: usize = sizes.iter().sum();
            let alone = sizes.iter().filter(|&&rows| rows >= 60_000).count();
            let (runs, written) = store(sizes);
            prop_assert!(written <= 10 * total, "{} of {}", written, total);
            prop_assert!(runs.len() <= total / 60_000 + 128 * (alone + 1), "{} runs", runs.len());
        }
    }
}
