//! Clients. Each makes one attempt from inside a host's namespace and returns its outcome.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::server::{NO_DATA_CONNECTION, wire_name};
use crate::{PATIENCE, packet};

/// How long a client tries if nothing answers: TCP sends its SYN, and one more after one second.
pub const DROPPED: Duration = Duration::from_millis(1500);

/// One attempt. Its source is unique among a lab's attempts, so that records can be matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub source: SocketAddr,
    /// The destination before NAT.
    pub destination: SocketAddr,
    pub outcome: Outcome,
}

/// The client's view of how an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    TimedOut,
    Refused,
    Unreachable,
    /// Any other error.
    Failed(String),
}

impl From<io::Result<()>> for Outcome {
    fn from(result: io::Result<()>) -> Self {
        use io::ErrorKind::*;
        match result.as_ref().map_err(io::Error::kind) {
            Ok(()) => Outcome::Passed,
            Err(TimedOut | WouldBlock) => Outcome::TimedOut,
            Err(ConnectionRefused) => Outcome::Refused,
            Err(HostUnreachable | NetworkUnreachable) => Outcome::Unreachable,
            Err(_) => Outcome::Failed(format!("{:?}", result.err())),
        }
    }
}

/// What makes a TCP attempt unusual.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpOptions {
    /// The hop limit, if not the system's.
    pub ttl: Option<u32>,
}

/// Connects and reads the server's greeting. `limit` bounds the connect; a greeting always has [`PATIENCE`].
pub fn tcp(netns: &Netns, from: IpAddr, to: SocketAddr, limit: Duration, options: TcpOptions) -> Result<Attempt> {
    netns.run(|| {
        let socket = bound(SocketAddr::new(from, 0))?;
        match (options.ttl, to) {
            (Some(ttl), SocketAddr::V4(_)) => socket.set_ttl_v4(ttl)?,
            (Some(ttl), SocketAddr::V6(_)) => socket.set_unicast_hops_v6(ttl)?,
            (None, _) => {}
        }
        let source = local(&socket)?;
        let connected = socket.connect_timeout(&to.into(), limit);
        let outcome = connected.and_then(|()| read_greeting(socket.into())).into();
        Ok(Attempt { source, destination: to, outcome })
    })
}

/// Asks a name server for `name`'s address, at most twice, and checks that the answer is to this query.
pub fn dns(netns: &Netns, from: IpAddr, to: SocketAddr, name: &str, limit: Duration) -> Result<Attempt> {
    netns.run(|| {
        let socket = UdpSocket::bind((from, 0))?;
        let source = socket.local_addr()?;
        socket.set_read_timeout(Some(limit / 2))?;
        let mut query = source.port().to_be_bytes().to_vec();
        query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        query.extend(wire_name(name));
        query.extend_from_slice(&[0, 1, 0, 1]);
        let ask = || -> io::Result<()> {
            socket.connect(to)?;
            socket.send(&query)?;
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer)?;
            if length < query.len() || answer[..2] != query[..2] || answer[3] & 0xf != 0 {
                return Err(io::Error::other(format!("no answer to {name}")));
            }
            Ok(())
        };
        let mut outcome = Outcome::from(ask());
        if outcome == Outcome::TimedOut {
            outcome = ask().into();
        }
        Ok(Attempt { source, destination: to, outcome })
    })
}

