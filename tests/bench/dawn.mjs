#!/usr/bin/env node
// Speed of WebGPU outside a browser: this package in Node on Dawn, Chromium's WebGPU.
//
//   node tests/bench/dawn.mjs --dawn FOLDER [FILE] [--pkg FOLDER] [--prompt-tokens N] [--tokens N] [--runs N] [--context N] [--kernels LIST]
//
// --dawn: an installed npm package `webgpu`. FILE: a GGUF file; without one, the embedded model. Prints one
// JSON line with medians. Compare with `bitnet bench` on the same machine: that is wgpu's own Vulkan.
import { readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import process from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const { values: o, positionals: [file] } = parseArgs({
  allowPositionals: true,
  options: {
    dawn: { type: 'string' },
    pkg: { type: 'string', default: join(root, 'pkg') },
    'prompt-tokens': { type: 'string', default: '256' },
    tokens: { type: 'string', default: '64' },
    runs: { type: 'string', default: '5' },
    context: { type: 'string', default: '1024' },
    kernels: { type: 'string' },
  },
});
if (!o.dawn) {
  console.error('an installed Dawn is needed: npm install webgpu, then --dawn node_modules/webgpu');
  process.exit(2);
}
const [promptTokens, tokens, runs] = [o['prompt-tokens'], o.tokens, o.runs].map(Number);

// What a page would have. wgpu looks for a window, and asks the language features as a real set.
const { create, globals } = await import(pathToFileURL(join(resolve(o.dawn), 'index.js')).href);
Object.assign(globalThis, globals);
globalThis.Window ??= class Window {};
const gpu = create([]);
Object.defineProperty(gpu, 'wgslLanguageFeatures', { value: new Set([...gpu.wgslLanguageFeatures]) });
Object.defineProperty(globalThis, 'navigator', { value: { gpu, hardwareConcurrency: 1 }, configurable: true, writable: true });

const { BitNet } = await import(pathToFileURL(join(resolve(o.pkg), 'node.js')).href);
const source = file && new Uint8Array(readFileSync(file)).buffer;
const started = performance.now();
// Dawn's objects live in this thread.
const model = await BitNet.load(source, { device: 'webgpu', worker: false, contextLength: Number(o.context), ...(o.kernels && { kernels: o.kernels }) });
const loadMs = performance.now() - started;

const all = [];
let firstTokenMs;
for (let i = 0; i <= runs; i++) {
  await model.reset();
  const ids = Array.from({ length: promptTokens }, (_, t) => 60 + ((t * 7 + i * 3) % 190));
  const { timings, usage } = await model.generate(ids, { maxTokens: tokens, temperature: 0, ignoreEos: true }).result;
  if (usage.completionTokens !== tokens) throw new Error(`${usage.completionTokens} tokens instead of ${tokens}`);
  firstTokenMs ??= timings.prefillMs;
  // The first run pays for compilers.
  if (i > 0) all.push(timings);
}
const median = (/** @type {string} */ key) => all.map((t) => t[key]).sort((a, b) => a - b)[all.length >> 1];
console.log(JSON.stringify({
  backend: 'webgpu (Dawn in Node)', adapter: model.info.adapter, api: model.info.api, kernels: model.info.kernels, threads: 1, context: promptTokens, load_ms: loadMs,
  first_prefill_ms: firstTokenMs, prefill_tok_s: median('prefillTokensPerSecond'), decode_tok_s: median('decodeTokensPerSecond'),
}));
process.exit(0); // A live GPU keeps Node running.
