#!/usr/bin/env node
// Builds the npm package: cargo → wasm-bindgen → wasm-opt, twice, plus the files beside this script.
//
//   node pkg-template/build.mjs [--quick] [--pack]
//
// Result: pkg/, a copy in www/pkg, and with --pack the tarball in target/npm/. --quick leaves out
// wasm-opt (and the size check, which speaks of what is shipped).
// Needs: cargo with the wasm32-unknown-unknown target, `npm ci` done in tests/. wasm-bindgen is taken from the
// PATH or, if it has another version than the lock file's, built once into target/tools.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { nameByOrder } from './build-order.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const template = join(root, 'pkg-template');
const pkg = join(root, 'pkg');
const quick = process.argv.includes('--quick');

/** What a visitor may be made to load. */
const BUDGET = { bytes: 2_000_000, gzipBytes: 700_000 };

/** The two builds of the same code: an engine without an instruction refuses the whole module.
 * Relaxed SIMD is a flag of our crate alone, so that both share what the dependencies compile to. */
const BUILDS = { simd128: [], relaxed: ['-C', 'target-feature=+relaxed-simd'] };

/** A ninth of the usual eagerness to inline: 22 KB less with gzip; kernels ask for what they need inlined. */
const INLINE = ['-C', 'llvm-args=-inline-threshold=25'];

const FEATURES = ['--enable-bulk-memory', '--enable-bulk-memory-opt', '--enable-nontrapping-float-to-int', '--enable-sign-ext',
  '--enable-mutable-globals', '--enable-reference-types', '--enable-multivalue', '--enable-simd'];

/** Twice, for the second pass finds more: 1.5 KB less with gzip; the first KB of memory is the far end of the stack,
 * so that offsets go into loads and stores: 3.8 KB. */
const OPTIMIZE = ['--low-memory-unused', '-Os', '-Os'];

/** Functions that are alike side by side: 33 KB less with gzip than as they come. The levels are those of -Os, by which
 * code is written, too. */
const REORDER = ['--optimize-level=2', '--shrink-level=1', '--reorder-functions-by-name'];

function run(command, args, options = {}) {
  return execFileSync(command, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], ...options });
}

/** wasm-bindgen of exactly the lock file's version: both sides of its format must match. */
function wasmBindgen() {
  const lock = readFileSync(join(root, 'Cargo.lock'), 'utf8');
  const version = /name = "wasm-bindgen"\nversion = "([^"]+)"/.exec(lock)[1];
  const tools = join(root, 'target', 'tools');
  process.env.PATH = `${join(tools, 'bin')}${delimiter}${process.env.PATH}`;
  try {
    if (run('wasm-bindgen', ['--version'], { stdio: 'pipe' }).trim() === `wasm-bindgen ${version}`) return;
  } catch {
    // Not there.
  }
  console.log(`building wasm-bindgen ${version} (once)`);
  run('cargo', ['install', 'wasm-bindgen-cli', '--version', version, '--root', tools], { stdio: 'inherit' });
}

/** SIMD for all crates; and no paths of this machine in panic messages. */
const RUSTFLAGS = ['-Ctarget-feature=+simd128', ...[join(process.env.CARGO_HOME ?? join(homedir(), '.cargo'), 'registry', 'src'), root]
  .map((path) => `--remap-path-prefix=${path}=`)].join('\x1f');

function build(name, rustFlags) {
  console.log(`wasm (${name})`);
  // A folder of its own: the flags differ from those of `cargo build`, which would rebuild everything.
  const target = join(root, 'target', 'wasm-simd128');
  run('cargo', ['rustc', '--profile', 'wasm', '--lib', '--target', 'wasm32-unknown-unknown',
    '--no-default-features', '--features', 'gpu', '--target-dir', target, '--', ...INLINE, ...rustFlags],
  { stdio: 'inherit', env: { ...process.env, CARGO_ENCODED_RUSTFLAGS: RUSTFLAGS } });
  const out = join(pkg, 'wasm', name);
  run('wasm-bindgen', ['--target', 'web', '--out-name', 'bitnet', '--out-dir', out,
    join(target, 'wasm32-unknown-unknown', 'wasm', 'bitnet_rust.wasm')]);
  const wasm = join(out, 'bitnet_bg.wasm');
  if (quick) return;
  const features = name === 'relaxed' ? [...FEATURES, '--enable-relaxed-simd'] : FEATURES;
  const wasmOpt = (/** @type {string[]} */ passes) => run(join(root, 'tests', 'node_modules', '.bin', 'wasm-opt'),
    [...passes, ...features, wasm, '-o', wasm], { stdio: 'inherit' });
  wasmOpt(OPTIMIZE);
  writeFileSync(wasm, nameByOrder(readFileSync(wasm)));
  wasmOpt(REORDER);
  const bytes = readFileSync(wasm);
  const gzipBytes = gzipSync(bytes, { level: 9 }).length;
  console.log(`  ${bytes.length} bytes, ${gzipBytes} with gzip`);
  if (bytes.length > BUDGET.bytes || gzipBytes > BUDGET.gzipBytes) {
    console.error(`  over the budget of ${BUDGET.bytes} bytes, ${BUDGET.gzipBytes} with gzip`);
    process.exitCode = 1;
  }
}

/** The files beside this script, with version and model stamped in. */
function fill() {
  for (const name of readdirSync(template)) {
    if (!name.startsWith('build')) cpSync(join(template, name), join(pkg, name), { recursive: true });
  }
  for (const name of ['LICENSE-MIT', 'LICENSE-APACHE']) cpSync(join(root, name), join(pkg, name));
  const { packages } = JSON.parse(run('cargo', ['metadata', '--no-deps', '--format-version', '1']));
  const manifest = JSON.parse(readFileSync(join(template, 'package.json'), 'utf8'));
  manifest.version = packages[0].version;
  writeFileSync(join(pkg, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);

  const model = readFileSync(join(root, 'models', 'tales.gguf'));
  mkdirSync(join(pkg, 'models'), { recursive: true });
  writeFileSync(join(pkg, 'models', 'tales.gguf'), model);
  const source = readFileSync(join(template, 'lib', 'default-model.js'), 'utf8')
    .replace('bytes: 0', `bytes: ${model.length}`)
    .replace("sha256: ''", `sha256: '${createHash('sha256').update(model).digest('hex')}'`);
  writeFileSync(join(pkg, 'lib', 'default-model.js'), source);
}

wasmBindgen();
rmSync(pkg, { recursive: true, force: true });
for (const [name, rustFlags] of Object.entries(BUILDS)) build(name, rustFlags);
fill();
if (existsSync(join(root, 'www'))) {
  rmSync(join(root, 'www', 'pkg'), { recursive: true, force: true });
  cpSync(pkg, join(root, 'www', 'pkg'), { recursive: true });
}
if (process.argv.includes('--pack')) {
  const out = join(root, 'target', 'npm');
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const [{ filename, size }] = JSON.parse(run('npm', ['pack', '--json', '--silent', '--pack-destination', out, pkg]));
  console.log(`${join('target', 'npm', filename)}: ${size} bytes`);
}
