//! Parses nftables' messages: tables, chains, rules, verdict maps. Pure and total: no input makes it panic.
//!
//! The attribute numbers are those of linux/netfilter/nf_tables.h and nf_tables_compat.h.

use super::ruleset::{BaseChain, RuleEffect, RuleEngine, RulesetBuilder, TableFamily, TableKey, Terminals};
use crate::model::Hook;
use crate::netlink::{self, attribute, put, string, text};

/// Message numbers of the subsystem.
pub const SUBSYSTEM: u16 = 10;
pub const GET_TABLE: u16 = 1;
pub const GET_CHAIN: u16 = 4;
pub const GET_RULE: u16 = 7;
pub const GET_SET: u16 = 10;
pub const GET_SET_ELEMENTS: u16 = 13;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_SET_ELEMENTS: u16 = 12;

/// `NFT_DATA_VERDICT` as a set's data type: a verdict map.
const DATA_VERDICT: u32 = 0xffff_ff00;
const REGISTER_VERDICT: u32 = 0;
/// Largest size of xt's comment match, in bytes.
const COMMENT_MATCH: usize = 256;

/// A verdict map whose elements have to be requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictMap {
    pub family: u8,
    pub table: String,
    pub name: String,
}

/// Adds one message to `builder`. `message` is the number within the subsystem, `body` starts with `struct nfgenmsg`.
/// Returns a verdict map that the message announces.
pub fn take(builder: &mut RulesetBuilder, message: u16, body: &[u8]) -> Option<VerdictMap> {
    let (&family_number, _) = body.split_first()?;
    let attributes = body.get(4..)?;
    let family = match family_number {
        1 => TableFamily::Inet,
        2 => TableFamily::Ip,
        5 => TableFamily::Netdev,
        7 => TableFamily::Bridge,
        10 => TableFamily::Ip6,
        _ => TableFamily::Other,
    };
    let table = |name: String| TableKey { backend: RuleEngine::Nft, family, name };
    match message {
        NEW_TABLE => builder.table(&table(string(attributes, 1)?)),
        NEW_CHAIN => {
            let base = attribute(attributes, 4).and_then(|hook| base(family, hook, attributes));
            builder.chain(&table(string(attributes, 1)?), &string(attributes, 3)?, base);
        }
        NEW_RULE => builder.rule(&table(string(attributes, 1)?), &string(attributes, 2)?, rule(attributes)),
        NEW_SET if number(attributes, 6) == Some(DATA_VERDICT) => {
            return Some(VerdictMap {
                family: family_number,
                table: string(attributes, 1)?,
                name: string(attributes, 2)?,
            });
        }
        NEW_SET_ELEMENTS => {
            let (table, map) = (table(string(attributes, 1)?), string(attributes, 2)?);
            for (_, element) in netlink::attributes(attribute(attributes, 3)?) {
                let Some((terminals, jump)) = attribute(element, 2).and_then(|data| attribute(data, 2)).map(verdict)
                else {
                    continue;
                };
                builder.element(&table, &map, terminals, jump);
            }
        }
        _ => {}
    }
    None
}

/// Returns the body of the request for a map's elements.
pub fn elements_request(map: &VerdictMap) -> Vec<u8> {
    let mut body = vec![map.family, 0, 0, 0];
    for (kind, text) in [(1, &map.table), (2, &map.name)] {
        put(&mut body, kind, &[text.as_bytes(), b"\0"].concat());
    }
    body
}

fn base(family: TableFamily, hook: &[u8], chain: &[u8]) -> Option<BaseChain> {
    let ip = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting, Hook::Ingress];
    let number_in_family = number(hook, 1)? as usize;
    let hook_name = match family {
        TableFamily::Ip | TableFamily::Ip6 | TableFamily::Inet => *ip.get(number_in_family)?,
        TableFamily::Bridge => Hook::Bridge,
        TableFamily::Netdev => *[Hook::Ingress, Hook::Egress].get(number_in_family)?,
        TableFamily::Other => return None,
    };
    // NF_DROP is 0. A base chain without the attribute accepts.
    let policy_drops = number(chain, 5) == Some(0);
    Some(BaseChain { hook: hook_name, priority: number(hook, 2)? as i32, policy_drops })
}

fn rule(attributes: &[u8]) -> RuleEffect {
    let mut rule = RuleEffect { comment: attribute(attributes, 7).and_then(user_comment), ..RuleEffect::default() };
    for (_, expression) in attribute(attributes, 4).map(netlink::attributes).into_iter().flatten() {
        let (Some(name), Some(data)) = (string(expression, 1), attribute(expression, 2)) else { continue };
        match name.as_str() {
            "immediate" if number(data, 1) == Some(REGISTER_VERDICT) => {
                if let Some((terminals, jump)) = attribute(data, 2).and_then(|value| attribute(value, 2)).map(verdict) {
                    rule.terminals.add(terminals);
                    rule.jumps.extend(jump);
                }
            }
            "reject" => rule.terminals.add(Terminals::REJECT),
            "queue" => rule.terminals.add(Terminals::QUEUE),
            "lookup" if number(data, 3) == Some(REGISTER_VERDICT) => rule.maps.extend(string(data, 1)),
            // iptables-nft uses xt targets where nftables has no expression.
            "target" => {
                let name = string(data, 1).unwrap_or_default();
                rule.terminals.add(target(&name));
                rule.conntrack |= needs_conntrack(&name);
            }
            "ct" | "nat" | "masq" | "redir" => rule.conntrack = true,
            "match" if string(data, 1).is_some_and(|name| needs_conntrack(&name)) => rule.conntrack = true,
            "match" if string(data, 1).as_deref() == Some("comment") && rule.comment.is_none() => {
                rule.comment = attribute(data, 3).map(|info| text(&info[..info.len().min(COMMENT_MATCH)]));
            }
            _ => {}
        }
    }
    rule
}

