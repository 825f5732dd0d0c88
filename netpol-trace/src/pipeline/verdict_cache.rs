//! Caches rendered verdicts of denied connections, valid for one index version.
//!
//! Rendering a verdict costs more than all other work on a record. A client that retries from other ports asks for the same verdict
//! again, and a flow that goes on has one record per window.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use jiff::Timestamp;

use crate::cluster::Index;
use crate::model::{Address, Hint, Part, Verdict};
use crate::pipeline::enrich::{Flow, Identity};
use crate::policy::FTP_DATA;

/// Connections in the cache, about 3 kB each with their JSON. The cache is cleared when it is full.
const MAX: usize = 2048;
/// Sets of the seen-once filter. A connection enters the cache when its hash is seen the second time, so a scan evicts nothing.
const SEEN_ONCE_SETS: usize = 2048;
/// Associativity of the seen-once filter.
const SEEN_ONCE_WAYS: usize = 4;

/// The cache. Any change of the index may change any verdict, so it holds for one version only.
#[derive(Debug)]
pub(super) struct VerdictCache {
    version: u64,
    entries: HashMap<CacheKey, CachedVerdict, RandomState>,
    /// Sets by the low bits of the hash; each holds high bits, newest first.
    once: Box<[[u32; SEEN_ONCE_WAYS]]>,
}

/// Everything that a verdict and its hint depend on within one version of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    source: IpAddr,
    destination: IpAddr,
    original: Option<Address>,
    protocol: u8,
    port: Option<u16>,
    ftp_data: bool,
}

#[derive(Debug)]
struct CachedVerdict {
    /// The verdict holds from `from` until before `until`: it states how long ago policies changed.
    from: Timestamp,
    until: Timestamp,
    verdict: RenderedVerdict,
}

/// A verdict and its hint in the words of the record.
#[derive(Debug, Clone)]
pub(super) struct RenderedVerdict {
    pub verdict: Part<Verdict>,
    /// Present where a policy made the drop.
    pub hint: Option<Part<Hint>>,
}

impl CacheKey {
    /// Returns `None` where the index alone does not decide who the endpoints are, or nothing shows who opened the connection.
    pub fn of(flow: &Flow<'_>) -> Option<CacheKey> {
        let known = |owner: &Identity<'_>| {
            matches!(owner, Identity::Pod(_) | Identity::Node(_) | Identity::Service | Identity::External)
        };
        (flow.opener_known && known(&flow.source.identity) && known(&flow.destination.identity)).then(|| CacheKey {
            source: flow.source.ip,
            destination: flow.destination.ip,
            original: flow.destination.original,
            protocol: flow.protocol,
            port: flow.destination.port,
            ftp_data: flow.source.port == Some(FTP_DATA),
        })
    }
}

impl Default for VerdictCache {
    fn default() -> VerdictCache {
        VerdictCache { version: 0, entries: HashMap::default(), once: vec![[0; SEEN_ONCE_WAYS]; SEEN_ONCE_SETS].into() }
    }
}

impl VerdictCache {
    /// Returns the cached verdict if it still holds for `index` at `time`.
    pub fn get(&self, subject: &CacheKey, index: &Index, time: Timestamp) -> Option<RenderedVerdict> {
        if self.version != index.version() {
            return None;
        }
        let known = self.entries.get(subject)?;
        (known.from <= time && time < known.until).then(|| known.verdict.clone())
    }

    /// Caches a verdict that holds between the two times, once the key was seen before.
    pub fn put(
        &mut self,
        subject: CacheKey,
        index: &Index,
        (from, until): (Timestamp, Timestamp),
        verdict: &RenderedVerdict,
    ) {
        let hash = self.entries.hasher().hash_one(subject);
        let (once, mark) = (&mut self.once[hash as usize % SEEN_ONCE_SETS], (hash >> 32) as u32);
        if !once.contains(&mark) {
            once.rotate_right(1);
            once[0] = mark;
            return;
        }
        if self.version != index.version() || self.entries.len() >= MAX {
            self.version = index.version();
            self.entries.clear();
        }
        self.entries.insert(subject, CachedVerdict { from, until, verdict: verdict.clone() });
    }
}
