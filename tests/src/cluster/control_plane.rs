//! etcd and kube-apiserver on free loopback ports, with keys, tokens and data in one folder.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::api::Api;
use super::daemon::{Daemon, Lifetime};
use super::{built, programs};
use crate::eventually;

/// Attempts to start: another program may take a port that was found free.
const TRIES: usize = 3;

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    address: SocketAddr,
    etcd_address: SocketAddr,
    lifetime: Lifetime,
    api: Api,
    pub etcd: Daemon,
    pub server: Daemon,
}

impl ControlPlane {
    /// Starts both in `dir` and waits until the server is ready.
    pub fn start(dir: &Path, lifetime: Lifetime) -> Result<ControlPlane> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
        write_secrets(dir)?;
        let mut tries = 1..=TRIES;
        loop {
            match ControlPlane::try_start(dir, lifetime) {
                Err(error) if tries.next() < Some(TRIES) && format!("{error:#}").contains("address already in use") => {
                }
                result => return result,
            }
        }
    }

    fn try_start(dir: &Path, lifetime: Lifetime) -> Result<ControlPlane> {
        let [address, etcd_address, peers] = free_ports()?;
        let etcd = start_etcd(dir, etcd_address, peers, lifetime)?;
        let started = || -> Result<(Daemon, Api)> {
            let server = start_server(dir, address, etcd_address, lifetime)?;
            let api = wait_until_ready(dir, address, &etcd, &server);
            if api.is_err() {
                let _ = server.kill();
            }
            Ok((server, api?))
        };
        match started() {
            Ok((server, api)) => {
                Ok(ControlPlane { dir: dir.to_owned(), address, etcd_address, lifetime, api, etcd, server })
            }
            Err(error) => {
                let _ = etcd.kill();
                let _ = fs::remove_dir_all(dir.join("etcd"));
                Err(error)
            }
        }
    }

    /// A client with all rights.
    pub fn api(&self) -> &Api {
        &self.api
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// etcd's address for clients, without TLS.
    pub fn etcd_address(&self) -> SocketAddr {
        self.etcd_address
    }

    /// The folder with the keys, logs and data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join(KUBECONFIG)
    }

    /// Creates a namespace with these labels.
    pub fn namespace(&self, name: &str, labels: &Value) -> Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.api.apply(&object).map(drop)
    }

    /// Writes a kubeconfig with another token, such as a ServiceAccount's, into the folder.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> Result<PathBuf> {
        write_kubeconfig(&self.dir, &format!("{name}.kubeconfig"), self.address, token)
    }

    /// Writes a kubeconfig with a ServiceAccount's token, valid for an hour.
    pub fn account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.api.post(&path, &request)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str).context("a token")?;
        self.kubeconfig_with(&format!("{namespace}-{name}"), token)
    }

    /// Kills the API server, starts it again on the same port with the same data, and waits until it is ready.
    pub fn restart_server(&mut self) -> Result<()> {
        self.server.kill()?;
        self.server = start_server(&self.dir, self.address, self.etcd_address, self.lifetime)?;
        wait_until_ready(&self.dir, self.address, &self.etcd, &self.server).map(drop)
    }

    /// The list of processes that [`stop`] reads.
    pub fn write_processes(&self) -> Result<()> {
        let lines: String = [&self.etcd, &self.server].map(Daemon::line).concat();
        fs::write(self.dir.join(PROCESSES), lines).context("write the list of processes")
    }
}

/// Reads the processes of the control plane that was started in `dir` and left running.
pub fn running(dir: &Path) -> Result<Vec<Daemon>> {
    let path = dir.join(PROCESSES);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
    let daemons = text.lines().map(Daemon::parse).collect::<Result<Vec<_>>>();
    let daemons = daemons.with_context(|| format!("{}", path.display()))?;
    Ok(daemons.into_iter().filter(Daemon::is_alive).collect())
}

/// Stops the control plane in `dir` and removes the folder. Returns the processes that it stopped.
pub fn stop(dir: &Path) -> Result<Vec<Daemon>> {
    let mut daemons = running(dir)?;
    // The server before its database.
    daemons.reverse();
    daemons.iter().try_for_each(Daemon::stop)?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(daemons),
    }
}

pub const KUBECONFIG: &str = "kubeconfig";
const PROCESSES: &str = "processes";
const TOKEN: &str = "admin.token";
const TOKENS: &str = "tokens.csv";
const ACCOUNT_KEY: &str = "service-accounts.key";
const ACCOUNT_PUBLIC_KEY: &str = "service-accounts.pub";
/// The folder in which the server makes its own certificate on its first start.
const CERTIFICATES: &str = "certificates";

