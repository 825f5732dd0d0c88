//! Attaches a program to `kfree_skb`, or takes over the hook of an earlier agent.

use std::io;

use anyhow::Context;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{BtfTracePoint, Program, ProgramError, ProgramFd, RawTracePoint};
use aya::{Btf, Ebpf};

use super::errors::{KernelError, cant_pin, program_error};
use super::object::program;
use super::pins::Pins;

/// The link between program and tracepoint.
#[derive(Debug)]
#[allow(dead_code, reason = "the links detach when dropped")]
pub(super) enum HookLink {
    Held(FdLink, &'static str),
    /// Stays attached after the process has ended.
    Pinned(PinnedLink, &'static str),
}

impl HookLink {
    /// Pins the hook unless it is pinned, and its program, whose recursion misses the next agent reads.
    pub(super) fn keep(self, pins: &Pins, ebpf: &mut Ebpf) -> Result<HookLink, KernelError> {
        let HookLink::Held(link, name) = self else { return Ok(self) };
        pins.forget_hook(name).map_err(cant_pin)?;
        let path = pins.program(name);
        let pinned = match ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.pin(path),
            Some(Program::RawTracePoint(program)) => program.pin(path),
            _ => Ok(()),
        };
        pinned.map_err(|error| cant_pin(io::Error::other(error)))?;
        link.pin(pins.link(name))
            .map(|link| HookLink::Pinned(link, name))
            .map_err(|error| cant_pin(io::Error::other(error)))
    }
}

/// Takes over the hook that an earlier agent left attached.
pub(super) fn adopt(pins: &Pins) -> Option<(HookLink, AttachForm, ProgramFd)> {
    let name = pins.attached()?;
    let adopt = || -> anyhow::Result<_> {
        let link = PinnedLink::from_pin(pins.link(&name))?;
        let known = [DIRECT, COPY, RAW].into_iter().find(|known| *known == name);
        let known = known.with_context(|| format!("no program {name}"))?;
        Ok(if known == RAW {
            let program = RawTracePoint::from_pin(pins.program(&name))?;
            (
                HookLink::Pinned(link, known),
                AttachForm::RawTracepoint("taken over from an earlier agent".into()),
                program.fd()?.try_clone()?,
            )
        } else {
            let program = BtfTracePoint::from_pin(pins.program(&name))?;
            (HookLink::Pinned(link, known), AttachForm::BtfTracepoint, program.fd()?.try_clone()?)
        })
    };
    let adopted = adopt().inspect_err(
        |error| tracing::warn!(%error, "the hook that an earlier agent left attached can't be taken over"),
    );
    if adopted.is_err()
        && let Err(error) = pins.forget_hook(&name)
    {
        // With two hooks every drop would be counted twice.
        tracing::error!(%error, "the hook that an earlier agent left attached can't be detached: drops are counted twice; run `netpol-trace doctor --cleanup`");
    }
    adopted.ok()
}

const TRACEPOINT: &str = "kfree_skb";

/// The programs, in order of preference.
const DIRECT: &str = "kfree_skb";
const COPY: &str = "kfree_skb_copy";
const RAW: &str = "kfree_skb_raw";

/// The form of hook that the kernel accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachForm {
    BtfTracepoint,
    /// With the reason why not the BTF tracepoint.
    RawTracepoint(String),
}

pub(super) fn attach_kfree_skb(
    ebpf: &mut Ebpf,
    btf: &Btf,
    raw: bool,
) -> Result<(HookLink, AttachForm, ProgramFd), KernelError> {
    let btf = if raw { Err(KernelError::Refused("not tried".into())) } else { attach_btf(ebpf, btf) };
    let why = match btf {
        Ok((link, fd)) => return Ok((link, AttachForm::BtfTracepoint, fd)),
        Err(error) => error,
    };
    let program: &mut RawTracePoint = program(ebpf, RAW)?;
    let attach = |program: &mut RawTracePoint| -> Result<_, ProgramError> {
        program.load()?;
        let id = program.attach(TRACEPOINT)?;
        Ok((program.take_link(id)?, program.fd()?.try_clone()?))
    };
    match attach(program) {
        Ok((link, fd)) => Ok((HookLink::Held(link.into(), RAW), AttachForm::RawTracepoint(why.to_string()), fd)),
        Err(error) => Err(program_error(error)),
    }
}

/// Attaches the program that reads a packet's headers in place, or the one that copies them if the kernel rejects the former.
fn attach_btf(ebpf: &mut Ebpf, btf: &Btf) -> Result<(HookLink, ProgramFd), KernelError> {
    let attach = |ebpf: &mut Ebpf, name: &'static str| -> Result<_, KernelError> {
        let program: &mut BtfTracePoint = program(ebpf, name)?;
        let attach = |program: &mut BtfTracePoint| -> Result<_, ProgramError> {
            program.load(TRACEPOINT, btf)?;
            let id = program.attach()?;
            Ok((HookLink::Held(program.take_link(id)?.into(), name), program.fd()?.try_clone()?))
        };
        attach(program).map_err(program_error)
    };
    attach(ebpf, DIRECT).or_else(|why| {
        tracing::debug!(%why, "the program that reads headers in place was rejected: headers are copied");
        attach(ebpf, COPY)
    })
}
