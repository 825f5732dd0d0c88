//! Attaches the programs to pods' interfaces as they appear, and detaches them.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError as AyaTcError};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};

use super::cleanup::{cleanup, remove_empty_clsact};
use super::interfaces::Interfaces;
use super::mode::{HANDLE, HANDLE_OWN_QDISC, PRIORITY, SIDES, TcError, TcMode};
use crate::kernel::errors::{chain, short};
use crate::netlink::route::{self, Link, LinkChange, LinkMonitor};

/// The programs record new connections for this time after the last renewal.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(2);
/// The longest wait for a change of an interface, and so the delay of a stop.
const WAIT: Duration = Duration::from_millis(100);
/// The interval between attempts to attach to interfaces that failed.
const RETRY: Duration = Duration::from_secs(10);

/// The loaded programs and where they are attached.
pub struct Attacher {
    ebpf: Ebpf,
    lease: Array<MapData, u64>,
    mode: TcMode,
    monitor: LinkMonitor,
    attached: HashMap<u32, WatchedInterface>,
    interfaces: Arc<Interfaces>,
}

/// Both programs on one interface.
struct WatchedInterface {
    link: Link,
    programs: Vec<SchedClassifierLink>,
    own_qdisc: bool,
}

impl Attacher {
    pub(super) fn new(mut ebpf: Ebpf, lease: Array<MapData, u64>, mode: TcMode) -> Result<Attacher, TcError> {
        let mut programs = Vec::new();
        for (side, name, _) in SIDES {
            let info = program(&mut ebpf, name)
                .map_err(TcError::Refused)?
                .info()
                .map_err(|error| TcError::Refused(chain(&error)))?;
            programs.push((side, info.id()));
        }
        // Before the interfaces are listed, so that none is missed.
        let monitor = LinkMonitor::new()?;
        let interfaces = Arc::new(Interfaces::new(mode, programs)?);
        let mut attacher = Attacher { ebpf, lease, mode, monitor, attached: HashMap::new(), interfaces };
        if mode == TcMode::Clsact {
            for removed in cleanup()? {
                tracing::info!("{removed}: removed, an agent that was killed had left it");
            }
        }
        attacher.renew()?;
        attacher.list()?;
        Ok(attacher)
    }

    pub fn interfaces(&self) -> Arc<Interfaces> {
        self.interfaces.clone()
    }

    /// Follows the interfaces until `stop` is set, then detaches everywhere.
    pub fn run(mut self, stop: &AtomicBool) {
        let (mut renewed, mut retried) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Acquire) {
            wait(self.monitor.as_raw_fd());
            let outcome = match self.monitor.changes() {
                Ok(changes) => {
                    changes.into_iter().for_each(|change| self.apply(change));
                    Ok(())
                }
                // The socket's buffer overflowed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.list(),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "changes of interfaces can't be read");
            }
            if renewed.elapsed() > RENEWAL {
                renewed = Instant::now();
                if let Err(error) = self.renew() {
                    tracing::warn!(%error, "the tc programs' lease can't be renewed");
                }
            }
            if retried.elapsed() > RETRY && self.interfaces.has_failed() {
                retried = Instant::now();
                if let Err(error) = self.list() {
                    tracing::warn!(%error, "interfaces can't be listed");
                }
            }
        }
        self.interfaces.look_for_others();
        for (_, attached) in self.attached.drain() {
            detach(attached);
        }
    }

    /// Lists the interfaces and applies the differences.
    fn list(&mut self) -> io::Result<()> {
        let links = route::links()?;
        let gone: Vec<u32> =
            self.interfaces.indexes().into_iter().filter(|index| !links.iter().any(|l| l.index == *index)).collect();
        gone.into_iter().for_each(|index| self.apply(LinkChange::Gone(index)));
        links.into_iter().for_each(|link| self.apply(LinkChange::Is(link)));
        Ok(())
    }

    fn apply(&mut self, change: LinkChange) {
        match change {
            LinkChange::Is(link) if link.is_pods() => {
                if let Some(attached) = self.attached.get_mut(&link.index) {
                    attached.link = link.clone();
                    self.interfaces.renamed(link);
                    return;
                }
                let attached = self.attach(&link);
                let error = attached.as_ref().err().cloned();
                if let Some(error) = &error {
                    tracing::debug!(interface = link.name, error, "tc programs not attached");
                }
                self.interfaces.insert(link.clone(), error);
                if let Ok(attached) = attached {
                    self.attached.insert(link.index, attached);
                }
            }
            LinkChange::Is(link) => self.forget(link.index, true),
            // The kernel has detached everything with the interface.
            LinkChange::Gone(index) => self.forget(index, false),
        }
    }

    fn forget(&mut self, index: u32, exists: bool) {
        self.interfaces.remove(index);
        if let Some(attached) = self.attached.remove(&index)
            && exists
        {
            detach(attached);
        }
    }

    fn attach(&mut self, link: &Link) -> Result<WatchedInterface, String> {
        let own_qdisc = self.mode == TcMode::Clsact && add_clsact(&link.name)?;
        let mut attached = WatchedInterface { link: link.clone(), programs: Vec::new(), own_qdisc };
        for (side, name, _) in SIDES {
            match self.attach_one(link, side, name, own_qdisc) {
                Ok(program) => attached.programs.push(program),
                Err(error) => {
                    detach(attached);
                    return Err(error);
                }
            }
        }
        Ok(attached)
    }

    fn attach_one(
        &mut self,
        link: &Link,
        side: TcAttachType,
        name: &str,
        own_qdisc: bool,
    ) -> Result<SchedClassifierLink, String> {
        let program = program(&mut self.ebpf, name)?;
        let options = match self.mode {
            // Another program's verdict would hide packets from later programs.
            TcMode::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            TcMode::Clsact => TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: if own_qdisc { HANDLE_OWN_QDISC } else { HANDLE },
                classid: None,
            }),
        };
        let attach = |program: &mut SchedClassifier| -> Result<SchedClassifierLink, ProgramError> {
            let id = program.attach_with_options(&link.name, side, options)?;
            program.take_link(id)
        };
        attach(program).map_err(|error| short(&chain(&error)))
    }

    fn renew(&mut self) -> io::Result<()> {
        let until = match self.mode {
            // Links end with the process.
            TcMode::Tcx => u64::MAX,
            TcMode::Clsact => crate::kernel::clock::monotonic_ns() + LEASE.as_nanos() as u64,
        };
        self.lease.set(0, until, 0).map_err(io::Error::other)
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the object has no program {name}"))
}

/// Adds a clsact qdisc. Returns false if there was one.
fn add_clsact(name: &str) -> Result<bool, String> {
    let exists = |error: &AyaTcError| match error {
        AyaTcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        AyaTcError::AlreadyAttached => true,
        _ => false,
    };
    match tc::qdisc_add_clsact(name) {
        Ok(()) => Ok(true),
        Err(error) if exists(&error) => Ok(false),
        Err(error) => Err(short(&chain(&error))),
    }
}

fn detach(attached: WatchedInterface) {
    let WatchedInterface { link, programs, own_qdisc } = attached;
    // Dropping the links detaches the programs.
    drop(programs);
    if own_qdisc {
        remove_empty_clsact(&link);
    }
}

fn wait(fd: i32) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd. EINTR and errors end the wait early, which is harmless.
    unsafe { libc::poll(&mut poll, 1, WAIT.as_millis() as i32) };
}
