//! One drop as it passes from the programs to the pipeline.

use netpol_trace_common::{DropEvent, flags};

use crate::model::DropFacts;
use crate::model::packet::{Packet, PacketCount, PacketError};
use crate::packet;

/// The site of a drop in numbers of the running kernel: what the programs report besides the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSite {
    pub reason: u32,
    /// The code address that freed the packet.
    pub location: u64,
    /// `dst->input`; 0 without a dst.
    pub dst_input: u64,
    /// See [`netpol_trace_common::flags`].
    pub flags: u8,
    /// `skb->data` points to the link layer's header and not to IP's.
    pub at_link_layer: bool,
    pub ifindex: u32,
    pub iif: u32,
    pub out_ifindex: u32,
    /// Inode number of the network namespace, or 0.
    pub netns: u32,
    /// The device's name, padded with zeros, in memory order.
    pub device: [u64; 2],
}

impl RawSite {
    pub fn of_event(event: &DropEvent) -> RawSite {
        RawSite {
            reason: event.reason,
            location: event.location,
            dst_input: event.dst_input,
            flags: event.flags,
            at_link_layer: event.data_offset < u32::from(event.network_header),
            ifindex: event.ifindex,
            iif: event.iif,
            out_ifindex: event.out_ifindex,
            netns: event.netns,
            device: event.device,
        }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Conntrack has an entry for the packet, or a rule excluded the packet from conntrack.
    pub fn has_conntrack(&self) -> bool {
        self.has(flags::CONNTRACK | flags::UNTRACKED)
    }
}

/// A packet, or packets of one flow, that the aggregate stage hands on.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregatedDrop {
    pub site: RawSite,
    pub packet: Result<Packet, PacketError>,
    pub packet_count: PacketCount,
}

impl AggregatedDrop {
    /// One packet.
    pub fn of_event(event: &DropEvent) -> AggregatedDrop {
        AggregatedDrop { site: RawSite::of_event(event), packet: packet::decode(event), packet_count: PacketCount::ONE }
    }
}

/// A drop with its names resolved: the input of the pipeline.
#[derive(Debug, Clone)]
pub struct KernelDrop {
    /// `Err`: the packet is not IP, or its headers could not be read.
    pub packet: Result<Packet, PacketError>,
    /// The device that received the packet; 0 for none.
    pub iif: u32,
    pub facts: DropFacts,
    pub packet_count: PacketCount,
}

impl KernelDrop {
    pub fn new(drop: AggregatedDrop, facts: DropFacts) -> KernelDrop {
        KernelDrop { packet: drop.packet, iif: drop.site.iif, facts, packet_count: drop.packet_count }
    }
}
