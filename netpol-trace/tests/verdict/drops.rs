//! Drops of denied connections in a large cluster, as the kernel's programs report them.

use std::net::IpAddr;

use netpol_trace::cluster::Cluster;
use netpol_trace::kernel::KernelDrop;
use netpol_trace::model::packet::{PacketCount, TCP};
use netpol_trace::model::{DropFacts, DropSite, Hook, Mechanism, PolicyRelevance, RejectVisibility, VerdictResult};
use netpol_trace::packet;
use netpol_trace::policy;
use netpol_trace::policy::{CniOptions, Connection};
use netpol_trace_common::aggregate::AggregateKey;
use netpol_trace_common::{CT_WORDS, DropEvent, HEAD_LEN, flags};

use crate::large;

/// Kernel events of connections that policies deny.
pub fn denied(cluster: &Cluster, pods: usize, flows: usize) -> Vec<KernelDrop> {
    let index = cluster.read();
    let denied = |connection: &Connection<'_>| {
        policy::verdict_of(&index, connection, &CniOptions::default()).result == VerdictResult::Denied
    };
    let connections = large::connections(&index, pods, 2 * flows);
    connections.iter().filter(|connection| denied(connection)).take(flows).zip(1024..).map(drop_of).collect()
}

fn drop_of((connection, source_port): (&Connection<'_>, u16)) -> KernelDrop {
    let bytes = |ip: Option<IpAddr>| match ip {
        Some(IpAddr::V4(ip)) => ip.octets(),
        _ => unreachable!("the cluster is made of IPv4 addresses"),
    };
    // A SYN.
    let mut head = [0; HEAD_LEN];
    head[..12].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
    head[12..16].copy_from_slice(&bytes(connection.source.ip));
    head[16..20].copy_from_slice(&bytes(connection.destination.ip));
    head[20..22].copy_from_slice(&source_port.to_be_bytes());
    head[22..24].copy_from_slice(&connection.port.unwrap_or(0).to_be_bytes());
    head[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    let event = DropEvent {
        time: uptime(),
        location: 1,
        dst_input: 0,
        conntrack: [0; CT_WORDS],
        reason: 8,
        len: 40,
        data_offset: 64,
        tail: 104,
        network_header: 64,
        mac_header: 50,
        transport_header: 84,
        protocol: 0x0800_u16.to_be(),
        ifindex: 2,
        iif: 2,
        out_ifindex: 3,
        netns: 4_026_531_840,
        mark: 0,
        gso_segs: 0,
        gso_size: 0,
        ctinfo: 0,
        flags: flags::DEVICE | flags::DST,
        pad: [0; 6],
        key: AggregateKey::default(),
        device: [0; 2],
        head,
    };
    let facts = DropFacts {
        reason: Some("NETFILTER_DROP".into()),
        location: Some("nft_do_chain".into()),
        site: DropSite {
            mechanism: Mechanism::Nftables,
            relevance: PolicyRelevance::Likely,
            hook: Some(Hook::Forward),
        },
        device: Some("veth12345678".into()),
        netns: Some(4_026_531_840),
        rejected: false,
        visible_rejects: RejectVisibility { icmp: true, icmp6: true, reset: true },
    };
    KernelDrop { packet: packet::decode(&event), iif: event.iif, facts, packet_count: PacketCount::ONE }
}

/// CLOCK_MONOTONIC, nearly: ns.
fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
    (seconds * 1e9) as u64
}
