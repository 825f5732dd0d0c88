//! A sender of UDP datagrams at full rate, or at a given one, from inside a network namespace.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Datagrams of one sendmmsg(2) call.
const BATCH: u64 = 64;
/// Destination ports of new flows, from [`FIRST_PORT`] on: a multiple of [`BATCH`], so that a batch uses one socket.
const PORTS: u64 = 64_000;
const FIRST_PORT: u64 = 1024;

/// Which flow a datagram belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// All to one port.
    One(u16),
    /// Each datagram has ports of its own, 64,000 per socket.
    New,
}

/// Sockets in a host's namespace.
#[derive(Debug)]
pub struct Sender {
    sockets: Vec<UdpSocket>,
    to: Ipv4Addr,
    /// Bytes of payload.
    payload: Vec<u8>,
    /// New flows so far.
    next: u64,
}

/// The cost of a round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub sent: u64,
    pub took: Duration,
    /// The sending thread's processor time. It includes the drop, because veth receives a packet in the sender's context.
    pub cpu: Duration,
}

impl Sender {
    /// Opens `sockets` sockets, for 64,000 flows each.
    pub fn new(netns: &Netns, from: Ipv4Addr, to: Ipv4Addr, sockets: usize, payload: usize) -> Result<Sender> {
        let bind = || (0..sockets).map(|_| UdpSocket::bind((from, 0))).collect::<std::io::Result<Vec<_>>>();
        let sockets = netns.run(bind).context("the sender's sockets")?;
        Ok(Sender { sockets, to, payload: vec![b'x'; payload], next: 0 })
    }

    /// Sends `packets`, rounded up to a batch, at `rate` a second or as fast as possible. Ignores errors that the network or a peer
    /// answers with.
    pub fn send(&mut self, flows: Flows, packets: u64, rate: Option<u64>) -> Result<Round> {
        let (start, cpu) = (Instant::now(), thread_cpu()?);
        let mut sent = 0;
        while sent < packets {
            let (socket, first_port, step) = match flows {
                Flows::One(port) => (0, port, 0),
                Flows::New => {
                    let at = self.next;
                    self.next += BATCH;
                    let socket = (at / PORTS) as usize % self.sockets.len();
                    (socket, (FIRST_PORT + at % PORTS) as u16, 1)
                }
            };
            sent += self.batch(&self.sockets[socket], first_port, step);
            if let Some(rate) = rate {
                let due = start + Duration::from_secs_f64(sent as f64 / rate as f64);
                // The pace of the load, not a wait for a result.
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(Round { sent, took: start.elapsed(), cpu: thread_cpu()?.saturating_sub(cpu) })
    }

    fn batch(&self, socket: &UdpSocket, first_port: u16, step: u16) -> u64 {
        let mut payload =
            libc::iovec { iov_base: self.payload.as_ptr().cast_mut().cast(), iov_len: self.payload.len() };
        let mut names = [libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(self.to).to_be() },
            sin_zero: [0; 8],
        }; BATCH as usize];
        let mut port = first_port;
        // SAFETY: a header of zeros is a valid, empty one.
        let mut headers: [libc::mmsghdr; BATCH as usize] = unsafe { std::mem::zeroed() };
        for (header, name) in headers.iter_mut().zip(&mut names) {
            name.sin_port = port.to_be();
            port = port.wrapping_add(step);
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            header.msg_hdr.msg_iov = &raw mut payload;
            header.msg_hdr.msg_iovlen = 1;
        }
        let mut done = 0;
        while done < headers.len() {
            let left = &mut headers[done..];
            // SAFETY: so many valid headers; what they point to outlives the call.
            let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, 0) };
            // An error is about the first datagram: a rule refused it, or an ICMP error answered an earlier one.
            done += usize::try_from(count).unwrap_or(0).max(1);
        }
        BATCH
    }
}

/// This thread's processor time.
fn thread_cpu() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a valid timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    anyhow::ensure!(!failed, "{}", std::io::Error::last_os_error());
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
