#!/usr/bin/env node
// Speed of the CPU path in WebAssembly: this package, other builds of it, and wllama, on one file.
//
//   node tests/bench/wasm.mjs FILE [--pkg FOLDER]… [--wllama FOLDER] [--threads N]…
//        [--engine chromium|node] [--build simd128] [--isolated]
//        [--prompt-tokens N] [--tokens N] [--runs N] [--context N]
//
// Subjects take turns, run by run, in one browser (or Node process), so that whatever else the
// machine does hits them alike; medians are printed as JSON lines. A file of `gguf.mjs` has as
// many tokens as bytes. --wllama: an installed @wllama/wllama, which runs with one thread.
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const { values: o, positionals: [file] } = parseArgs({
  allowPositionals: true,
  options: {
    pkg: { type: 'string', multiple: true, default: [join(root, 'pkg')] },
    wllama: { type: 'string' },
    threads: { type: 'string', multiple: true, default: ['1'] },
    engine: { type: 'string', default: 'chromium' },
    build: { type: 'string' },
    isolated: { type: 'boolean', default: false },
    'prompt-tokens': { type: 'string', default: '128' },
    tokens: { type: 'string', default: '64' },
    runs: { type: 'string', default: '5' },
    context: { type: 'string', default: '512' },
  },
});
if (!file) {
  console.error('a GGUF file is needed: node tests/bench/gguf.mjs small FILE makes one');
  process.exit(2);
}
const settings = {
  promptTokens: Number(o['prompt-tokens']), tokens: Number(o.tokens), runs: Number(o.runs), context: Number(o.context),
};

/** Runs in the browser's page or in Node. @param {any} subjects @param {any} s @param {any} model */
async function measure(subjects, s, model) {
  const text = (run) => Array.from({ length: s.promptTokens }, (_, i) => String.fromCharCode(97 + ((i * 7 + run * 3) % 26))).join('');
  const ours = async ({ url, threads, name }) => {
    const { BitNet } = await import(url);
    const bitnet = await BitNet.load(model.bytes ? model.bytes.slice(0) : new URL(model.url, location.href).href,
      { device: 'cpu', contextLength: s.context, cache: false, ...(threads && { threads }) });
    return {
      facts: { subject: name, backend: 'cpu', adapter: bitnet.info.api, build: bitnet.info.wasmBuild, threads: bitnet.info.threads ?? 1 },
      async run(i) {
        await bitnet.reset();
        const ids = Array.from({ length: s.promptTokens }, (_, t) => 60 + ((t * 7 + i * 3) % 190));
        const { timings, usage } = await bitnet.generate(ids, { maxTokens: s.tokens, temperature: 0, ignoreEos: true }).result;
        if (usage.completionTokens !== s.tokens) throw new Error(`${name} wrote ${usage.completionTokens} tokens`);
        return { prefill: timings.prefillTokensPerSecond, decode: timings.decodeTokensPerSecond };
      },
      end: () => bitnet.dispose(),
    };
  };
  const peer = async ({ url, wasm }) => {
    const { Wllama } = await import(url);
    const wllama = new Wllama({ default: wasm }, { suppressNativeLog: true });
    const blob = new Blob([await (await fetch(model.url)).arrayBuffer()]);
    await wllama.loadModel([blob], { n_ctx: s.context, n_threads: 1, n_gpu_layers: 0, n_parallel: 1, warmup: false });
    return {
      facts: { subject: 'wllama', backend: Wllama.getLibllamaVersion?.(), threads: wllama.getNumThreads() },
      async run(i) {
        const { timings: t } = await wllama.createCompletion({
          prompt: text(i), max_tokens: s.tokens, temperature: 0, ignore_eos: true, cache_prompt: false,
        });
        // Our own figure leaves the first token out, which the prompt's logits give.
        if (t.prompt_n < s.promptTokens || t.predicted_n !== s.tokens) throw new Error(`wllama ran ${JSON.stringify(t)}`);
        return { prefill: t.prompt_per_second, decode: (t.predicted_n - 1) / t.predicted_ms * 1000 };
      },
      end: () => wllama.exit(),
    };
  };
  const all = [];
  for (const subject of subjects) {
    const loaded = await (subject.wasm ? peer : ours)(subject);
    all.push({ ...loaded, prefill: [], decode: [] });
  }
  for (let i = 0; i <= s.runs; i++) {
    for (const subject of i % 2 ? all : all.toReversed()) {
      const { prefill, decode } = await subject.run(i);
      if (i > 0) { // The first one is for compilers and caches.
        subject.prefill.push(prefill);
        subject.decode.push(decode);
      }
    }
  }
  for (const subject of all) await subject.end();
  const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
  return all.map(({ facts, prefill, decode }) => ({
    ...facts, context: s.context, prefill_tok_s: median(prefill), decode_tok_s: median(decode),
    runs: prefill.map((p, i) => [p, decode[i]].map((v) => Math.round(v * 10) / 10)),
  }));
}

const subjects = o.pkg.flatMap((folder, i) => o.threads.map((threads) => ({
  folder: resolve(folder), name: `${o.pkg.length > 1 ? folder : 'bitnet-rust'}`, url: `/pkg${i}/index.js`, threads: Number(threads),
})));
let results;
if (o.engine === 'node') {
  const bytes = readFileSync(file);
  const model = { bytes: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) };
  results = await measure(subjects.map((s) => ({ ...s, url: pathToFileURL(join(s.folder, 'node.js')).href })), settings, model);
} else {
  const { launch } = await import('../page/browser.mjs');
  const { serve } = await import('../../www/serve.mjs');
  const page = join(tmpdir(), `bitnet-bench-${process.pid}`);
  const { mkdirSync, rmSync } = await import('node:fs');
  mkdirSync(page);
  writeFileSync(join(page, 'index.html'), '<!doctype html><link rel="icon" href="data:,"><title>bench</title>');
  const mounts = { '/model/': dirname(resolve(file)), ...(o.wllama && { '/wllama/': resolve(o.wllama) }) };
  o.pkg.forEach((folder, i) => {
    // The build for browsers without relaxed SIMD, in the other one's place.
    if (o.build) mounts[`/pkg${i}/wasm/relaxed/`] = join(resolve(folder), 'wasm', o.build);
    mounts[`/pkg${i}/`] = resolve(folder);
  });
  const server = await serve({ root: page, mounts, isolated: o.isolated });
  const browser = await launch();
  try {
    const tab = await browser.newPage();
    tab.on('pageerror', (error) => console.error(error));
    await tab.goto(server.url);
    if (o.wllama) subjects.push({ name: 'wllama', url: '/wllama/esm/index.js', wasm: '/wllama/esm/wasm/wllama.wasm' });
    results = await tab.evaluate(
      `(${measure})(${JSON.stringify(subjects)}, ${JSON.stringify(settings)}, ${JSON.stringify({ url: `/model/${resolve(file).split('/').pop()}` })})`,
    );
  } finally {
    await browser.close();
    await server.close();
    rmSync(page, { recursive: true, force: true });
  }
}
for (const result of results) {
  console.log(JSON.stringify({ engine: o.engine, processor: cpus()[0]?.model, cores: availableParallelism(), ...result }));
}
