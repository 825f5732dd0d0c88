//! The hook on `kfree_skb`: which program it is, and what holds it there.

use std::io;

use anyhow::Context;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{BtfTracePoint, Program, ProgramError, ProgramFd, RawTracePoint};
use aya::{Btf, Ebpf};

use super::errors::{KernelError, cant_pin, program_error};
use super::object::program;
use super::pins::Pins;

/// Kept only to be dropped.
#[derive(Debug)]
#[allow(dead_code, reason = "the links detach when dropped")]
pub(super) enum Link {
    Held(FdLink, &'static str),
    /// Stays.
    Pinned(PinnedLink, &'static str),
}

impl Link {
    /// Pins the hook, unless it is pinned, so that it stays; and its program, whose recursion misses the next agent reads.
    pub(super) fn keep(self, pins: &Pins, ebpf: &mut Ebpf) -> Result<Link, KernelError> {
        let Link::Held(link, name) = self else { return Ok(self) };
        pins.forget_hook(name).map_err(cant_pin)?;
        let path = pins.program(name);
        let pinned = match ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.pin(path),
            Some(Program::RawTracePoint(program)) => program.pin(path),
            _ => Ok(()),
        };
        pinned.map_err(|error| cant_pin(io::Error::other(error)))?;
        link.pin(pins.link(name))
            .map(|link| Link::Pinned(link, name))
            .map_err(|error| cant_pin(io::Error::other(error)))
    }
}

/// The hook that the agent before this one has left.
pub(super) fn adopt(pins: &Pins) -> Option<(Link, Hook, ProgramFd)> {
    let name = pins.attached()?;
    let adopt = || -> anyhow::Result<_> {
        let link = PinnedLink::from_pin(pins.link(&name))?;
        let known = [DIRECT, COPY, RAW].into_iter().find(|known| *known == name);
        let known = known.with_context(|| format!("no program {name}"))?;
        Ok(if known == RAW {
            let program = RawTracePoint::from_pin(pins.program(&name))?;
            (Link::Pinned(link, known), Hook::RawTracepoint("as before".into()), program.fd()?.try_clone()?)
        } else {
            let program = BtfTracePoint::from_pin(pins.program(&name))?;
            (Link::Pinned(link, known), Hook::BtfTracepoint, program.fd()?.try_clone()?)
        })
    };
    let adopted =
        adopt().inspect_err(|error| tracing::warn!(%error, "the hook that was left attached can't be taken over"));
    if adopted.is_err()
        && let Err(error) = pins.forget_hook(&name)
    {
        // Beside this agent's own it would count everything twice.
        tracing::error!(%error, "and it can't be detached");
    }
    adopted.ok()
}

const TRACEPOINT: &str = "kfree_skb";

/// The programs, the better ones first.
const DIRECT: &str = "kfree_skb";
const COPY: &str = "kfree_skb_copy";
const RAW: &str = "kfree_skb_raw";

/// How the kernel let us attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    BtfTracepoint,
    /// With why the BTF tracepoint was refused.
    RawTracepoint(String),
}

pub(super) fn attach_kfree_skb(ebpf: &mut Ebpf, btf: &Btf, raw: bool) -> Result<(Link, Hook, ProgramFd), KernelError> {
    let btf = if raw { Err(KernelError::Refused("not tried".into())) } else { attach_btf(ebpf, btf) };
    let why = match btf {
        Ok((link, fd)) => return Ok((link, Hook::BtfTracepoint, fd)),
        Err(error) => error,
    };
    // A refused permission is refused there too, and its message is the better one.
    let program: &mut RawTracePoint = program(ebpf, RAW)?;
    let attach = |program: &mut RawTracePoint| -> Result<_, ProgramError> {
        program.load()?;
        let id = program.attach(TRACEPOINT)?;
        Ok((program.take_link(id)?, program.fd()?.try_clone()?))
    };
    match attach(program) {
        Ok((link, fd)) => Ok((Link::Held(link.into(), RAW), Hook::RawTracepoint(why.to_string()), fd)),
        Err(error) => Err(program_error(error)),
    }
}

/// The program that reads a packet's headers where they are, else the one that copies them.
fn attach_btf(ebpf: &mut Ebpf, btf: &Btf) -> Result<(Link, ProgramFd), KernelError> {
    let attach = |ebpf: &mut Ebpf, name: &'static str| -> Result<_, KernelError> {
        let program: &mut BtfTracePoint = program(ebpf, name)?;
        let attach = |program: &mut BtfTracePoint| -> Result<_, ProgramError> {
            program.load(TRACEPOINT, btf)?;
            let id = program.attach()?;
            Ok((Link::Held(program.take_link(id)?.into(), name), program.fd()?.try_clone()?))
        };
        attach(program).map_err(program_error)
    };
    attach(ebpf, DIRECT).or_else(|why| {
        tracing::debug!(%why, "packets' headers are copied");
        attach(ebpf, COPY)
    })
}
