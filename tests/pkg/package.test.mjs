// The built package in Node: on the CPU, in a worker and in place.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FaultServer } from './fault-server.mjs';

const home = await mkdtemp(join(tmpdir(), 'bitnet-package-'));
process.env.BITNET_CACHE = join(home, 'cache');
const pkg = new URL(process.env.BITNET_PKG ?? '../../pkg/', import.meta.url);
assert.ok(existsSync(pkg), 'build the package first: node pkg-template/build.mjs');
const { BitNet, BitNetError } = await import(new URL('node.js', pkg).href);
const { createOpenAI, OpenAIError } = await import(new URL('openai.js', pkg).href);
const tales = new URL('models/tales.gguf', pkg);

/** @type {FaultServer} */
let server;
/** @type {import('../../pkg/index.js').BitNet} */
let model;
before(async () => {
  server = await FaultServer.start();
  model = await BitNet.load(tales, { device: 'cpu' });
});
after(async () => {
  server.stop();
  await model.dispose();
  await rm(home, { recursive: true, force: true });
});

const code = (expected) => (error) => {
  assert.ok(error instanceof BitNetError, `${error?.stack}`);
  assert.equal(error.code, expected, error.message);
  return true;
};

test('the default model writes, and the same seed writes the same', async () => {
  const pieces = [];
  const options = { maxTokens: 24, seed: 5 };
  const story = model.generate('Once upon a time', options);
  for await (const piece of story) pieces.push(piece);
  const result = await story.result;
  assert.equal(pieces.join(''), result.text);
  assert.ok(pieces.length > 5, 'it streams');
  assert.match(result.text, /[a-z]{3}/);
  assert.equal(result.usage.completionTokens, result.tokens.length);
  assert.equal(result.seed, 5);
  assert.ok(result.timings.decodeMs > 0 && result.timings.firstTokenMs > 0);
  assert.deepEqual((await model.generate('Once upon a time', options).result).tokens, result.tokens);
  assert.notDeepEqual((await model.generate('Once upon a time', { ...options, seed: 6 }).result).tokens, result.tokens);
  const inPlace = await BitNet.load(tales, { device: 'cpu', worker: false });
  assert.deepEqual((await inPlace.generate('Once upon a time', options).result).tokens, result.tokens);
  assert.equal(inPlace.info.device, 'cpu');
  await inPlace.dispose();
});

test('a second turn finds the first in the KV cache', async () => {
  const messages = [{ role: 'user', content: 'Tell me a story about a fox and a crow.' }];
  const first = await model.chat(messages, { maxTokens: 20, temperature: 0 }).result;
  messages.push({ role: 'assistant', content: first.text }, { role: 'user', content: 'And then?' });
  const second = await model.chat(messages, { maxTokens: 4, temperature: 0 }).result;
  const before = first.usage.promptTokens + first.usage.completionTokens;
  assert.ok(second.usage.cachedTokens >= before - 4, `${second.usage.cachedTokens} of ${before} cached`);
  assert.ok(model.stats.cachedTokens > before);
  await model.reset();
  assert.equal((await model.chat(messages, { maxTokens: 1 }).result).usage.cachedTokens, 0);
});

test('leaving the loop, stop() and a signal end a generation; the next one works', async () => {
  for await (const piece of model.generate('Once upon a time')) if (piece) break;
  const stopped = model.generate('Once upon a time', { ignoreEos: true });
  let text = '';
  for await (const piece of stopped) {
    text += piece;
    if (stopped.tokenCount >= 3) stopped.stop(); // Several may have come by now.
  }
  const end = await stopped.result;
  assert.equal(end.finishReason, 'cancelled');
  assert.equal(end.text, text);
  assert.equal(end.usage.completionTokens, end.tokens.length);
  assert.ok(end.tokens.length >= 3 && end.timings.firstTokenMs > 0);
  const unborn = model.generate('Once upon a time', { ignoreEos: true });
  unborn.stop();
  assert.equal((await unborn.result).finishReason, 'cancelled');
  const signal = AbortSignal.timeout(60);
  const late = model.generate('Once upon a time', { signal, ignoreEos: true });
  await assert.rejects(async () => { for await (const _ of late); }, { name: 'TimeoutError' });
  await assert.rejects(model.generate('x', { signal: AbortSignal.abort() }).result, { name: 'AbortError' });
  assert.equal((await model.generate('The', { maxTokens: 3 }).result).tokens.length, 3);
});

test('stop strings, limits and log-probabilities', async () => {
  const greedy = { temperature: 0, maxTokens: 40 };
  const { text } = await model.generate('Once upon a time', greedy).result;
  const word = text.trim().split(/\s+/)[3];
  const cut = await model.generate('Once upon a time', { ...greedy, stop: word }).result;
  assert.equal(cut.text, text.slice(0, text.indexOf(word)));
  assert.equal(cut.finishReason, 'stop');
  const { logprobs, tokens } = await model.generate('Once upon a time', { ...greedy, maxTokens: 3, logprobs: 2 }).result;
  assert.equal(logprobs.length, 3);
  for (const [i, [own, best]] of logprobs.entries()) {
    assert.equal(own.id, tokens[i]);
    assert.equal(best.id, own.id, 'greedy');
    assert.ok(own.logprob <= 0);
  }
});

