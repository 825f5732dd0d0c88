//! netpol-trace's eBPF programs: one file for each hook, and one path by which records reach the agent.
#![no_std]
#![no_main]
// For the only atomic add that compiles to instructions that Linux 5.10 has.
#![feature(core_intrinsics)]
// For a mask that the compiler must not drop.
#![feature(asm_experimental_arch)]
#![allow(internal_features)]

mod aggregate;
mod drop;
mod emit;
mod headers;
mod key;
mod kfree_skb;
mod reject;
mod tc;

/// The kernel checks this string before it permits GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: nothing here can panic, and the verifier refuses an endless loop if something could.
    loop {}
}
