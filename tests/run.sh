#!/usr/bin/env bash
# All checks: formatting, lints (native and wasm32), tests, and the browser product.
# What a machine lacks is skipped with a message, unless REQUIRE_GPU=1 (a Vulkan, Metal or DX12
# adapter) or REQUIRE_BROWSER=1 (node, npm, chromium and chromedriver) make that a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

step "format"
cargo fmt --check

step "lints, native"
cargo clippy --all-targets -- -D warnings
step "lints, library without GPU and program"
cargo clippy --lib --no-default-features -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib --quiet

step "tests"
cargo test

missing=()
for tool in node npm chromium chromedriver; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
rustup target list --installed 2>/dev/null | grep -q wasm32-unknown-unknown || missing+=(wasm32-unknown-unknown)
if ((${#missing[@]})); then
  step "browser: not tested, for want of ${missing[*]}"
  [[ "${REQUIRE_BROWSER:-}" != 1 ]]
else
  step "lints, wasm32"
  cargo clippy --lib --target wasm32-unknown-unknown -- -D warnings
  step "browser"
  bash tests/run-web.sh
fi
step "all passed"
