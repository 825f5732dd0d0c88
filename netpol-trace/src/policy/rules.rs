//! Compares every rule of a policy with a connection, item by item: which items match, and what the others miss.

use serde::Serialize;

use crate::cluster::Index;
use crate::model::Miss;
use crate::model::cluster::{Direction, Peer, Policy};
use crate::policy::matching::{Match, Matcher};
use crate::policy::miss::bounded;
use crate::policy::{CniOptions, Connection};

/// Whether a rule or one of its items matches the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchResult {
    Match,
    NoMatch,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleCheck {
    /// `ingress[0]`
    pub rule: String,
    pub result: MatchResult,
    /// Empty: any peer.
    pub peers: Vec<ItemCheck>,
    /// Empty: any port.
    pub ports: Vec<ItemCheck>,
}

/// One item of `from`, `to` or `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ItemCheck {
    /// `ingress[0].from[1]`
    pub field: String,
    /// The item in words.
    pub wants: String,
    pub result: MatchResult,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misses: Vec<Miss>,
}

/// Compares every rule of `policy` in `direction` with the connection.
pub fn check_rules(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
    direction: Direction,
    policy: &Policy,
) -> Vec<RuleCheck> {
    let matcher = Matcher::new(index, connection, options, direction);
    let rules = policy.rules(direction).iter().enumerate();
    rules
        .map(|(at, rule)| {
            let peer = |(i, peer): (usize, &Peer)| {
                let field = format!("{direction}[{at}].{}[{i}]", direction.peers_field());
                let result = matcher.peer_matches(policy, peer);
                let mut misses = Vec::new();
                if matches!(result, Match::No(_)) {
                    matcher.peer_misses(policy, peer, format_args!("{field}"), &mut misses);
                }
                ItemCheck { field, wants: peer_text(peer), result: result.into(), misses }
            };
            let ports = rule.ports.iter().flatten().enumerate().map(|(i, port)| {
                let field = format!("{direction}[{at}].ports[{i}]");
                let result = matcher.port_matches(port);
                let no = matches!(result, Match::No(_));
                let misses = no.then(|| matcher.port_miss(port, field.clone())).into_iter().collect();
                ItemCheck { field, wants: port.to_string(), result: result.into(), misses }
            });
            RuleCheck {
                rule: format!("{direction}[{at}]"),
                result: matcher.rule(policy, rule).into(),
                peers: rule.peers.iter().flatten().enumerate().map(peer).collect(),
                ports: ports.collect(),
            }
        })
        .collect()
}

impl From<Match> for MatchResult {
    fn from(found: Match) -> MatchResult {
        match found {
            Match::Yes(_) => MatchResult::Match,
            Match::No(_) => MatchResult::NoMatch,
            Match::Maybe(_) => MatchResult::Unknown,
        }
    }
}

fn peer_text(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: Some(namespaces), pods: Some(pods) } => {
            bounded(format_args!("namespaceSelector {namespaces} and podSelector {pods}"))
        }
        Peer::Pods { namespaces: Some(namespaces), pods: None } => {
            bounded(format_args!("namespaceSelector {namespaces}"))
        }
        Peer::Pods { namespaces: None, pods: Some(pods) } => bounded(format_args!("podSelector {pods}")),
        Peer::Pods { namespaces: None, pods: None } => "every pod of the policy's namespace".to_owned(),
        Peer::Block { cidr, except } => match except.len() {
            0 => format!("ipBlock {cidr}"),
            1..=4 => {
                let list: Vec<_> = except.iter().map(ToString::to_string).collect();
                format!("ipBlock {cidr} except {}", list.join(","))
            }
            many => format!("ipBlock {cidr} except {many} ranges"),
        },
    }
}