test('text to ids and back, logits', async () => {
  const ids = await model.tokenize('The fox & the crow — später 🦊');
  assert.equal(await model.detokenize(ids), 'The fox & the crow — später 🦊');
  const logits = await model.logits(ids);
  assert.equal(logits.length, ids.length * model.info.vocabSize);
  assert.ok(logits.every(Number.isFinite));
});

test('a tokenizer with a Unicode normalizer, from safetensors', async () => {
  const folder = new URL('../fixtures/qwen3-mini/hf-packed-autobitlinear/', import.meta.url);
  const file = async (name) => new Blob([await readFile(new URL(name, folder))]);
  const description = JSON.parse(await (await file('tokenizer.json')).text());
  const ids = {};
  for (const form of [null, 'NFC', 'NFKD']) {
    description.normalizer = form && { type: form };
    const small = await BitNet.load({
      model: await file('model.safetensors'), config: await file('config.json'),
      tokenizer: new Blob([JSON.stringify(description)]),
    }, { device: 'cpu' });
    ids[form] = await Promise.all(['e\u0301 \ufb01', 'é \ufb01', 'e\u0301 fi'].map((text) => small.tokenize(text)));
    if (!form) assert.deepEqual(await small.profile(), [], 'no timestamps on the CPU');
    await small.dispose();
  }
  assert.notDeepEqual(ids.null[0], ids.null[1]);
  assert.deepEqual(ids.NFC.slice(0, 2), [ids.null[1], ids.null[1]]);
  assert.deepEqual(ids.NFKD, [ids.null[2], ids.null[2], ids.null[2]]);
});

test('arguments that cannot be are refused', async () => {
  const bad = code('invalid_argument');
  for (const options of [
    { temperature: -1 }, { temperature: 'hot' }, { topP: 0 }, { maxTokens: 0 }, { maxTokens: -1 }, { maxTokens: 1.5 },
    { stop: [''] }, { stop: [1] }, { seed: -1 }, { seed: 0.5 }, { logprobs: 1000 }, { minP: NaN },
  ]) {
    await assert.rejects(model.generate('x', options).result, bad, JSON.stringify(options));
  }
  assert.throws(() => model.generate('x', { temprature: 1 }), bad);
  for (const ids of [[4096], []]) await assert.rejects(model.generate(ids).result, bad);
  for (const prompt of [undefined, 7, [-1], [0.5]]) assert.throws(() => model.generate(prompt), bad);
  for (const messages of [[], 'hi', [{ role: 'user' }], [null]]) assert.throws(() => model.chat(messages), bad);
  await assert.rejects(model.detokenize([99_999]), /token|id/i);
  const long = 'once upon a time '.repeat(2000);
  await assert.rejects(model.generate(long).result, code('context_full'));
  for (const options of [
    { device: 'gpu' }, { kvCache: 'f64' }, { contextLength: 0 }, { contextLength: -5 }, { threads: 'many' }, { kernels: 'fast' }, { kernels: 'dot4+' }, { kernels: 7 }, { nope: 1 },
  ]) await assert.rejects(BitNet.load(tales, options), bad, JSON.stringify(options));
  await assert.rejects(BitNet.load(42), bad);
});

test('there is no WebGPU in Node: auto falls back and says so, webgpu is refused', async () => {
  await assert.rejects(BitNet.load(tales, { device: 'webgpu' }), code('webgpu_unavailable'));
  const auto = await BitNet.load(tales);
  assert.equal(auto.info.device, 'cpu');
  assert.match(auto.info.fallback, /WebGPU/);
  await auto.dispose();
});

test('damaged files are refused, whatever the source', async () => {
  const whole = await readFile(tales);
  const load = (bytes) => BitNet.load(bytes, { device: 'cpu' });
  await assert.rejects(load(new Uint8Array(0)), code('corrupt_file'));
  await assert.rejects(load(new TextEncoder().encode('<!doctype html>')), code('corrupt_file'));
  await assert.rejects(load(new Uint8Array(whole.subarray(0, whole.length / 2))), code('corrupt_file'));
  const damaged = new Uint8Array(whole);
  damaged.fill(255, 24, 400);
  await assert.rejects(load(damaged), code('corrupt_file'));
  const { url } = server.serve('/half.gguf', whole.subarray(0, 1_000_000));
  await assert.rejects(BitNet.load(url, { device: 'cpu' }), code('corrupt_file'));
});

test('a buffer is moved, a view of a part is copied, a stream is read', async () => {
  const whole = await readFile(tales);
  const own = new Uint8Array(whole);
  const a = await BitNet.load(own, { device: 'cpu' });
  assert.equal(own.byteLength, 0, 'moved');
  const larger = new Uint8Array(whole.length + 8);
  larger.set(whole, 8);
  const b = await BitNet.load(larger.subarray(8), { device: 'cpu' });
  assert.equal(larger.byteLength, whole.length + 8, 'copied');
  const c = await BitNet.load(new Blob([whole]).stream(), { device: 'cpu' });
  const texts = await Promise.all([a, b, c].map((m) => m.generate('Once', { maxTokens: 5, temperature: 0 }).text()));
  assert.equal(new Set(texts).size, 1, 'three models side by side');
  await Promise.all([a, b, c].map((m) => m.dispose()));
});

