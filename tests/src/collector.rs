//! A receiver of OTLP over HTTP that keeps what it is sent, and can be told how to answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// An answer: its status line's rest, more headers, and a body.
pub type Answer = (&'static str, &'static str, &'static [u8]);

pub const OK: Answer = ("200 OK", "", b"");

#[derive(Debug, Default)]
struct State {
    /// What the next requests are answered with; then [`OK`].
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
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let state = Arc::new(Mutex::new(State { answers: answers.to_vec(), ..State::default() }));
        let collector = Collector { address: listener.local_addr()?, state: state.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                // A client that goes away is no matter here.
                thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Ok(collector)
    }

    /// The bodies that were answered with 200, and the heads of all requests.
    pub fn taken(&self) -> (Vec<Vec<u8>>, Vec<String>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.taken.clone(), state.heads.clone())
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
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
        writer.write_all(head.as_bytes())?;
        writer.write_all(body)?;
    }
}
