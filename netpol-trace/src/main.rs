fn main() -> std::process::ExitCode {
    netpol_trace::cli::run()
}