/// Returns true if the kernel registers conntrack's hooks for an xt match or target of this name.
pub fn needs_conntrack(name: &str) -> bool {
    matches!(name, "conntrack" | "state" | "connmark" | "CT" | "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "CONNMARK")
}

/// Returns what the xt target of this name does.
pub fn target(name: &str) -> Terminals {
    match name {
        "DROP" => Terminals::DROP,
        "REJECT" => Terminals::REJECT,
        "NFQUEUE" => Terminals::QUEUE,
        _ => Terminals::default(),
    }
}

/// `NFTA_VERDICT_CODE` and `NFTA_VERDICT_CHAIN`.
fn verdict(attributes: &[u8]) -> (Terminals, Option<String>) {
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    match number(attributes, 1).map(|code| code as i32) {
        Some(JUMP | GOTO) => (Terminals::default(), string(attributes, 2)),
        Some(code) if code >= 0 => match code & 0xff {
            0 => (Terminals::DROP, None),
            3 => (Terminals::QUEUE, None),
            _ => (Terminals::default(), None),
        },
        _ => (Terminals::default(), None),
    }
}

/// Returns the comment in libnftnl's user data: a list of type, length, value; type 0 is the comment.
fn user_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = &rest[value.len()..];
    }
    None
}

/// Returns an attribute that is a number in network byte order.
fn number(attributes: &[u8], wanted: u16) -> Option<u32> {
    attribute(attributes, wanted)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Family;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, value);
        bytes
    }

    fn be(kind: u16, value: i32) -> Vec<u8> {
        nla(kind, &value.to_be_bytes())
    }

    fn message(parts: &[Vec<u8>]) -> Vec<u8> {
        [vec![1, 0, 0, 0], parts.concat()].concat()
    }

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        nla(1, &[nla(1, format!("{name}\0").as_bytes()), nla(2 | 1 << 15, &data.concat())].concat())
    }

    fn a_rule(expressions: &[Vec<u8>], rest: &[Vec<u8>]) -> RuleEffect {
        rule(&[nla(4 | 1 << 15, &expressions.concat()), rest.concat()].concat())
    }

    fn immediate(code: i32, chain: Option<&str>) -> Vec<u8> {
        let chain = chain.map(|chain| nla(2, format!("{chain}\0").as_bytes())).unwrap_or_default();
        expression("immediate", &[be(1, 0), nla(2, &nla(2, &[be(1, code), chain].concat()))])
    }

    #[test]
    fn rules_end_or_jump() {
        assert_eq!(a_rule(&[immediate(0, None)], &[]).terminals, Terminals::DROP);
        assert_eq!(a_rule(&[immediate(1, None)], &[]), RuleEffect::default());
        assert_eq!(a_rule(&[immediate(-3, Some("cali-x"))], &[]).jumps, ["cali-x"]);
        assert_eq!(a_rule(&[expression("reject", &[])], &[]).terminals, Terminals::REJECT);
        assert_eq!(a_rule(&[expression("queue", &[])], &[]).terminals, Terminals::QUEUE);
        assert_eq!(a_rule(&[expression("target", &[nla(1, b"REJECT\0")])], &[]).terminals, Terminals::REJECT);
        assert_eq!(a_rule(&[expression("lookup", &[nla(1, b"m\0"), be(3, 0)])], &[]).maps, ["m"]);
        assert_eq!(a_rule(&[expression("lookup", &[nla(1, b"m\0"), be(3, 1)])], &[]).maps, Vec::<String>::new());
    }

    #[test]
    fn comments_of_both_kinds() {
        let user = a_rule(&[], &[nla(7, &[1, 1, 9, 0, 3, b'n', b'p', 0])]);
        assert_eq!(user.comment.as_deref(), Some("np"));
        let xt = a_rule(
            &[expression("match", &[nla(1, b"comment\0"), nla(3, &[b"policy x\0".to_vec(), vec![7; 247]].concat())])],
            &[],
        );
        assert_eq!(xt.comment.as_deref(), Some("policy x"));
    }

    #[test]
    fn a_table_is_assembled() {
        let mut builder = RulesetBuilder::default();
        let name = nla(1, b"fw\0");
        let hook = nla(4 | 1 << 15, &[be(1, 2), be(2, -5)].concat());
        take(&mut builder, NEW_CHAIN, &message(&[name.clone(), nla(3, b"fwd\0"), hook, be(5, 0)]));
        let map =
            take(&mut builder, NEW_SET, &message(&[name.clone(), nla(2, b"m\0"), be(6, DATA_VERDICT as i32)])).unwrap();
        assert_eq!((map.table.as_str(), map.name.as_str()), ("fw", "m"));
        let found = builder.finish().at(RuleEngine::Nft, Some(Hook::Forward), Family::Ipv4);
        assert_eq!(found.terminals(|_| false), Terminals::DROP, "by the chain's policy");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u16..16, body in proptest::collection::vec(any::<u8>(), 0..400)) {
            take(&mut RulesetBuilder::default(), kind, &body);
        }

        #[test]
        fn a_damaged_rule_never_panics(at in 0usize..160, byte: u8, cut in 0usize..160) {
            let mut body = message(&[nla(1, b"t\0"), nla(2, b"c\0"), nla(4, &immediate(-3, Some("cali-x"))), nla(7, &[0, 3, 1, 2, 3])]);
            if let Some(old) = body.get_mut(at) { *old = byte; }
            body.truncate(body.len().saturating_sub(cut));
            take(&mut RulesetBuilder::default(), NEW_RULE, &body);
        }
    }
}
