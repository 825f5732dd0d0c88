//! Forwards connections from a node's network namespace to the API server, at the same loopback address in both.
//!
//! This needs no interface, route or rule in the machine's own namespace.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use socket2::Socket;

use crate::netns::Netns;

/// Listens in a namespace until it is dropped.
#[derive(Debug)]
pub struct Relay {
    socket: Socket,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Forwards connections to `address` inside `netns` to `address` here.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Relay> {
        let listener = netns.run(|| TcpListener::bind(address)).with_context(|| format!("listen on {address}"))?;
        let socket = Socket::from(listener.try_clone()?);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // This thread, and so the sockets that it makes, are in the caller's namespace.
        let thread = thread::Builder::new().name(format!("relay {address}")).spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // If nothing listens here, the client's connection is closed, and the client tries again.
                let pair = client.and_then(|client| Ok((client, TcpStream::connect(address)?)));
                if let Ok((client, server)) = pair {
                    let _ = forward(&client, &server);
                }
            }
        })?;
        Ok(Relay { socket, stop, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Forwards both directions, and passes on each sender's end.
fn forward(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let forwarded = io::copy(&mut from, &mut to);
            // After an error both directions end. Either socket may be closed already.
            let how = if forwarded.is_ok() { Shutdown::Write } else { Shutdown::Both };
            let _ = to.shutdown(how);
            if forwarded.is_err() {
                let _ = from.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}
