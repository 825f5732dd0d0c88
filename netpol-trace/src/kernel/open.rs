//! Sets up the drop hook: reads BTF and symbols, loads and attaches the programs.

use std::path::Path;

use super::attach::Attached;
use super::btf;
use super::errors::{BTF_PATH, KernelError};
use super::layout::Layout;
use super::machine::modules;
use super::object;
use super::options::KernelOptions;
use super::site_names::SiteNames;
use super::symbols::{Symbols, SymbolsError};
use crate::memory;

/// Tracepoints and functions of the kernel to which programs attach by BTF type.
const TRACEPOINTS: [&str; 2] = ["kfree_skb", "icmp_send"];
const FUNCTIONS: [&str; 3] = ["__icmp_send", "icmp6_send", "nf_ct_attach"];

/// Loads and attaches the programs. Returns why there are no symbols, if there are none. The kernel detaches the programs when the process
/// ends, except with [`KernelOptions::survive_restart`].
pub fn open(options: &KernelOptions) -> Result<(Attached, SiteNames, Option<SymbolsError>), KernelError> {
    std::thread::scope(|scope| {
        // In parallel with loading the programs: each takes about a third of the start.
        let reading = scope.spawn(|| {
            // Before the symbols, so that a module that is loaded in between is noticed.
            let modules = modules();
            (modules, Symbols::read())
        });
        let blob = std::fs::read(Path::new(BTF_PATH)).map_err(KernelError::NoBtf)?;
        let btf = btf::Btf::parse(&blob)?;
        let layout = Layout::from_btf(&btf)?;
        let attached_to = object::types(&btf.only(&TRACEPOINTS, &FUNCTIONS)?)?;
        drop(btf);
        drop(blob);
        let mut read = None;
        let slot = &mut read;
        let symbols = move || {
            let (_, symbols) = slot.insert(reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            // Before the verifier allocates memory that counts as the agent's.
            memory::trim();
            symbols.as_ref().ok()
        };
        let attached = Attached::new(&layout, &attached_to, symbols, options)?;
        let (modules, symbols, symbols_error) = match read {
            Some((modules, Ok(symbols))) => (modules, Some(symbols), None),
            Some((modules, Err(error))) => (modules, None, Some(error)),
            None => return Err(KernelError::Object("the programs were attached before the symbols were read".into())),
        };
        let names = SiteNames::new(layout, symbols, modules, attached.rejects().answers(), options.all_drops);
        Ok((attached, names, symbols_error))
    })
}
