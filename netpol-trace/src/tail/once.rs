//! Shows each record once: the same id from two logs, and the same packet recorded by two agents.
//!
//! Agents whose nodes share a kernel (kind), and the old and the new one of a rolling upgrade, all see a packet die. Theirs
//! are records of different runs about the same headers at the same moment. And every agent tells of every policy's change.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::view::Seen;

/// Blocks of ids that are remembered: 4096 ids each, 512 octets. What is beyond is forgotten, oldest half first.
const BLOCKS: usize = 1 << 16;
const BLOCK: u64 = 4096;
/// Packets that are remembered, twice: a generation before and the one that fills.
const PACKETS: usize = 1 << 17;
/// Two agents' clocks for one packet differ by less.
const SAME_MOMENT_MS: i64 = 10;
/// Connections without an answer are told by their first packet, on the clocks of two nodes.
const SAME_CONNECTION_MS: i64 = 2_000;
/// Every agent learns of a policy's change, each when its watch tells it.
const SAME_CHANGE_MS: i64 = 60_000;
/// Runs that are told apart.
const RUNS: usize = 1 << 12;

/// 4,096 numbers of a run, a bit each.
type Numbers = Box<[u64; 64]>;

#[derive(Debug, Default)]
pub struct Once {
    hasher: RandomState,
    runs: HashMap<String, u32>,
    ids: [HashMap<(u32, u64), Numbers>; 2],
    packets: [HashMap<(u64, i64), Packet>; 2],
    /// Records that were shown before.
    pub repeated: u64,
    /// Records of packets that another agent's record has shown.
    pub twins: u64,
}

/// How many records of one packet's key each run has: the highest is the number of packets.
#[derive(Debug, Default)]
struct Packet {
    shown: u32,
    by_run: Vec<(u32, u32)>,
}

impl Once {
    /// Whether this record is to be shown.
    pub fn is_new(&mut self, seen: &Seen<'_>) -> bool {
        let run = self.run(&seen.run);
        if !self.is_new_id(run, &seen.id) {
            self.repeated += 1;
            return false;
        }
        if (seen.is_flow() || &*seen.kind == "policy_change") && !self.is_new_packet(run, seen) {
            self.twins += 1;
            return false;
        }
        true
    }

    fn run(&mut self, run: &str) -> u32 {
        if let Some(number) = self.runs.get(run) {
            return *number;
        }
        if self.runs.len() >= RUNS {
            // Numbers would mean two runs: all is forgotten rather than a record kept back that is new.
            (self.runs, self.ids, self.packets) = Default::default();
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

    fn is_new_packet(&mut self, run: u32, seen: &Seen<'_>) -> bool {
        let mut hasher = self.hasher.build_hasher();
        (&*seen.kind, &*seen.change, &*seen.namespace, &*seen.policy, seen.generation).hash(&mut hasher);
        for end in seen.ends() {
            (&*end.ip, end.port).hash(&mut hasher);
        }
        (&*seen.network.transport, seen.network.length, seen.reply, seen.packets()).hash(&mut hasher);
        seen.network.tcp_flags.iter().for_each(|flag| hasher.write(flag.as_bytes()));
        let key = hasher.finish();
        let same = match &*seen.kind {
            "drop" => SAME_MOMENT_MS,
            "unanswered" => SAME_CONNECTION_MS,
            _ => SAME_CHANGE_MS,
        };
        let moment = seen.time.as_millisecond().div_euclid(same);

        let near = [moment, moment - 1, moment + 1];
        let known = near.into_iter().find_map(|moment| {
            let key = (key, moment);
            if self.packets[0].contains_key(&key) {
                return Some(key);
            }
            let packet = self.packets[1].remove(&key)?;
            self.packets[0].insert(key, packet);
            Some(key)
        });
        if self.packets[0].len() >= PACKETS {
            self.packets.swap(0, 1);
            self.packets[0].clear();
        }
        let key = known.unwrap_or((key, moment));
        let [newest, before] = &mut self.packets;
        let packet = match before.get_mut(&key) {
            Some(packet) => packet,
            None => newest.entry(key).or_default(),
        };
        let count = match packet.by_run.iter_mut().find(|(of, _)| *of == run) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                packet.by_run.push((run, 1));
                1
            }
        };
        let new = count > packet.shown;
        packet.shown = packet.shown.max(count);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::view;

    fn drop(run: &str, number: u64, time: &str, port: u16) -> String {
        format!(
            r#"{{"schema":"netpol-trace/v1","id":"{run}/{number}","run":"{run}","seq":{number},"time":"{time}","kind":"drop","count":1,
            "source":{{"kind":"pod","ip":"10.0.0.1","port":{port}}},"destination":{{"kind":"pod","ip":"10.0.0.2","port":80}},
            "network":{{"transport":"tcp","family":"ipv4","tcp_flags":["syn"],"length":60}}}}"#
        )
    }

    fn shown(lines: &[String]) -> (Vec<usize>, u64, u64) {
        let mut once = Once::default();
        let new = |(at, line): (usize, &String)| once.is_new(&view::read(line.as_bytes()).unwrap()).then_some(at);
        let shown = lines.iter().enumerate().filter_map(new).collect();
        (shown, once.repeated, once.twins)
    }

    const T0: &str = "2026-11-21T04:30:11.123000000Z";
    const T0_LATER: &str = "2026-11-21T04:30:11.130500000Z";
    const T1: &str = "2026-11-21T04:30:12.123000000Z";

    #[test]
    fn the_same_id_is_shown_once() {
        let lines = [drop("a", 1, T0, 1000), drop("a", 2, T1, 1000), drop("a", 1, T0, 1000)];
        assert_eq!(shown(&lines), (vec![0, 1], 1, 0));
    }

    #[test]
    fn a_packet_that_two_agents_saw_is_shown_once() {
        let lines = [drop("a", 1, T0, 1000), drop("b", 7, T0_LATER, 1000), drop("b", 8, T0_LATER, 1001)];
        assert_eq!(shown(&lines), (vec![0, 2], 0, 1));
    }

    #[test]
    fn equal_packets_of_one_agent_are_all_shown() {
        let lines = [drop("a", 1, T0, 1), drop("a", 2, T0_LATER, 1), drop("b", 1, T0, 1), drop("b", 2, T0_LATER, 1)];
        assert_eq!(shown(&lines), (vec![0, 1], 0, 2));
    }

    #[test]
    fn a_retransmission_is_another_packet() {
        assert_eq!(shown(&[drop("a", 1, T0, 1), drop("b", 1, T1, 1)]), (vec![0, 1], 0, 0));
    }

    #[test]
    fn numbers_of_a_stranger_cost_bounded_memory() {
        let mut once = Once::default();
        for number in (0..u64::MAX).step_by(usize::MAX / 200_000) {
            let line = drop("a", number, T0, 1);
            once.is_new(&view::read(line.as_bytes()).unwrap());
        }
        assert!(once.ids.iter().map(HashMap::len).sum::<usize>() <= BLOCKS);
    }
}
