//! What rulesets can do with a packet at each hook: the graph of chains, walked from each base chain. Pure.
//!
//! ```text
//! base chain (hook, family) ── jump, goto, verdict map ──> chain ──> … each with the ways in which its rules end a packet
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::products::ProductId;
use crate::model::{Family, Hook};

/// Limit of chains. A node with kube-proxy and Calico and 10,000 services has some 60,000.
pub const MAX_CHAINS: usize = 200_000;
/// Limit of jumps in all chains together.
const MAX_JUMPS: usize = 1_000_000;
/// Limit of comments that are kept as examples.
const MAX_COMMENTS: usize = 32;
/// Bytes of a comment that are kept: it is untrusted input.
const MAX_COMMENT: usize = 128;

/// Netfilter's two rule engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleEngine {
    /// nftables; iptables-nft is nftables too.
    Nft,
    Legacy,
}

/// The ways in which rules end a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terminals {
    pub drop: bool,
    pub reject: bool,
    pub queue: bool,
}

impl Terminals {
    pub const DROP: Terminals = Terminals { drop: true, reject: false, queue: false };
    pub const REJECT: Terminals = Terminals { drop: false, reject: true, queue: false };
    pub const QUEUE: Terminals = Terminals { drop: false, reject: false, queue: true };

    pub fn add(&mut self, other: Terminals) {
        self.drop |= other.drop;
        self.reject |= other.reject;
        self.queue |= other.queue;
    }

    pub fn any(self) -> bool {
        self.drop || self.reject || self.queue
    }
}

/// The hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    pub hook: Hook,
    pub priority: i32,
    /// The chain drops packets that no rule ended.
    pub policy_drops: bool,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    Ip,
    Ip6,
    Inet,
    Bridge,
    Netdev,
    /// ARP, and families that this program does not know: no IP packets.
    Other,
}

impl TableFamily {
    pub fn sees(self, family: Family) -> bool {
        match self {
            TableFamily::Ip => family == Family::Ipv4,
            TableFamily::Ip6 => family == Family::Ipv6,
            TableFamily::Inet | TableFamily::Bridge | TableFamily::Netdev => true,
            TableFamily::Other => false,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            TableFamily::Ip => "ip",
            TableFamily::Ip6 => "ip6",
            TableFamily::Inet => "inet",
            TableFamily::Bridge => "bridge",
            TableFamily::Netdev => "netdev",
            TableFamily::Other => "other",
        }
    }
}

/// A table by its engine, family and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableKey {
    pub backend: RuleEngine,
    pub family: TableFamily,
    pub name: String,
}

/// What one rule can do with a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleEffect {
    pub terminals: Terminals,
    /// Chains that the rule jumps to.
    pub jumps: Vec<String>,
    /// Verdict maps that the rule uses.
    pub maps: Vec<String>,
    pub comment: Option<String>,
    /// The rule needs conntrack, so the kernel has registered conntrack's hooks in this network namespace.
    pub conntrack: bool,
}

#[derive(Debug, Default)]
struct Chain {
    base: Option<BaseChain>,
    terminals: Terminals,
    rules: u64,
    jumps: BTreeSet<String>,
    maps: BTreeSet<String>,
}

/// What the elements of a verdict map can do.
#[derive(Debug, Default)]
struct Map {
    terminals: Terminals,
    jumps: BTreeSet<String>,
}

/// Collects tables, chains, rules and maps in any order; [`RulesetBuilder::finish`] walks them.
#[derive(Debug, Default)]
pub struct RulesetBuilder {
    tables: HashMap<TableKey, TableContent>,
    chains: usize,
    jumps: usize,
    comments: BTreeSet<String>,
    commented: u64,
    /// Something had no room, so the ruleset is not complete.
    full: bool,
    conntrack: bool,
}

#[derive(Debug, Default)]
struct TableContent {
    chains: HashMap<String, Chain>,
    maps: HashMap<String, Map>,
}

impl RulesetBuilder {
    pub fn table(&mut self, table: &TableKey) {
        self.tables.entry(table.clone()).or_default();
    }

