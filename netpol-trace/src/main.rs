//! The binary `netpol-trace`; the code is in the library.

fn main() -> std::process::ExitCode {
    netpol_trace::cli::run()
}
