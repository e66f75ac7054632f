#!/usr/bin/env bash
# Checks of the browser product: the package in Node, in Chromium and in apps that install its tarball, the
# pages, and the WebAssembly suites. With --all also every fixture with all its tokens, and the pages with the
# default model, on WebGPU: the software GPU of a headless browser needs an hour for what a real one does in seconds.
# Needs node, npm, Chromium, its driver, and the wasm32-unknown-unknown target;
# everything else comes from cargo and npm into the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/tools/bin:$PATH"

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

if [[ "${1:-}" == --all ]]; then export WEBGPU_FIXTURES=all; fi

step "tools from the lock file"
npm --prefix tests ci --no-audit --no-fund --silent

step "the package"
node pkg-template/build.mjs --pack

step "its declarations and sources, by tsc"
(cd tests && npx tsc -p pkg/tsconfig.json)

step "the package in Node"
node --test --test-timeout=300000 --test-concurrency=1 tests/pkg/{download,package,threads}.test.mjs

for part in cache conformance kernels demo demo-e2e fields serve threads apps; do
  step "in Chromium: $part"
  # The limit holds for the file as a whole, too.
  node --test --test-timeout=3600000 "tests/page/$part.test.mjs"
done

step "WebAssembly suites: Node, page, worker"
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=wasm-bindgen-test-runner
export CHROMEDRIVER="${CHROMEDRIVER:-$(command -v chromedriver)}"
export WASM_BINDGEN_TEST_TIMEOUT=900
cargo test --target wasm32-unknown-unknown --no-default-features --features gpu --test node --test web --test worker