    fn chain_mut(&mut self, table: &TableKey, name: &str) -> Option<&mut Chain> {
        let chains = &mut self.tables.entry(table.clone()).or_default().chains;
        if !chains.contains_key(name) {
            if self.chains >= MAX_CHAINS {
                self.full = true;
                return None;
            }
            self.chains += 1;
        }
        Some(chains.entry(name.to_owned()).or_default())
    }

    pub fn chain(&mut self, table: &TableKey, name: &str, base: Option<BaseChain>) {
        if let Some(chain) = self.chain_mut(table, name) {
            chain.base = base;
        }
    }

    pub fn rule(&mut self, table: &TableKey, chain: &str, rule: RuleEffect) {
        self.conntrack |= rule.conntrack;
        if let Some(comment) = rule.comment.as_deref().filter(|comment| names_policy(comment)) {
            self.commented += 1;
            if self.comments.len() < MAX_COMMENTS {
                self.comments.insert(comment[..comment.floor_char_boundary(MAX_COMMENT)].to_owned());
            }
        }
        let room = MAX_JUMPS.saturating_sub(self.jumps);
        let Some(chain) = self.chain_mut(table, chain) else { return };
        chain.rules += 1;
        chain.terminals.add(rule.terminals);
        let before = chain.jumps.len() + chain.maps.len();
        let (jumps, maps) = (rule.jumps.len(), rule.maps.len());
        chain.jumps.extend(rule.jumps.into_iter().take(room));
        chain.maps.extend(rule.maps.into_iter().take(room));
        let added = chain.jumps.len() + chain.maps.len() - before;
        self.jumps += added;
        self.full |= jumps + maps > room;
    }

    /// Adds one element of a verdict map.
    pub fn element(&mut self, table: &TableKey, map: &str, terminals: Terminals, jump: Option<String>) {
        let full = self.jumps >= MAX_JUMPS;
        let map = self.tables.entry(table.clone()).or_default().maps.entry(map.to_owned()).or_default();
        map.terminals.add(terminals);
        if let Some(jump) = jump {
            if full {
                self.full = true;
            } else if map.jumps.insert(jump) {
                self.jumps += 1;
            }
        }
    }

    /// Notes that something could not be read, so the ruleset is not complete.
    pub fn incomplete(&mut self) {
        self.full = true;
    }

    pub fn finish(self) -> Ruleset {
        let mut ruleset = Ruleset {
            complete: !self.full,
            comments: self.comments.into_iter().collect(),
            commented: self.commented,
            conntrack: self.conntrack,
            ..Ruleset::default()
        };
        for (key, table) in self.tables {
            let rules = table.chains.values().map(|chain| chain.rules).sum();
            for (name, chain) in &table.chains {
                if let Some(product) = ProductId::of_chain(&key.name, name, key.backend == RuleEngine::Nft) {
                    *ruleset.products.entry((product, key.backend)).or_default() += 1;
                }
                if let Some(base) = chain.base {
                    walk(&key, &table, name, base, &mut ruleset.hooks);
                }
            }
            ruleset.tables.insert(key, rules);
        }
        ruleset
    }
}

