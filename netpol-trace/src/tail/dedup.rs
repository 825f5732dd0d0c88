//! Shows each record once: drops a record whose id came before, and one of the same packet, connection or policy change by another agent.
//!
//! Agents whose nodes share a kernel (kind), and the old and the new agent of a rolling upgrade, all record the same dropped packet; every
//! agent records every policy change. Such records have the same fingerprint: `pipeline/fingerprints.rs`.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use crate::record::read::RecordView;

/// Blocks of ids that are remembered: 4,096 ids in 512 bytes each. Beyond that the older half is forgotten.
const BLOCKS: usize = 1 << 16;
const BLOCK: u64 = 4096;
/// Fingerprints of one generation. Two generations are remembered: the one that fills, and the one before.
const FINGERPRINTS: usize = 1 << 17;
/// Runs that are kept apart.
const RUNS: usize = 1 << 12;

/// One bit for each of 4,096 numbers of a run.
type SeqBits = Box<[u64; 64]>;

#[derive(Debug, Default)]
pub struct Dedup {
    hasher: RandomState,
    runs: HashMap<String, u32>,
    ids: [HashMap<(u32, u64), SeqBits>; 2],
    /// Hashes of fingerprints.
    fingerprints: [HashSet<u64>; 2],
    /// Records whose id came before.
    pub repeated: u64,
    /// Records whose fingerprint came before, with another id.
    pub duplicates: u64,
}

impl Dedup {
    /// Returns true if the record is to be shown.
    pub fn is_new(&mut self, record: &RecordView<'_>) -> bool {
        let run = self.run(&record.run);
        if !self.is_new_id(run, &record.id) {
            self.repeated += 1;
            return false;
        }
        if !record.fingerprint.is_empty() && !self.is_new_fingerprint(&record.fingerprint) {
            self.duplicates += 1;
            return false;
        }
        true
    }

    fn run(&mut self, run: &str) -> u32 {
        if let Some(number) = self.runs.get(run) {
            return *number;
        }
        if self.runs.len() >= RUNS {
            // A number must not stand for two runs. Forgetting all may show a record twice; it hides none.
            (self.runs, self.ids, self.fingerprints) = Default::default();
        }
        let number = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        self.runs.insert(run.to_owned(), number);
        number
    }

    fn is_new_id(&mut self, run: u32, id: &str) -> bool {
        // An id without a number cannot be compared, so the record is shown.
        let Some(number) = id.rsplit_once('/').and_then(|(_, number)| number.parse::<u64>().ok()) else { return true };
        let (key, bit) = ((run, number / BLOCK), number % BLOCK);
        if !self.ids[0].contains_key(&key) {
            if self.ids[0].len() >= BLOCKS / 2 {
                self.ids.swap(0, 1);
                self.ids[0].clear();
            }
            let block = self.ids[1].remove(&key).unwrap_or_else(|| Box::new([0; 64]));
            self.ids[0].insert(key, block);
        }
        let Some(block) = self.ids[0].get_mut(&key) else { return true };
        let Some(word) = usize::try_from(bit / 64).ok().and_then(|at| block.get_mut(at)) else { return true };
        let mask = 1 << (bit % 64);
        let new = *word & mask == 0;
        *word |= mask;
        new
    }

    fn is_new_fingerprint(&mut self, fingerprint: &str) -> bool {
        let hash = self.hasher.hash_one(fingerprint);
        let [newest, before] = &mut self.fingerprints;
        if newest.len() >= FINGERPRINTS {
            std::mem::swap(newest, before);
            newest.clear();
        }
        let known = before.remove(&hash);
        newest.insert(hash) && !known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::read;

    fn record(run: &str, number: u64, fingerprint: &str) -> String {
        format!(
            r#"{{"schema":"netpol-trace/v1","id":"{run}/{number}","run":"{run}","seq":{number},"fingerprint":"{fingerprint}",
            "time":"2026-11-21T04:30:11.123Z","kind":"drop","count":1}}"#
        )
    }

    fn shown(lines: &[String]) -> (Vec<usize>, u64, u64) {
        let mut dedup = Dedup::default();
        let new = |(at, line): (usize, &String)| dedup.is_new(&read::read(line.as_bytes()).unwrap()).then_some(at);
        let shown = lines.iter().enumerate().filter_map(new).collect();
        (shown, dedup.repeated, dedup.duplicates)
    }

    #[test]
    fn a_repeated_id_is_shown_once() {
        let lines = [record("a", 1, "p"), record("a", 2, "q"), record("a", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 1], 1, 0));
    }

    #[test]
    fn an_event_recorded_by_two_agents_is_shown_once() {
        let lines = [record("a", 1, "p"), record("b", 7, "p"), record("b", 8, "q"), record("c", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 2], 0, 2));
    }

    /// Earlier versions had runs of 8 digits, and records without a fingerprint.
    #[test]
    fn records_without_a_fingerprint_are_known_by_their_id() {
        let line = |run: &str| record(run, 1, "").replace(r#""fingerprint":"","#, "");
        let lines = [line("05db8ac4"), line("05db8ac5"), line("05db8ac4"), record("0127ae83f00dcafe", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 1, 3], 1, 0));
    }

    #[test]
    fn untrusted_numbers_cost_bounded_memory() {
        let mut dedup = Dedup::default();
        for number in (0..u64::MAX).step_by(usize::MAX / 400_000) {
            let line = record("a", number, &number.to_string());
            dedup.is_new(&read::read(line.as_bytes()).unwrap());
        }
        assert!(dedup.ids.iter().map(HashMap::len).sum::<usize>() <= BLOCKS);
        assert!(dedup.fingerprints.iter().map(HashSet::len).sum::<usize>() <= 2 * FINGERPRINTS);
    }
}
