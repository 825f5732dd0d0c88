//! Attaches the programs to pods' interfaces as they come, and takes them off again.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError as AyaTcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};

use super::interfaces::Interfaces;
use super::{FROM_POD_PROGRAM, Mode, TO_POD_PROGRAM, TcError};
use crate::kernel::errors::{chain, short};
use crate::netlink::route::{self, Change, Follow, Link};

/// Priority and handle of our clsact filters. The handle says whether the qdisc is ours too: a later start must know.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6e70);
const HANDLE_OWN_QDISC: TcHandle = TcHandle::new(0, 0x6e71);
/// For so long the programs follow connections after the last renewal.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(2);
/// How long the follower may be deaf to a stop.
const WAIT: Duration = Duration::from_millis(100);
/// What could not be attached is tried again this often.
const RETRY: Duration = Duration::from_secs(10);
const SIDES: [(TcAttachType, &str, u32); 2] =
    [(TcAttachType::Ingress, FROM_POD_PROGRAM, route::INGRESS), (TcAttachType::Egress, TO_POD_PROGRAM, route::EGRESS)];

/// The loaded programs and where they are attached.
pub struct Attacher {
    ebpf: Ebpf,
    lease: Array<MapData, u64>,
    mode: Mode,
    follow: Follow,
    attached: HashMap<u32, Attached>,
    interfaces: Arc<Interfaces>,
}

/// Both programs on one interface.
struct Attached {
    link: Link,
    programs: Vec<SchedClassifierLink>,
    own_qdisc: bool,
}

impl Attacher {
    pub(super) fn new(mut ebpf: Ebpf, lease: Array<MapData, u64>, mode: Mode) -> Result<Attacher, TcError> {
        let mut programs = Vec::new();
        for (side, name, _) in SIDES {
            let info = program(&mut ebpf, name)
                .map_err(TcError::Refused)?
                .info()
                .map_err(|error| TcError::Refused(chain(&error)))?;
            programs.push((side, info.id()));
        }
        // Before the first look, so that no interface falls between.
        let follow = Follow::new()?;
        let interfaces = Arc::new(Interfaces::new(mode, programs)?);
        let mut attacher = Attacher { ebpf, lease, mode, follow, attached: HashMap::new(), interfaces };
        if mode == Mode::Clsact {
            for removed in cleanup()? {
                tracing::info!("{removed}: left by an agent that was killed, removed");
            }
        }
        attacher.renew()?;
        attacher.take_stock()?;
        Ok(attacher)
    }

    pub fn interfaces(&self) -> Arc<Interfaces> {
        self.interfaces.clone()
    }

    /// Follows the interfaces until told to stop, then detaches everywhere.
    pub fn run(mut self, stop: &AtomicBool) {
        let (mut renewed, mut retried) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Acquire) {
            wait(self.follow.as_raw_fd());
            let outcome = match self.follow.changes() {
                Ok(changes) => {
                    changes.into_iter().for_each(|change| self.apply(change));
                    Ok(())
                }
                // Too many at once: some were lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.take_stock(),
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
                if let Err(error) = self.take_stock() {
                    tracing::warn!(%error, "interfaces can't be listed");
                }
            }
        }
        self.interfaces.look_for_others();
        for (_, attached) in self.attached.drain() {
            detach(attached);
        }
    }

    /// Compares with what interfaces there are now.
    fn take_stock(&mut self) -> io::Result<()> {
        let links = route::links()?;
        let gone: Vec<u32> =
            self.interfaces.indexes().into_iter().filter(|index| !links.iter().any(|l| l.index == *index)).collect();
        gone.into_iter().for_each(|index| self.apply(Change::Gone(index)));
        links.into_iter().for_each(|link| self.apply(Change::Is(link)));
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Is(link) if link.is_pods() => {
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
            Change::Is(link) => self.forget(link.index, true),
            // With the interface everything on it has gone.
            Change::Gone(index) => self.forget(index, false),
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

    fn attach(&mut self, link: &Link) -> Result<Attached, String> {
        let own_qdisc = self.mode == Mode::Clsact && add_clsact(&link.name)?;
        let mut attached = Attached { link: link.clone(), programs: Vec::new(), own_qdisc };
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
            // A program that decides hides the packet from those behind it.
            Mode::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Mode::Clsact => TcAttachOptions::Netlink(NlOptions {
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
            Mode::Tcx => u64::MAX,
            Mode::Clsact => crate::kernel::clock::monotonic_ns() + LEASE.as_nanos() as u64,
        };
        self.lease.set(0, until, 0).map_err(io::Error::other)
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the object has no program {name}"))
}

/// Whether a clsact qdisc was made; false when there was one.
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

fn detach(attached: Attached) {
    let Attached { link, programs, own_qdisc } = attached;
    // Detaches each.
    drop(programs);
    if own_qdisc {
        remove_empty_clsact(&link);
    }
}

/// Removes the qdisc when nobody has put a filter there meanwhile.
fn remove_empty_clsact(link: &Link) -> bool {
    let empty = SIDES.iter().all(|(.., parent)| route::filters(link.index, *parent).is_ok_and(|f| f.is_empty()));
    empty && route::remove_clsact(link.index).is_ok()
}

/// Removes our clsact filters, and qdiscs that we made and nobody else uses, from every pod's interface of this network
/// namespace. Says what was removed. Not for use beside a running agent: its filters go too.
///
/// # Errors
/// The interfaces can't be listed.
pub fn cleanup() -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for link in route::links()?.into_iter().filter(Link::is_pods) {
        let mut own_qdisc = false;
        for (side, name, parent) in SIDES {
            let filters = route::filters(link.index, parent).unwrap_or_default();
            let Some(filter) = filters.iter().find(|filter| filter.name == name) else { continue };
            own_qdisc |= filter.handle == u32::from(HANDLE_OWN_QDISC);
            match tc::qdisc_detach_program(&link.name, side, name) {
                Ok(()) => removed.push(format!("tc filter {name} on {}", link.name)),
                Err(error) => tracing::warn!(interface = link.name, error = chain(&error), "{name} can't be removed"),
            }
        }
        if own_qdisc && remove_empty_clsact(&link) {
            removed.push(format!("clsact qdisc on {}", link.name));
        }
    }
    Ok(removed)
}

fn wait(fd: i32) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd. EINTR and errors end the wait early, which is harmless.
    unsafe { libc::poll(&mut poll, 1, WAIT.as_millis() as i32) };
}

/// Names of programs and filters that see packets of `link` before ours do.
pub(super) fn before_ours(link: &Link, mode: Mode, side: TcAttachType, own: u32) -> Vec<String> {
    match mode {
        Mode::Tcx => {
            let Ok((_, programs)) = SchedClassifier::query_tcx(&link.name, side) else { return Vec::new() };
            let Some(at) = programs.iter().position(|program| program.id() == own) else { return Vec::new() };
            let name = |program: &aya::programs::ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
            programs.iter().take(at).map(name).collect()
        }
        Mode::Clsact => {
            let (_, own, parent) = SIDES[usize::from(side == TcAttachType::Egress)];
            let filters = route::filters(link.index, parent).unwrap_or_default();
            let at = filters.iter().position(|filter| filter.name == own).unwrap_or(0);
            filters.iter().take(at).map(|f| if f.name.is_empty() { f.kind.clone() } else { f.name.clone() }).collect()
        }
    }
}