/// Uses FTP in active mode. Returns the server's data connection to the client as the attempt; the control connection must work.
pub fn ftp(netns: &Netns, from: Ipv4Addr, server: SocketAddr) -> Result<Attempt> {
    netns.run(|| {
        let listener = TcpListener::bind((from, 0))?;
        let data = listener.local_addr()?;
        let mut control = TcpStream::connect_timeout(&server, PATIENCE).context("FTP control connection")?;
        control.set_read_timeout(Some(PATIENCE))?;
        let mut replies = BufReader::new(control.try_clone()?).lines();
        let mut expect = |code: &str| -> Result<String> {
            let reply = replies.next().context("FTP server closed the control connection")??;
            if !reply.starts_with(code) {
                bail!("the FTP server replied {reply:?}, expected {code}");
            }
            Ok(reply)
        };
        expect("220")?;
        write!(control, "USER anonymous\r\n")?;
        expect("230")?;
        let [a, b, c, d] = from.octets();
        let [high, low] = data.port().to_be_bytes();
        write!(control, "PORT {a},{b},{c},{d},{high},{low}\r\n")?;
        expect("200")?;
        write!(control, "LIST\r\n")?;
        expect("150")?;
        let last = expect("")?;
        let outcome = match last.split(' ').next() {
            Some("226") => Outcome::Passed,
            Some(NO_DATA_CONNECTION) => Outcome::TimedOut,
            _ => Outcome::Failed(last),
        };
        write!(control, "QUIT\r\n")?;
        // A connection closed with unread data ends in a RST, which would be a drop too.
        expect("221")?;
        Ok(Attempt { source: SocketAddr::new(server.ip(), 20), destination: data, outcome })
    })
}

/// Sends a SYN-ACK without a SYN before it, as with asymmetric routing. A host that receives it answers with RST: `Refused`.
pub fn syn_ack(netns: &Netns, from: SocketAddr, to: SocketAddr, limit: Duration) -> Result<Attempt> {
    netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP))?;
        let mut no_port = to;
        no_port.set_port(0);
        socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
        socket.connect(&no_port.into())?;
        socket.set_read_timeout(Some(limit))?;
        let segment = packet::tcp(from, to, packet::SYN | packet::ACK);
        (&socket).write_all(&segment)?;
        let deadline = Instant::now() + limit;
        let mut answer = [0; 128];
        let outcome = loop {
            match (&socket).read(&mut answer) {
                Ok(length) if packet::is_reset(&answer[..length], to, from) => break Outcome::Refused,
                Ok(_) if Instant::now() < deadline => {}
                Ok(_) => break Outcome::TimedOut,
                Err(error) => break Err(error).into(),
            }
        };
        Ok(Attempt { source: from, destination: to, outcome })
    })
}

/// A TCP socket bound to `address`.
pub fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn local(socket: &Socket) -> Result<SocketAddr> {
    socket.local_addr()?.as_socket().context("a socket of an address family without ports")
}

fn read_greeting(stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.starts_with("hello from ") { Ok(()) } else { Err(io::Error::other(format!("greeted with {line:?}"))) }
}

/// Sends one datagram of `size` bytes to each address, without waiting for answers. Returns the source.
pub fn udp(
    netns: &Netns,
    from: IpAddr,
    to: impl IntoIterator<Item = SocketAddr> + Send,
    size: usize,
) -> Result<SocketAddr> {
    netns.run(|| {
        let socket = UdpSocket::bind((from, 0))?;
        let datagram = vec![b'.'; size];
        for address in to {
            socket.send_to(&datagram, address)?;
        }
        Ok(socket.local_addr()?)
    })
}

/// Sends one packet of a protocol without the kernel's own socket for it.
pub fn raw(netns: &Netns, from: IpAddr, to: IpAddr, protocol: Protocol, payload: &[u8]) -> Result<()> {
    netns.run(|| {
        let socket = Socket::new(Domain::for_address((to, 0).into()), Type::RAW, Some(protocol))?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.send_to(payload, &SocketAddr::new(to, 0).into())?;
        Ok(())
    })
}

/// Sends one whole IP packet, header and all.
pub fn whole(netns: &Netns, to: IpAddr, packet: &[u8]) -> Result<()> {
    // IPPROTO_RAW: the caller writes the IP header.
    let header_included = Protocol::from(libc::IPPROTO_RAW);
    netns.run(|| {
        let socket = Socket::new(Domain::for_address((to, 0).into()), Type::RAW, Some(header_included))?;
        socket.send_to(packet, &SocketAddr::new(to, 0).into())?;
        Ok(())
    })
}
