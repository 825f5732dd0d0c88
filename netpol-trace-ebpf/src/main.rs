//! netpol-trace's eBPF programs: one thin program per hook, one file per hook, and one path by which records leave.
#![no_std]
#![no_main]
// The only atomic add that the BPF target lowers on 5.10 too.
#![feature(core_intrinsics)]
// A mask that the compiler must not drop.
#![feature(asm_experimental_arch)]
#![allow(internal_features)]

mod drop;
mod emit;
mod fold;
mod headers;
mod key;
mod kfree_skb;
mod reject;
mod tc;

/// The kernel checks this string before it lends GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: nothing here can panic, and the verifier refuses an endless loop if something could.
    loop {}
}
