#!/usr/bin/env bash
# Checks of the browser product: the package in Node and in Chromium, and the pages; with --all also
# every fixture on WebGPU, the pages on the real package, apps that install the packed tarball, and the
# WebAssembly suites. Needs node, npm, Chromium, its driver, and the wasm32-unknown-unknown target;
# everything else comes from cargo and npm into the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/tools/bin:$PATH"

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

step "tools from the lock file"
npm --prefix tests ci --no-audit --no-fund --silent

step "the package"
node pkg-template/build.mjs --pack

step "its declarations and sources, by tsc"
(cd tests && npx tsc -p pkg/tsconfig.json)

step "the package in Node"
node --test --test-timeout=120000 --test-concurrency=1 tests/pkg/download.test.mjs tests/pkg/package.test.mjs

step "the package and the pages in Chromium"
pages=(cache conformance demo fields serve)
# A software GPU needs minutes for what a real one does in a second.
if [[ "${1:-}" == --all ]]; then
  export WEBGPU_FIXTURES=all
  pages+=(demo-e2e apps)
fi
pages=("${pages[@]/#/tests/page/}")
node --test --test-timeout=600000 --test-concurrency=1 "${pages[@]/%/.test.mjs}"

if [[ "${1:-}" == --all ]]; then
  step "WebAssembly suites: Node, page, worker"
  export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=wasm-bindgen-test-runner
  export CHROMEDRIVER="${CHROMEDRIVER:-$(command -v chromedriver)}"
  export WASM_BINDGEN_TEST_TIMEOUT=300
  cargo test --target wasm32-unknown-unknown --no-default-features --features gpu --test node --test web --test worker
fi
