//! `tail` without an answer from the cluster: exit code 1, the reason on stderr, nothing on stdout.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::files::run;

/// Answers each request by its path. For `None` it does not answer and keeps the connection open.
fn server(answer: fn(&str) -> Option<(u16, String)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let path = path(&mut stream);
            if let Some((status, body)) = answer(&path) {
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
                let _ = write!(stream, "{head}Content-Type: application/json\r\n\r\n{body}");
            } else {
                open.push(stream);
            }
        }
    });
    port
}

fn path(stream: &mut TcpStream) -> String {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or_default().to_owned()
}

fn kubeconfig(folder: &Path, port: u16) -> PathBuf {
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, users: [{{name: u, user: {{token: t}}}}],\n\
         clusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}],\n\
         contexts: [{{name: x, context: {{cluster: c, user: u, namespace: \"\"}}}}]}}\n"
    );
    let path = folder.join("kubeconfig");
    std::fs::write(&path, text).unwrap();
    path
}

fn pods(items: &str) -> (u16, String) {
    (200, format!("{{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"items\":[{items}]}}"))
}

const AGENT: &str = r#"{"metadata":{"namespace":"netpol-trace","name":"a"},"spec":{"nodeName":"worker-1","containers":[{}]},"status":{"phase":"Running"}}"#;

/// An agent whose container's log holds no record, as with `--output file:`.
fn without_records(path: &str) -> (u16, String) {
    match path {
        _ if path.contains("/log?") => (200, "INFO attached\n".to_owned()),
        _ if path.starts_with("/api/v1/namespaces/netpol-trace/pods?") => pods(AGENT),
        _ => pods(""),
    }
}

#[test]
fn a_cluster_that_gives_no_answer_is_exit_code_1_and_named() {
    fn forbidden(_: &str) -> Option<(u16, String)> {
        let status =
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods is forbidden","code":403}"#;
        Some((403, status.to_owned()))
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (port, expected) in [
        (server(forbidden), "pods is forbidden"),
        (server(|_| Some(pods(""))), "no agent in namespace netpol-trace"),
        (server(|_| None), "the API server did not respond in 10 s"),
        (server(|path| Some(without_records(path))), "no record in its log; are its records written elsewhere?"),
        (closed, "Connection refused"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(dir.path(), port);
        let arguments = ["tail", "--kubeconfig", kubeconfig.to_str().unwrap()];
        let (stdout, stderr, code) = run(dir.path(), &arguments, b"");
        assert!(code == 1 && stdout.is_empty() && stderr.contains(expected), "{code}: {stderr}");
        let no_drops = stderr.contains("no drops");
        assert!(!no_drops || stderr.contains("namespace default; 0 of 1 agent answered"), "{stderr}");
    }
    // Within 30 s an agent may have no record of its own to write.
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(dir.path(), server(|path| Some(without_records(path))));
    let arguments = ["tail", "--since", "30s", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let (_, stderr, code) = run(dir.path(), &arguments, b"");
    assert!(code == 0 && stderr.contains("in the last 30 s; 1 of 1 agent answered"), "{code}: {stderr}");
}
