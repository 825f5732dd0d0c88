//! A receiver of OTLP over HTTP or HTTPS that keeps the requests and answers as the test says.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// An answer: the rest of its status line, further headers, and a body.
pub type Answer = (&'static str, &'static str, &'static [u8]);

pub const OK: Answer = ("200 OK", "", b"");

#[derive(Debug, Default)]
struct State {
    /// Answers to the next requests. Later requests get [`OK`].
    answers: Vec<Answer>,
    taken: Vec<Vec<u8>>,
    heads: Vec<String>,
}

#[derive(Debug)]
pub struct Collector {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Collector {
    pub fn start(answers: &[Answer]) -> Result<Collector> {
        Collector::listen(answers, None)
    }

    /// Starts one with the certificate that [`certificates`] has made in this folder.
    pub fn start_tls(folder: &Path) -> Result<Collector> {
        let certificate = CertificateDer::from_pem_file(folder.join("server.pem"))?;
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Collector::listen(&[], Some(Arc::new(config)))
    }

    fn listen(answers: &[Answer], tls: Option<Arc<ServerConfig>>) -> Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let state = Arc::new(Mutex::new(State { answers: answers.to_vec(), ..State::default() }));
        let collector = Collector { address: listener.local_addr()?, state: state.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (state.clone(), tls.clone());
                // A client may close the connection.
                thread::spawn(move || -> Result<()> {
                    match tls {
                        None => serve(stream, &state),
                        Some(tls) => serve(StreamOwned::new(ServerConnection::new(tls)?, stream), &state),
                    }
                });
            }
        });
        Ok(collector)
    }

    /// The bodies of the requests that got 200, and the heads of all requests.
    pub fn taken(&self) -> (Vec<Vec<u8>>, Vec<String>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.taken.clone(), state.heads.clone())
    }
}

fn serve(stream: impl Read + Write, state: &Mutex<State>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let answer = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.heads.push(head);
            let answer = if state.answers.is_empty() { OK } else { state.answers.remove(0) };
            if answer.0.starts_with("200") {
                state.taken.push(body);
            }
            answer
        };
        let (status, headers, body) = answer;
        let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
        let writer = reader.get_mut();
        writer.write_all(head.as_bytes())?;
        writer.write_all(body)?;
        writer.flush()?;
    }
}

/// Makes a certificate authority and a certificate for 127.0.0.1: `ca.pem`, `server.pem`, `server.key`.
pub fn certificates(folder: &Path) -> Result<()> {
    fs::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n")?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["-subj", "/CN=netpol-trace tests", "-days", "1", "-keyout", "ca.key", "-out", "ca.pem"];
    let request = ["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"];
    let sign = ["-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1"];
    for arguments in [
        [&["req", "-x509"][..], &key, &ca].concat(),
        [&["req"][..], &key, &request].concat(),
        [&["x509", "-req"][..], &sign, &["-extfile", "server.ext", "-out", "server.pem"]].concat(),
    ] {
        let made = Command::new("openssl").args(&arguments).current_dir(folder).output()?;
        ensure!(made.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}
