//! Servers for the lab's hosts: a TCP one that greets, a DNS one, and an FTP one that opens data connections itself.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::traffic::{self, DROPPED};

/// The server closes a connection after this long without data.
const IDLE: Duration = Duration::from_secs(10);

/// An FTP server's reply if it can't reach the client's data port (RFC 959).
pub const NO_DATA_CONNECTION: &str = "425";

/// A server that runs until dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    socket: Socket,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a TCP server that greets each client with a line, then reads and discards what it sends.
    pub fn tcp(netns: &Netns, address: SocketAddr) -> Result<Server> {
        Server::listen(netns, address, move |stream| greet(stream, address))
    }

    /// Starts an FTP server with what active mode needs: USER, PORT, LIST, QUIT. The data connection comes from the server's port 20, and
    /// only the client's kernel or something on the way can refuse it.
    pub fn ftp(netns: &Netns, address: SocketAddr) -> Result<Server> {
        let inside = Arc::new(netns.try_clone()?);
        Server::listen(netns, address, move |stream| ftp(&inside, stream))
    }

    /// Starts a DNS server that answers A queries for `names`, and other queries with NXDOMAIN.
    pub fn dns(netns: &Netns, address: SocketAddr, names: &[(&str, Ipv4Addr)]) -> Result<Server> {
        let socket = netns.run(|| UdpSocket::bind(address)).with_context(|| format!("bind UDP {address}"))?;
        let names: Vec<_> = names.iter().map(|(name, ip)| (wire_name(name), *ip)).collect();
        let control = Socket::from(socket.try_clone()?);
        Server::spawn(address, control, move |stop| {
            let mut query = [0; 512];
            while let Some((length, client)) = receive(&socket, &mut query) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(answer) = dns_answer(&query[..length], &names) {
                    // The client may be gone, or asks again.
                    let _ = socket.send_to(&answer, client);
                }
            }
        })
    }

    /// Starts a server that answers the n-th datagram with the n-th of `answers`, and begins again at the end. It puts the two bytes of the
    /// DNS query's id in front.
    pub fn udp_answers(netns: &Netns, address: SocketAddr, answers: Vec<Vec<u8>>) -> Result<Server> {
        let socket = netns.run(|| UdpSocket::bind(address)).with_context(|| format!("bind UDP {address}"))?;
        let control = Socket::from(socket.try_clone()?);
        Server::spawn(address, control, move |stop| {
            let mut query = [0; 512];
            let mut next = answers.iter().cycle();
            while let Some((length, client)) = receive(&socket, &mut query) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Some(id), Some(answer)) = (query[..length].first_chunk::<2>(), next.next()) else { continue };
                // The client may be gone, or asks again.
                let _ = socket.send_to(&[id, answer.as_slice()].concat(), client);
            }
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(
        netns: &Netns,
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
    ) -> Result<Server> {
        let socket = netns.run(|| listener(address)).with_context(|| format!("listen on {address}"))?;
        let control = socket.try_clone()?;
        let listener = TcpListener::from(socket);
        Server::spawn(address, control, move |stop| {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let serve = serve.clone();
                // A client may close early; its side of the test reports it.
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(IDLE));
                    serve(stream)
                });
            }
        })
    }

    fn spawn(
        address: SocketAddr,
        socket: Socket,
        work: impl FnOnce(Arc<AtomicBool>) + Send + 'static,
    ) -> Result<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::Builder::new().name(format!("server {address}")).spawn(move || work(flag))?;
        Ok(Server { address, socket, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes accept and recv. An unconnected UDP socket returns ENOTCONN and wakes all the same.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The next datagram and its sender; `None` once the socket is shut down. std takes an answer without a sender for a bug.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    let (length, sender) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer).ok()?;
    let sender = sender?;
    let ipv4 = sender.as_sockaddr_in().map(|sender| SocketAddr::V4((*sender).into()));
    let sender = ipv4.or(sender.as_sockaddr_in6().map(|sender| SocketAddr::V6((*sender).into())))?;
    Some((length, sender))
}

fn listener(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket)
}

fn greet(mut stream: TcpStream, address: SocketAddr) -> io::Result<()> {
    writeln!(stream, "hello from {address}")?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

fn ftp(netns: &Netns, stream: TcpStream) -> io::Result<()> {
    let mut control = stream.try_clone()?;
    let own = stream.local_addr()?.ip();
    let mut data = None;
    writeln!(control, "220 ready\r")?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let (command, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let reply = match command {
            "USER" => "230 logged in",
            "PORT" => match parse_port(argument) {
                Some(address) => {
                    data = Some(address);
                    "200 PORT command successful"
                }
                None => "501 not an address",
            },
            "LIST" => match data.take() {
                Some(address) => {
                    writeln!(control, "150 opening data connection\r")?;
                    match netns.run(|| send_list(own, address)) {
                        Ok(()) => "226 transfer complete",
                        Err(_) => "425 can't open data connection",
                    }
                }
                None => "503 PORT first",
            },
            "QUIT" => {
                writeln!(control, "221 goodbye\r")?;
                return Ok(());
            }
            _ => "502 not implemented",
        };
        writeln!(control, "{reply}\r")?;
    }
    Ok(())
}

fn send_list(own: IpAddr, client: SocketAddr) -> io::Result<()> {
    let socket = traffic::bound(SocketAddr::new(own, 20))?;
    socket.connect_timeout(&client.into(), DROPPED)?;
    TcpStream::from(socket).write_all(b"README\r\n")
}

/// `10,244,1,11,156,64`: the address and port of the PORT command.
fn parse_port(argument: &str) -> Option<SocketAddr> {
    let numbers: Vec<u8> = argument.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
    let &[a, b, c, d, high, low] = numbers.as_slice() else { return None };
    Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
}

/// A domain name in DNS's wire format: each label after its length.
pub fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.') {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

fn dns_answer(query: &[u8], names: &[(Vec<u8>, Ipv4Addr)]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A_IN: [u8; 4] = [0, 1, 0, 1];
    let question = query.get(HEADER..)?;
    let known = names.iter().find(|(name, _)| question.starts_with(name) && question[name.len()..].starts_with(&A_IN));
    let mut answer = query.to_vec();
    // A recursive answer; RCODE 3 (NXDOMAIN) for a name that is not known.
    answer[2..4].copy_from_slice(&[0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    if let Some((_, ip)) = known {
        answer[6..8].copy_from_slice(&[0, 1]);
        // The question's name, A, IN, 30 s, four bytes.
        answer.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        answer.extend_from_slice(&ip.octets());
    }
    Some(answer)
}
