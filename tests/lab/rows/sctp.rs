//! SCTP associations of the kernel's sockets: refused at their INIT, or cut later.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY_STATELESS, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, drops};
use netpol_trace_tests::row::{Row, policy};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{PATIENCE, require, test_name};
use socket2::{Domain, Protocol, Socket, Type};

/// The port that the policy allows, and one that it doesn't.
const OPEN: u16 = 5000;
const CLOSED: u16 = 5001;
/// Shorter than the first retransmission of an INIT (3 s).
const ONE_INIT: Duration = Duration::from_millis(300);

/// An enforcer's rules for the policy of [`allow`]; `verdict` ends what it does not allow.
fn rules(verdict: &str) -> String {
    format!(
        "table inet network-policy {{
	counter denied {{ }}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ip daddr {SERVER} sctp dport {OPEN} accept
		ip6 daddr {SERVER6} sctp dport {OPEN} accept
		ip daddr {SERVER} counter name denied {verdict}
		ip6 daddr {SERVER6} counter name denied {verdict}
	}}
}}"
    )
}

/// Allows SCTP to [`OPEN`] of the server.
fn allow() -> String {
    netpol_trace_tests::pair::policy("allow-sctp", "server")
        + &format!("  ingress:\n  - ports:\n    - protocol: SCTP\n      port: {OPEN}\n")
}

/// A socket bound to one address.
fn bound(row: &Row, host: &str, address: SocketAddr) -> Result<Socket> {
    let made = row.pair.lab.host(host)?.netns.run(|| -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::SCTP))?;
        socket.bind(&address.into())?;
        // Closing aborts, so that no packets follow after the row has counted.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(socket)
    });
    match made {
        Ok(socket) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Err(missing("this kernel has no SCTP")),
        Err(error) => Err(error).with_context(|| format!("an SCTP socket at {address}")),
    }
}

/// Both families' client and server addresses; the clients' ports are fixed.
fn ends(port: u16) -> [(SocketAddr, SocketAddr); 2] {
    let end = |client: IpAddr, server: IpAddr| (SocketAddr::new(client, 40000), SocketAddr::new(server, port));
    [end(CLIENT.into(), SERVER.into()), end(CLIENT6.into(), SERVER6.into())]
}

/// Every record names SCTP and its ports, and its verdict is `denied`.
fn named(records: &[&Record], port: u16) -> Result<()> {
    for record in records {
        ensure!(record.text("/network/transport") == "sctp", "{record}");
        ensure!(record.number("/source/port") == Some(40000), "{record}");
        ensure!(record.number("/destination/port") == Some(u64::from(port)), "{record}");
        ensure!(record.text("/verdict/result") == "denied", "{record}");
    }
    Ok(())
}

/// An association to the allowed port is established; the INIT of another is dropped or rejected.
fn init(test: &'static str, verdict: &str, action: &'static str) -> Result<()> {
    let mut row = Row::new(test)?;
    row.pair.add_policy(&allow())?;
    row.pair.lab.enforce(&rules(verdict))?;
    row.watch()?;
    for (from, to) in ends(CLOSED) {
        let listener = bound(&row, "server", SocketAddr::new(to.ip(), OPEN))?;
        listener.listen(1)?;
        let allowed = bound(&row, "client", SocketAddr::new(from.ip(), 40001))?;
        allowed
            .connect_timeout(&SocketAddr::new(to.ip(), OPEN).into(), PATIENCE)
            .context("the port that is allowed")?;
        let refused = bound(&row, "client", from)?;
        // Without linger, closing sends no ABORT, which would belong to no connection of conntrack.
        refused.set_linger(None)?;
        ensure!(refused.connect_timeout(&to.into(), ONE_INIT).is_err(), "an association with {to} came up");
        row.note(from, to);
    }
    let counted = row.pair.counted("denied")?;
    ensure!(counted >= 2, "{counted} packets were denied");
    let (pair, run) = row.finish(policy("nftables", "forward", action), counted)?;
    let mine: Vec<&Record> = drops(&run.records).filter(|r| pair.lab.owns(r) && r.cause() == "policy").collect();
    named(&mine, CLOSED)?;
    // The rule for the other port comes closest.
    let near = mine.iter().all(|record| record.value()["verdict"].to_string().contains("allow-sctp"));
    ensure!(near, "no word of the policy for SCTP: {mine:?}");
    Ok(())
}

#[test]
fn sctp_init_dropped() -> Result<()> {
    require!(init(test_name!(), "drop", "drop"));
    Ok(())
}

#[test]
fn sctp_init_rejected() -> Result<()> {
    require!(init(test_name!(), "reject", "reject"));
    Ok(())
}

/// An association that exists when the policy comes: the client's later packets are dropped.
#[test]
fn sctp_association_cut() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    let mut associations = Vec::new();
    for (from, to) in ends(OPEN) {
        let listener = require!(bound(&row, "server", to));
        listener.listen(1)?;
        let client = require!(bound(&row, "client", from));
        client.connect_timeout(&to.into(), PATIENCE).context("no association without rules")?;
        let (server, _) = listener.accept()?;
        server.set_linger(Some(Duration::ZERO))?;
        (&client).write_all(b"before")?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
        ensure!(server.recv(&mut buffer)? == 6, "what was sent before the policy");
        row.note(from, to);
        associations.push((listener, server, client));
    }
    row.pair.lab.enforce(DENY_STATELESS)?;
    row.watch()?;
    for (_, _, client) in &associations {
        (&*client).write_all(b"after")?;
    }
    row.seen(2)?;
    // The server closes first: its ABORT ends the client's side too, without retransmissions.
    for (listener, server, client) in associations {
        drop((listener, server));
        drop(client);
    }
    let counted = row.pair.counted("denied")?;
    let (pair, run) = row.finish(policy("nftables", "forward", "drop"), counted)?;
    let mine: Vec<&Record> = drops(&run.records).filter(|r| pair.lab.owns(r) && r.cause() == "policy").collect();
    named(&mine, OPEN)
}
