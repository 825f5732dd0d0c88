//! Captures what arrives in a network namespace, byte for byte.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::PATIENCE;
use crate::netns::Netns;

/// A packet socket on every interface of a namespace.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
    /// Only packets to this address count, not neighbour discovery or the host's own.
    to: Vec<IpAddr>,
}

impl Capture {
    pub fn start(netns: &Netns, to: Vec<IpAddr>) -> Result<Capture> {
        let every_protocol = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        // SOCK_DGRAM: from the IP header on.
        let socket =
            netns.run(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(every_protocol))).context("a packet socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_recv_buffer_size(16 << 20)?;
        Ok(Capture { socket, to })
    }

    /// Waits for the next `count` packets.
    pub fn take(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        while packets.len() < count {
            let Some(packet) = self.next()? else { bail!("only {} of {count} packets came", packets.len()) };
            packets.push(packet);
        }
        Ok(packets)
    }

    /// Returns the packets that come within `time`; none is expected.
    pub fn rest(&self, time: Duration) -> Result<Vec<Vec<u8>>> {
        self.socket.set_read_timeout(Some(time))?;
        let mut packets = Vec::new();
        while let Some(packet) = self.next()? {
            packets.push(packet);
        }
        Ok(packets)
    }

    fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![std::mem::MaybeUninit::<u8>::uninit(); 128 << 10];
        loop {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // SAFETY: the kernel has written `length` bytes.
            let packet: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            if destination(&packet).is_some_and(|to| self.to.contains(&to)) {
                return Ok(Some(packet));
            }
        }
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}