/// Adds what the base chain `name`, and every chain that can be reached from it, can do.
fn walk(
    key: &TableKey,
    table: &TableContent,
    name: &str,
    base: BaseChain,
    hooks: &mut HashMap<HookPoint, TerminalsByProduct>,
) {
    let mut found = TerminalsByProduct::default();
    let mut seen: BTreeSet<&str> = BTreeSet::from([name]);
    let mut next = vec![name];
    while let Some(name) = next.pop() {
        let Some(chain) = table.chains.get(name) else { continue };
        let maps = chain.maps.iter().filter_map(|map| table.maps.get(map));
        let mut terminals = chain.terminals;
        maps.clone().for_each(|map| terminals.add(map.terminals));
        if terminals.any() {
            let product = ProductId::of_chain(&key.name, name, key.backend == RuleEngine::Nft);
            found.0.entry(product).or_default().add(terminals);
        }
        let jumps = chain.jumps.iter().chain(maps.flat_map(|map| &map.jumps));
        next.extend(jumps.map(String::as_str).filter(|jump| seen.insert(jump)));
    }
    if base.policy_drops {
        let product = ProductId::of_chain(&key.name, name, key.backend == RuleEngine::Nft);
        found.0.entry(product).or_default().add(Terminals::DROP);
    }
    for family in [Family::Ipv4, Family::Ipv6].into_iter().filter(|family| key.family.sees(*family)) {
        hooks.entry(HookPoint { backend: key.backend, hook: base.hook, family }).or_default().add(&found);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct HookPoint {
    backend: RuleEngine,
    hook: Hook,
    family: Family,
}

/// The ways in which rules end a packet, by the product that made the chain; `None` for chains of no known product.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalsByProduct(pub BTreeMap<Option<ProductId>, Terminals>);

impl TerminalsByProduct {
    pub fn add(&mut self, other: &TerminalsByProduct) {
        for (product, terminals) in &other.0 {
            self.0.entry(*product).or_default().add(*terminals);
        }
    }

    /// Returns the ways in which rules end a packet, except those of products for which `without` is true.
    pub fn terminals(&self, without: impl Fn(Option<ProductId>) -> bool) -> Terminals {
        let mut all = Terminals::default();
        self.0.iter().filter(|(product, _)| !without(**product)).for_each(|(_, terminals)| all.add(*terminals));
        all
    }

    /// Returns true if a chain of a policy enforcer drops or rejects here.
    pub fn has_policy(&self) -> bool {
        self.policy().any(|terminals| terminals.drop || terminals.reject)
    }

    /// Returns true if a chain of a policy enforcer sends packets to a queue here.
    pub fn has_policy_queue(&self) -> bool {
        self.policy().any(|terminals| terminals.queue)
    }

    fn policy(&self) -> impl Iterator<Item = &Terminals> {
        self.0.iter().filter(|(product, _)| product.is_some_and(ProductId::is_enforcer)).map(|(_, terminals)| terminals)
    }
}

/// The rulesets of one network namespace.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    hooks: HashMap<HookPoint, TerminalsByProduct>,
    /// Tables with their number of rules.
    pub tables: BTreeMap<TableKey, u64>,
    /// Number of chains by product.
    pub products: BTreeMap<(ProductId, RuleEngine), u64>,
    /// Examples of rule comments that name a policy.
    pub comments: Vec<String>,
    /// Number of rules with such a comment.
    pub commented: u64,
    /// Nothing was left out for lack of room or permissions.
    pub complete: bool,
    /// A rule needs conntrack.
    pub conntrack: bool,
}

impl Ruleset {
    /// Returns what the rules of `backend` can do at `hook`; at every hook if it is `None`.
    pub fn at(&self, backend: RuleEngine, hook: Option<Hook>, family: Family) -> TerminalsByProduct {
        let mut all = TerminalsByProduct::default();
        for (point, terminals) in &self.hooks {
            let here = match hook {
                None => true,
                // With br_netfilter bridged packets pass the IP hooks too.
                Some(Hook::Bridge) => {
                    matches!(point.hook, Hook::Bridge | Hook::Forward | Hook::Prerouting | Hook::Postrouting)
                }
                Some(hook) => point.hook == hook,
            };
            if here && point.backend == backend && point.family == family {
                all.add(terminals);
            }
        }
        all
    }
}

/// Returns true if a rule's comment names its policy, as those of kube-router, Calico and Weave Net do.
fn names_policy(comment: &str) -> bool {
    let comment = comment.to_ascii_lowercase();
    ["policy", "netpol", "knp.default", "network-policies"].iter().any(|word| comment.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(backend: RuleEngine, family: TableFamily, name: &str) -> TableKey {
        TableKey { backend, family, name: name.into() }
    }

    fn base(hook: Hook) -> Option<BaseChain> {
        Some(BaseChain { hook, priority: 0, policy_drops: false })
    }

    fn rule(terminals: Terminals, jumps: &[&str]) -> RuleEffect {
        RuleEffect { terminals, jumps: jumps.iter().map(|jump| (*jump).to_owned()).collect(), ..RuleEffect::default() }
    }

    #[test]
    fn a_terminal_counts_where_its_chain_is_reached_from() {
        let filter = table(RuleEngine::Nft, TableFamily::Ip, "filter");
        let mut builder = RulesetBuilder::default();
        builder.chain(&filter, "FORWARD", base(Hook::Forward));
        builder.chain(&filter, "INPUT", base(Hook::Input));
        builder.chain(&filter, "cali-fw", None);
        builder.rule(&filter, "FORWARD", rule(Terminals::default(), &["cali-fw"]));
        // A loop must not hang.
        builder.rule(&filter, "cali-fw", rule(Terminals::DROP, &["FORWARD", "cali-fw"]));
        builder.rule(&filter, "INPUT", rule(Terminals::REJECT, &[]));
        let ruleset = builder.finish();
        let at = |hook, family| ruleset.at(RuleEngine::Nft, Some(hook), family);
        assert_eq!(at(Hook::Forward, Family::Ipv4).terminals(|_| false), Terminals::DROP);
        assert!(at(Hook::Forward, Family::Ipv4).has_policy());
        assert_eq!(at(Hook::Input, Family::Ipv4).terminals(|_| false), Terminals::REJECT);
        assert_eq!(
            at(Hook::Forward, Family::Ipv6).terminals(|_| false),
            Terminals::default(),
            "an ip table sees no IPv6"
        );
        assert_eq!(ruleset.at(RuleEngine::Legacy, None, Family::Ipv4).terminals(|_| false), Terminals::default());
    }

    #[test]
    fn a_verdict_map_jumps_too() {
        let kindnet = table(RuleEngine::Nft, TableFamily::Inet, "kindnet");
        let mut builder = RulesetBuilder::default();
        builder.element(&kindnet, "map", Terminals::default(), Some("deep".into()));
        builder.rule(&kindnet, "deep", rule(Terminals::QUEUE, &[]));
        builder.rule(&kindnet, "start", RuleEffect { maps: vec!["map".into()], ..RuleEffect::default() });
        builder.chain(&kindnet, "start", base(Hook::Postrouting));
        let found = builder.finish().at(RuleEngine::Nft, Some(Hook::Postrouting), Family::Ipv6);
        assert_eq!(
            found.0.iter().map(|(product, terminals)| (product.map(ProductId::name), *terminals)).collect::<Vec<_>>(),
            [(Some("kindnet"), Terminals::QUEUE)]
        );
    }

    #[test]
    fn a_chains_policy_is_a_terminal() {
        let filter = table(RuleEngine::Legacy, TableFamily::Ip, "filter");
        let mut builder = RulesetBuilder::default();
        builder.chain(&filter, "INPUT", Some(BaseChain { hook: Hook::Input, priority: 0, policy_drops: true }));
        let ruleset = builder.finish();
        assert_eq!(
            ruleset.at(RuleEngine::Legacy, Some(Hook::Input), Family::Ipv4).terminals(|_| false),
            Terminals::DROP
        );
    }

    #[test]
    fn kube_proxys_terminals_can_be_left_out() {
        let filter = table(RuleEngine::Legacy, TableFamily::Ip, "filter");
        let mut builder = RulesetBuilder::default();
        builder.chain(&filter, "FORWARD", base(Hook::Forward));
        builder.rule(&filter, "FORWARD", rule(Terminals::default(), &["KUBE-SERVICES", "KUBE-POD-FW-X"]));
        builder.rule(&filter, "KUBE-SERVICES", rule(Terminals::DROP, &[]));
        builder.rule(&filter, "KUBE-POD-FW-X", rule(Terminals::REJECT, &[]));
        let found = builder.finish().at(RuleEngine::Legacy, Some(Hook::Forward), Family::Ipv4);
        assert_eq!(found.terminals(|product| product.map(ProductId::name) == Some("kube-proxy")), Terminals::REJECT);
    }
}
