//! The `bitnet` program. On wasm32 there is no program, only the library.

#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
mod cli;

#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(not(all(feature = "cli", not(target_arch = "wasm32"))))]
fn main() {}
