//! Layout of the running kernel's structures, from its BTF: field offsets, drop reasons, the tracepoint's arguments.

use std::collections::HashMap;

use netpol_trace_common::{ABSENT, CT_REPLY_OFFSET, CT_STATUS_OFFSET, DST_BYTES, Offsets, REASONS};

use super::btf::{Btf, BtfError};

/// Everything that is read from BTF at start.
#[derive(Debug)]
pub struct Layout {
    /// Arguments of the `kfree_skb` tracepoint.
    pub arguments: u32,
    pub offsets: Offsets,
    pub reasons: ReasonNumbers,
}

impl Layout {
    pub fn from_btf(btf: &Btf<'_>) -> Result<Layout, BtfError> {
        Ok(Layout {
            arguments: btf.tracepoint_arguments("kfree_skb")?,
            offsets: offsets(btf)?,
            reasons: ReasonNumbers::from_btf(btf),
        })
    }
}

fn offsets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let at = |name: &str, path: &str| btf.offset_of(name, path);
    let skb = |path: &str| at("sk_buff", path);
    let head = skb("head")?;
    if skb("data")? != head + 8 {
        return Err(BtfError::Missing("sk_buff with data behind head".into()));
    }
    let gso_size = at("skb_shared_info", "gso_size")?;
    if at("skb_shared_info", "gso_segs")? != gso_size + 2 {
        return Err(BtfError::Missing("skb_shared_info with gso_segs behind gso_size".into()));
    }
    let (dst_dev, dst_input) = (at("dst_entry", "dev")?, at("dst_entry", "input")?);
    if [dst_dev, dst_input].iter().any(|offset| offset % 8 != 0 || *offset >= DST_BYTES) {
        return Err(BtfError::Missing(format!("dst_entry with dev and input in its first {DST_BYTES} bytes")));
    }
    let tuple = at("nf_conn", "tuplehash.tuple");
    let status = at("nf_conn", "status");
    let step = at("nf_conntrack_tuple_hash", "tuple");
    // The programs copy both tuples and the status as one block. A kernel without conntrack lacks these types.
    let conntrack = match (tuple, status, step) {
        (Ok(tuple), Ok(status), Ok(step))
            if status == tuple + CT_STATUS_OFFSET as u32 && CT_REPLY_OFFSET as u32 == 40 + step =>
        {
            Some(tuple)
        }
        _ => None,
    };
    Ok(Offsets {
        skb_len: skb("len")?,
        skb_tail: skb("tail")?,
        skb_end: skb("end")?,
        skb_head: head,
        skb_network_header: skb("network_header")?,
        skb_mac_header: skb("mac_header")?,
        skb_transport_header: skb("transport_header")?,
        skb_protocol: skb("protocol")?,
        skb_mark: skb("mark")?,
        skb_iif: skb("skb_iif")?,
        skb_dev: skb("dev")?,
        skb_sk: skb("sk")?,
        skb_nfct: if conntrack.is_some() { skb("_nfct").unwrap_or(ABSENT) } else { ABSENT },
        skb_refdst: skb("_skb_refdst")?,
        dev_ifindex: at("net_device", "ifindex")?,
        dev_name: at("net_device", "name")?,
        dev_net: at("net_device", "nd_net.net")?,
        net_inum: at("net", "ns.inum")?,
        sk_net: at("sock", "__sk_common.skc_net.net")?,
        dst_dev,
        dst_input,
        ct_tuple: conntrack.unwrap_or(0),
        ct_net: at("nf_conn", "ct_net.net").unwrap_or(0),
        shinfo_gso_size: gso_size,
        task_flags: at("task_struct", "flags")?,
        skb_data_len: skb("data_len")?,
    })
}

/// Open vSwitch's reasons (`OVS_DROP_…`), from 1 on.
const OVS_REASONS: [&str; 11] = [
    "LAST_ACTION",
    "ACTION_ERROR",
    "EXPLICIT",
    "EXPLICIT_WITH_ERROR",
    "METER",
    "RECURSION_LIMIT",
    "DEFERRED_LIMIT",
    "FRAG_L2_TOO_LONG",
    "FRAG_INVALID_PROTO",
    "CONNTRACK",
    "IP_TTL",
];

/// Drop reasons by value. Their values differ between kernels, their names hardly do.
#[derive(Debug, Default)]
pub struct ReasonNumbers {
    names: HashMap<u32, String>,
    /// Id of the OVS subsystem (from 6.6), 0 when there is none.
    pub ovs_subsystem: u32,
}

impl ReasonNumbers {
    fn from_btf(btf: &Btf<'_>) -> ReasonNumbers {
        let mut names = HashMap::new();
        for (name, value) in btf.enumerators("skb_drop_reason").unwrap_or_default() {
            if let Some(name) = name.strip_prefix("SKB_DROP_REASON_").or_else(|| name.strip_prefix("SKB_"))
                && value < REASONS as u32
                && name != "MAX"
            {
                names.entry(value).or_insert_with(|| name.to_owned());
            }
        }
        let ovs_subsystem = btf
            .enumerators("skb_drop_reason_subsys")
            .unwrap_or_default()
            .into_iter()
            .find_map(|(name, value)| name.ends_with("_OPENVSWITCH").then_some(value))
            .unwrap_or(0);
        // OVS' reasons are in its module's BTF, and the module may not be loaded; their values have not changed since 6.6.
        let mut reasons = ReasonNumbers { names, ovs_subsystem };
        if ovs_subsystem != 0 {
            for (number, name) in (1..).zip(OVS_REASONS) {
                reasons.names.insert(ovs_subsystem << 16 | number, format!("OVS_DROP_{name}"));
            }
        }
        reasons
    }

    /// True if this kernel has drop reasons (from 5.17).
    pub fn known(&self) -> bool {
        !self.names.is_empty()
    }

    /// True if this kernel has the reason `name`; NETFILTER_DROP from 5.18.
    pub fn has(&self, name: &str) -> bool {
        self.names.values().any(|n| n == name)
    }

    pub fn name(&self, value: u32) -> Option<&str> {
        self.names.get(&value).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(value, name)| (*value, name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_resolves() {
        let blob = crate::require!(super::super::btf::vmlinux());
        let layout = Layout::from_btf(&Btf::parse(&blob).unwrap()).unwrap();
        assert!((2..=4).contains(&layout.arguments), "{layout:?}");
        assert_ne!(layout.offsets.skb_dev, layout.offsets.skb_sk);
        if layout.arguments >= 3 && layout.reasons.has("NETFILTER_DROP") {
            let value = layout.reasons.iter().find(|(_, name)| *name == "NETFILTER_DROP").map(|(value, _)| value);
            assert_eq!(value.and_then(|value| layout.reasons.name(value)), Some("NETFILTER_DROP"));
        }
    }
}
