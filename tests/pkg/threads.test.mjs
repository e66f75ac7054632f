// Threads of the CPU path in Node: the same bits as one, over shared memory and over messages; and
// what happens when a worker dies.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const pkg = new URL(process.env.BITNET_PKG ?? '../../pkg/', import.meta.url);
const { BitNet } = await import(new URL('node.js', pkg).href);
const { platform } = await import(new URL('lib/platform.js', pkg).href);
const tales = new URL('models/tales.gguf', pkg);
const prompt = [0, 5, 9, 200, 31, 77, 1000];

/** Loads with memory that cannot be shared, as on a page without isolation. */
async function load(options, shared = true) {
  const kept = globalThis.SharedArrayBuffer;
  if (!shared) globalThis.SharedArrayBuffer = undefined;
  try {
    // In place: the test sees the workers.
    return await BitNet.load(tales, { device: 'cpu', worker: false, contextLength: 512, ...options });
  } finally {
    globalThis.SharedArrayBuffer = kept;
  }
}

/** The workers that `use` starts. */
async function watch(use) {
  const workers = [];
  const { createWorker } = platform;
  platform.createWorker = () => {
    workers.push(createWorker());
    return workers.at(-1);
  };
  try {
    return [await use(), workers];
  } finally {
    platform.createWorker = createWorker;
  }
}

test('threads give the logits and the text of one', async () => {
  const run = async (options, shared) => {
    const model = await load(options, shared);
    try {
      const logits = await model.logits(prompt);
      const { text } = await model.generate(prompt, { maxTokens: 12, seed: 3 }).result;
      return { threads: model.info.threads, bytes: model.stats.deviceBytes, logits: new Uint32Array(logits.buffer), text };
    } finally {
      await model.dispose();
    }
  };
  const one = await run({});
  assert.equal(one.threads, 1, 'the default model is too small to be shared');
  for (const [threads, shared] of [[2, true], [3, true], [2, false], [4, false]]) {
    const many = await run({ threads }, shared);
    assert.equal(many.threads, threads);
    assert.deepEqual(many.logits, one.logits, `${threads} threads`);
    assert.equal(many.text, one.text);
    // Rows are held once: as many bytes in all, but for alignment.
    assert.ok(Math.abs(many.bytes / one.bytes - 1) < 0.01, `${many.bytes} bytes instead of ${one.bytes}`);
  }
});

for (const shared of [true, false]) {
  const by = shared ? 'shared memory' : 'messages';
  test(`a worker that dies is an error, not a hang (${by})`, { timeout: 60_000 }, async () => {
    const [model, workers] = await watch(() => load({ threads: 3 }, shared));
    assert.equal(workers.length, 2);
    const story = model.generate('Once upon a time', { maxTokens: 400, ignoreEos: true });
    const died = assert.rejects(story.result, { name: 'BitNetError', code: 'device_lost' });
    workers[1].terminate();
    await died;
    await assert.rejects(model.logits(prompt), { code: 'device_lost' });
    await model.dispose();
  });
}

test('a generation on threads can be aborted, and the next one works', async () => {
  const model = await load({ threads: 2 });
  const controller = new AbortController();
  const story = model.generate('Once upon a time', { maxTokens: 400, ignoreEos: true, signal: controller.signal });
  const aborted = assert.rejects(story.result, { name: 'AbortError' });
  setTimeout(() => controller.abort(), 50);
  await aborted;
  const { tokens } = await model.generate(prompt, { maxTokens: 3, ignoreEos: true }).result;
  assert.equal(tokens.length, 3);
  await model.dispose();
});

test('numbers of threads that make no sense are refused', async () => {
  for (const threads of [0, -1, 1.5, 65, Infinity, NaN, '2', null]) {
    await assert.rejects(load({ threads }), { code: 'invalid_argument' }, String(threads));
  }
});

test('a model that was not disposed of keeps no program from ending', { timeout: 60_000 }, () => {
  const script = `
    const { BitNet } = await import(${JSON.stringify(new URL('node.js', pkg).href)});
    for (const worker of [true, false]) {
      const model = await BitNet.load(new URL(${JSON.stringify(tales.href)}), { device: 'cpu', threads: 2, worker });
      console.log((await model.generate('Once', { maxTokens: 3, ignoreEos: true }).result).tokens.length);
    }`;
  const out = execFileSync(process.execPath, ['-e', `(async () => {${script}})()`], { encoding: 'utf8', timeout: 50_000 });
  assert.equal(out, '3\n3\n', fileURLToPath(pkg));
});
