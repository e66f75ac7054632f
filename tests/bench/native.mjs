#!/usr/bin/env node
// Speed of the CPU backend natively, next to llama.cpp's on the same file, in one run.
//
//   node tests/bench/native.mjs FILE [--bitnet PROGRAM]… [--llama-bench PROGRAM] [--threads N]…
//        [--synthetic SHAPE] [--prompt-tokens N] [--tokens N] [--rounds N]
//
// Subjects take turns, round by round, so that whatever else the machine does hits them alike;
// medians and best rounds are printed as JSON lines. A file of `gguf.mjs` loads everywhere.
// --synthetic: the same shape with one scale a row, as I2_S files have it, beside the file.
// Several --bitnet compare builds of this project.
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';

const { values: o, positionals: [file] } = parseArgs({
  allowPositionals: true,
  options: {
    bitnet: { type: 'string', multiple: true, default: ['target/release/bitnet'] },
    'llama-bench': { type: 'string' },
    threads: { type: 'string', multiple: true, default: ['1', '2'] },
    synthetic: { type: 'string' },
    'prompt-tokens': { type: 'string', default: '128' },
    tokens: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '5' },
  },
});
if (!file) {
  console.error('a GGUF file is needed: node tests/bench/gguf.mjs 2b4t FILE makes one');
  process.exit(2);
}

const run = (program, args) =>
  JSON.parse(execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }));
const tests = ['-p', o['prompt-tokens'], '-n', o.tokens, '-r', '1'];

const subjects = [];
for (const threads of o.threads) {
  const ours = (name, program, model) => subjects.push({ name, threads, speeds: [], measure() {
    const r = run(program, ['bench', ...model, '--backend', 'cpu', '--threads', threads, ...tests, '--json']);
    return { api: r.api, prefill: r.prefill_tok_s, decode: r.decode_tok_s };
  } });
  for (const program of o.bitnet) {
    ours(`${program} on the file`, program, [file]);
    if (o.synthetic) ours(`${program} on synthetic ${o.synthetic}`, program, ['--synthetic', o.synthetic]);
  }
  if (o['llama-bench']) {
    subjects.push({ name: 'llama-bench on the file', threads, speeds: [], measure() {
      const all = run(o['llama-bench'], ['-m', file, '-t', threads, ...tests, '-o', 'json']);
      const speed = (key) => all.find((test) => test[key] > 0).avg_ts;
      return { prefill: speed('n_prompt'), decode: speed('n_gen') };
    } });
  }
}
for (let round = 0; round < Number(o.rounds); round++) {
  for (const subject of subjects) subject.speeds.push(subject.measure());
}
const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};
for (const { name, threads, speeds } of subjects) {
  const of = (key) => speeds.map((s) => s[key]);
  const round = (v) => Number(v.toFixed(2));
  console.log(JSON.stringify({
    subject: name, backend: 'cpu', adapter: speeds[0].api, threads: Number(threads), context: Number(o['prompt-tokens']),
    prefill_tok_s: round(median(of('prefill'))), decode_tok_s: round(median(of('decode'))),
    best_prefill_tok_s: round(Math.max(...of('prefill'))), best_decode_tok_s: round(Math.max(...of('decode'))),
  }));
}
