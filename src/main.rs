//! The `bitnet` program. On wasm32 there is no program, only the library.

#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
fn main() {}

#[cfg(not(all(feature = "cli", not(target_arch = "wasm32"))))]
fn main() {}
