#!/usr/bin/env bash
# All checks of the browser product: WebAssembly suites, the package in Node and in Chromium, apps that
# install the packed tarball, the pages. Needs Chromium, its driver, and the wasm32-unknown-unknown
# target; everything else comes from cargo and npm into the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/tools/bin:$PATH"

step() { printf '\n=== %s\n' "$*"; }

step "tools from the lock file"
npm --prefix tests ci --no-audit --no-fund --silent

step "the package"
node pkg-template/build.mjs --pack

step "its declarations and sources, by tsc"
(cd tests && npx tsc -p pkg/tsconfig.json)

step "the package in Node: downloads, cache, API"
node --test --test-timeout=600000 tests/pkg/*.test.mjs

step "the package and the pages in Chromium"
node --test --test-timeout=600000 --test-concurrency=1 tests/page/*.test.mjs

step "WebAssembly suites: Node, page, worker"
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=wasm-bindgen-test-runner
export CHROMEDRIVER="${CHROMEDRIVER:-$(command -v chromedriver)}"
export WASM_BINDGEN_TEST_TIMEOUT=300
cargo test --target wasm32-unknown-unknown --no-default-features --features gpu --test node --test web --test worker