/// Makes the administrator's token and the key that signs ServiceAccounts' tokens.
fn write_secrets(dir: &Path) -> Result<()> {
    let random = SystemRandom::new();
    let mut bytes = [0u8; 24];
    random.fill(&mut bytes).ok().context("no random numbers")?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_secret(&dir.join(TOKENS), &format!("{token},admin,admin,system:masters\n"))?;
    write_secret(&dir.join(TOKEN), &token)?;
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok().context("no key")?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).ok();
    let point = pair.context("the key just made is one")?.public_key().as_ref().to_vec();
    write_secret(&dir.join(ACCOUNT_KEY), &pem("PRIVATE KEY", key.as_ref()))?;
    write_secret(&dir.join(ACCOUNT_PUBLIC_KEY), &pem("PUBLIC KEY", &[P256_HEADER, &point].concat()))
}

/// The bytes before the point in a public key of curve P-256 (RFC 5480: SubjectPublicKeyInfo in DER).
const P256_HEADER: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", lines.collect::<String>())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let write = || -> std::io::Result<()> { file?.write_all(text.as_bytes()) };
    write().with_context(|| format!("write {}", path.display()))
}

fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    // All listeners stay open until the last port is found, so that the ports differ.
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?);
    }
    let addresses = held.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    addresses.try_into().ok().context("as many as were asked for")
}

fn start_etcd(dir: &Path, clients: SocketAddr, peers: SocketAddr, lifetime: Lifetime) -> Result<Daemon> {
    let arguments = [
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://{clients}"),
        format!("--advertise-client-urls=http://{clients}"),
        format!("--listen-peer-urls=http://{peers}"),
        format!("--initial-advertise-peer-urls=http://{peers}"),
        format!("--initial-cluster=default=http://{peers}"),
        "--log-level=warn".into(),
        // The data need not survive a power failure.
        "--unsafe-no-fsync".into(),
    ];
    Daemon::start(&built(&programs::ETCD)?, &arguments, &dir.join("etcd.log"), lifetime, None)
}

fn start_server(dir: &Path, address: SocketAddr, etcd: SocketAddr, lifetime: Lifetime) -> Result<Daemon> {
    let file = |name: &str| dir.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://{etcd}"),
        format!("--bind-address={}", address.ip()),
        format!("--advertise-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        // No endpoints for the service `kubernetes`: a loopback address can't be one.
        "--endpoint-reconciler-type=none".into(),
        format!("--cert-dir={}", file(CERTIFICATES)),
        format!("--token-auth-file={}", file(TOKENS)),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file(ACCOUNT_PUBLIC_KEY)),
        format!("--service-account-signing-key-file={}", file(ACCOUNT_KEY)),
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112".into(),
        // No controller makes the ServiceAccount `default` here, and the tests create pods without it.
        "--disable-admission-plugins=ServiceAccount".into(),
        "--allow-privileged=true".into(),
    ];
    Daemon::start(&built(&programs::API_SERVER)?, &arguments, &dir.join("kube-apiserver.log"), lifetime, None)
}

fn wait_until_ready(dir: &Path, address: SocketAddr, etcd: &Daemon, server: &Daemon) -> Result<Api> {
    let token = fs::read_to_string(dir.join(TOKEN)).context("read the token")?;
    let mut api = None;
    eventually("the API server's readiness", || {
        etcd.check()?;
        server.check()?;
        // The server writes the key after the certificate: once the key is there, the certificate is complete.
        if !dir.join(CERTIFICATES).join("apiserver.key").exists() {
            return Ok(None);
        }
        let api = match &api {
            Some(api) => api,
            None => api.insert(Api::connect(&write_kubeconfig(dir, KUBECONFIG, address, &token)?)?),
        };
        // The connection is refused until the server listens, then /readyz fails until it has started.
        Ok(api.text("/readyz").ok().filter(|answer| answer == "ok"))
    })?;
    api.context("a client")
}

fn write_kubeconfig(dir: &Path, name: &str, address: SocketAddr, token: &str) -> Result<PathBuf> {
    let certificate = dir.join(CERTIFICATES).join("apiserver.crt");
    let certificate = fs::read(&certificate).with_context(|| format!("read {}", certificate.display()))?;
    if certificate.is_empty() {
        bail!("the API server's certificate is empty");
    }
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: netpol-trace
  cluster:
    server: https://{address}
    certificate-authority-data: {}
users:
- name: user
  user:
    token: {token}
contexts:
- name: netpol-trace
  context:
    cluster: netpol-trace
    user: user
current-context: netpol-trace
",
        BASE64_STANDARD.encode(certificate)
    );
    let path = dir.join(name);
    write_secret(&path, &text)?;
    Ok(path)
}
