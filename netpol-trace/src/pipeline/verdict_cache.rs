//! What was said of denied connections, for the next packets of their like: to put a verdict into words takes longer than all else
//! that is done for a record. A client tries again from other ports, and a flow that goes on has a record a window.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use jiff::Timestamp;

use crate::cluster::Index;
use crate::model::{Address, Hint, Part, Verdict};
use crate::pipeline::enrich::{Flow, OwnedBy};
use crate::policy::FTP_DATA;

/// Connections that are remembered: some 3 kB each, with their JSON. When there are more, all are forgotten.
const MAX: usize = 2048;
/// Connections that came once are known by their hash. What comes once only, as in a scan, takes no other's place.
const ONCE: usize = 2048;
/// So many of each value of the lowest bits.
const ALIKE: usize = 4;

/// Of one state of the index: what changes there may change any verdict.
#[derive(Debug)]
pub(super) struct Memo {
    version: u64,
    said: HashMap<Subject, Remembered, RandomState>,
    /// By the lowest bits of the hash: the highest, the latest first.
    once: Box<[[u32; ALIKE]]>,
}

/// All of a connection that its verdict and hint depend on, in one state of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    source: IpAddr,
    destination: IpAddr,
    original: Option<Address>,
    protocol: u8,
    port: Option<u16>,
    ftp_data: bool,
}

#[derive(Debug)]
struct Remembered {
    /// When it holds, and from when it does not: a record says how long ago policies changed.
    from: Timestamp,
    until: Timestamp,
    said: Said,
}

/// What records say of a connection.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub verdict: Part<Verdict>,
    /// Of a drop by policy.
    pub hint: Option<Part<Hint>>,
}

impl Subject {
    /// `None` where the index alone does not say who the ends are.
    pub fn of(flow: &Flow<'_>) -> Option<Subject> {
        let known = |owner: &OwnedBy<'_>| {
            matches!(owner, OwnedBy::Pod(_) | OwnedBy::Node(_) | OwnedBy::Service | OwnedBy::External)
        };
        (known(&flow.source.owner) && known(&flow.destination.owner)).then(|| Subject {
            source: flow.source.ip,
            destination: flow.destination.ip,
            original: flow.destination.original,
            protocol: flow.protocol,
            port: flow.destination.port,
            ftp_data: flow.source.port == Some(FTP_DATA),
        })
    }
}

impl Default for Memo {
    fn default() -> Memo {
        Memo { version: 0, said: HashMap::default(), once: vec![[0; ALIKE]; ONCE].into() }
    }
}

impl Memo {
    /// What was said of such a connection, if that is what would be said of it now.
    pub fn get(&self, subject: &Subject, index: &Index, time: Timestamp) -> Option<Said> {
        if self.version != index.version() {
            return None;
        }
        let known = self.said.get(subject)?;
        (known.from <= time && time < known.until).then(|| known.said.clone())
    }

    /// Remembers it, from the second time on. It holds between the two times.
    pub fn put(&mut self, subject: Subject, index: &Index, (from, until): (Timestamp, Timestamp), said: &Said) {
        let hash = self.said.hasher().hash_one(subject);
        let (once, mark) = (&mut self.once[hash as usize % ONCE], (hash >> 32) as u32);
        if !once.contains(&mark) {
            once.rotate_right(1);
            once[0] = mark;
            return;
        }
        if self.version != index.version() || self.said.len() >= MAX {
            self.version = index.version();
            self.said.clear();
        }
        self.said.insert(subject, Remembered { from, until, said: said.clone() });
    }
}