test('over HTTP: progress, a cut, and a cached second time', async () => {
  const whole = await readFile(tales);
  const { url } = server.serve('/tales.gguf', whole, { fault: ({ n }) => (n === 2 ? { cutAfter: 100_001 } : undefined) });
  const seen = [];
  const download = { partBytes: 1 << 20, backoffMs: 5 };
  const first = await BitNet.load(url, { device: 'cpu', onProgress: (p) => seen.push(p), download });
  assert.deepEqual([...new Set(seen.map((p) => p.phase))], ['download', 'prepare', 'ready']);
  assert.equal(seen.at(-1).loadedBytes, whole.length);
  assert.equal(seen.at(-1).totalBytes, whole.length);
  await first.dispose();
  const requests = server.log.length;
  const second = await BitNet.load(url, { device: 'cpu' });
  assert.equal(server.log.length, requests);
  await second.dispose();
  assert.deepEqual((await BitNet.cache.list()).map((f) => f.url), [url]);
});

test('an aborted load goes on where it stopped', async () => {
  const whole = await readFile(tales);
  const { url } = server.serve('/abort.gguf', whole, { fault: () => ({ drip: { bytes: 64 << 10, ms: 2 } }) });
  const controller = new AbortController();
  const onProgress = (p) => { if (p.loadedBytes > 2_000_000) controller.abort(); };
  const download = { partBytes: 1 << 20 };
  await assert.rejects(BitNet.load(url, { device: 'cpu', signal: controller.signal, onProgress, download }), { name: 'AbortError' });
  let last;
  const again = await BitNet.load(url, { device: 'cpu', onProgress: (p) => { last = p; }, download });
  assert.ok(last.storedBytes > 1_000_000, `${last.storedBytes} bytes were kept`);
  await again.dispose();
});

test('OpenAI: whole answers, streams, errors', async () => {
  const openai = createOpenAI(model);
  const messages = [{ role: 'user', content: 'Tell me a story about a fox.' }];
  const whole = await openai.chat.completions.create({ messages, max_tokens: 12, temperature: 0 });
  assert.equal(whole.object, 'chat.completion');
  assert.equal(whole.choices[0].message.role, 'assistant');
  assert.equal(whole.choices[0].finish_reason, 'length');
  assert.equal(whole.usage.completion_tokens, 12);
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + 12);
  const stream = await openai.chat.completions.create({
    messages, max_completion_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.map((c) => c.choices[0]?.delta.content ?? '').join(''), whole.choices[0].message.content);
  assert.equal(chunks.at(-2).choices[0].finish_reason, 'length');
  assert.equal(chunks.at(-1).usage.completion_tokens, 12);
  assert.equal(new Set(chunks.map((c) => c.id)).size, 1);
  const refused = (status, param) => (error) => {
    assert.ok(error instanceof OpenAIError, error.stack);
    assert.equal(error.status, status);
    assert.equal(error.error.param, param);
    return true;
  };
  await assert.rejects(openai.chat.completions.create({ messages: [] }), refused(400, 'messages'));
  await assert.rejects(openai.chat.completions.create({ messages, n: 3 }), refused(400, 'n'));
  await assert.rejects(openai.chat.completions.create({ messages, wat: 3 }), refused(400, 'wat'));
  await assert.rejects(openai.chat.completions.create({ messages, temperature: -1 }), refused(400, null));
  await assert.rejects(createOpenAI({ a: model }).chat.completions.create({ model: 'b', messages }), refused(404, 'model'));
  const long = [{ role: 'user', content: 'once upon a time '.repeat(3000) }];
  await assert.rejects(openai.chat.completions.create({ messages: long }), { status: 400, code: 'context_length_exceeded' });
  const logprobs = await openai.chat.completions.create({ messages, max_tokens: 2, logprobs: true, top_logprobs: 2 });
  assert.equal(logprobs.choices[0].logprobs.content[0].top_logprobs.length, 2);
});

test('every CPU kernel agrees with its twin in WebAssembly', async () => {
  const heard = [];
  const results = await BitNet.check({ device: 'cpu', onResult: (r) => heard.push(r) });
  assert.ok(results.length > 40);
  assert.deepEqual(heard, results);
  assert.deepEqual(results.filter((r) => !r.ok), []);
});

test('a disposed model refuses, and disposing twice does no harm', async () => {
  const gone = await BitNet.load(tales, { device: 'cpu' });
  const pending = gone.generate('Once').result;
  await gone.dispose();
  await gone.dispose();
  await assert.rejects(pending, code('invalid_argument'));
  await assert.rejects(gone.generate('Once').result, code('invalid_argument'));
});
