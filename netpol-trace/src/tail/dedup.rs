//! Shows each record once: the same id from two logs, and the same packet, connection or policy change recorded by two agents.
//!
//! Agents whose nodes share a kernel (kind), and the old and the new one of a rolling upgrade, all see a packet die; every agent has a
//! record of every policy's change. Such records have the same fingerprint, which the agents make: `pipeline/fingerprints.rs`.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use crate::record::read::RecordView;

/// Blocks of ids that are remembered: 4096 ids each, 512 octets. What is beyond is forgotten, oldest half first.
const BLOCKS: usize = 1 << 16;
const BLOCK: u64 = 4096;
/// Fingerprints that are remembered, twice: a generation before and the one that fills.
const FINGERPRINTS: usize = 1 << 17;
/// Runs that are told apart.
const RUNS: usize = 1 << 12;

/// 4,096 numbers of a run, a bit each.
type SeqBits = Box<[u64; 64]>;

#[derive(Debug, Default)]
pub struct Dedup {
    hasher: RandomState,
    runs: HashMap<String, u32>,
    ids: [HashMap<(u32, u64), SeqBits>; 2],
    /// By a hash of each.
    fingerprints: [HashSet<u64>; 2],
    /// Records that were shown before.
    pub repeated: u64,
    /// Records of what another agent's record has shown.
    pub duplicates: u64,
}

impl Dedup {
    /// Whether this record is to be shown.
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
            // SeqBits would mean two runs: all is forgotten rather than a record kept back that is new.
            (self.runs, self.ids, self.fingerprints) = Default::default();
        }
        let number = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        self.runs.insert(run.to_owned(), number);
        number
    }

    fn is_new_id(&mut self, run: u32, id: &str) -> bool {
        // An id without a number can't be compared: shown.
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
    fn the_same_id_is_shown_once() {
        let lines = [record("a", 1, "p"), record("a", 2, "q"), record("a", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 1], 1, 0));
    }

    #[test]
    fn what_two_agents_saw_is_shown_once() {
        let lines = [record("a", 1, "p"), record("b", 7, "p"), record("b", 8, "q"), record("c", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 2], 0, 2));
    }

    /// Runs had 8 digits once, and their records no fingerprint.
    #[test]
    fn records_without_a_fingerprint_are_known_by_their_id() {
        let line = |run: &str| record(run, 1, "").replace(r#""fingerprint":"","#, "");
        let lines = [line("05db8ac4"), line("05db8ac5"), line("05db8ac4"), record("0127ae83f00dcafe", 1, "p")];
        assert_eq!(shown(&lines), (vec![0, 1, 3], 1, 0));
    }

    #[test]
    fn numbers_of_a_stranger_cost_bounded_memory() {
        let mut dedup = Dedup::default();
        for number in (0..u64::MAX).step_by(usize::MAX / 400_000) {
            let line = record("a", number, &number.to_string());
            dedup.is_new(&read::read(line.as_bytes()).unwrap());
        }
        assert!(dedup.ids.iter().map(HashMap::len).sum::<usize>() <= BLOCKS);
        assert!(dedup.fingerprints.iter().map(HashSet::len).sum::<usize>() <= 2 * FINGERPRINTS);
    }
}
