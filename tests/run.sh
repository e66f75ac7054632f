#!/usr/bin/env bash
# All checks: formatting, lints (native and wasm32), tests.
# REQUIRE_GPU=1 makes a missing GPU adapter a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n=== %s\n' "$*"; }

step "format"
cargo fmt --check

step "lints, native"
cargo clippy --all-targets -- -D warnings
step "lints, library without GPU and program"
cargo clippy --lib --no-default-features -- -D warnings
step "lints, wasm32"
cargo clippy --lib --target wasm32-unknown-unknown -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib --quiet

step "tests"
cargo test
