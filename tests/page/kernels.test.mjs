// Which GPU kernels run, in Chromium: as asked for, as remembered, or as measured at the first load. Software
// adapters are not measured, and this one is far too slow: here it passes for hardware, and the device that is measured
// computes nothing and has a clock that its dispatches move.
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { launch } from './browser.mjs';
import { servePackage } from './package.mjs';

/** What runs in the worker before the package. `ms`: of a dispatch with and without the built-in dot product.
 * @param {{ dot4Ms?: number, plainMs?: number, wrong?: boolean, stuck?: boolean, full?: boolean, storeless?: boolean }} gpu */
const patch = (gpu) => `
  const gpu = ${JSON.stringify({ dot4Ms: 0.002, plainMs: 0.002, ...gpu })};
  for (const name of ['vendor', 'architecture', 'device', 'description', 'isFallbackAdapter']) {
    Object.defineProperty(GPUAdapterInfo.prototype, name, { get: () => (name === 'vendor' ? 'test' : '') });
  }
  /** Puts \`instead\` in the place of a method, which it gets with what it was called with, unless it says otherwise. */
  const replace = (type, name, instead) => {
    const { [name]: original } = type.prototype;
    type.prototype[name] = function (...args) { return instead.call(this, (...other) => original.apply(this, other.length ? other : args), ...args); };
  };
  // The first device is the one that is measured; what is made of it is marked, and its kernels with a dot product.
  const measured = new WeakSet();
  const withDot4 = new WeakSet();
  let first = true;
  let clock; // While it lives.
  let dot4; // Whether the kernel at hand has a dot product, and whether one since the last look did.
  let some;
  const marking = function (make) {
    const made = make();
    if (measured.has(this)) measured.add(made);
    return made;
  };
  for (const name of ['createCommandEncoder', 'createBuffer']) replace(GPUDevice, name, marking);
  replace(GPUCommandEncoder, 'beginComputePass', marking);
  replace(GPUAdapter, 'requestDevice', async (request) => {
    const device = await request();
    if (first) {
      clock = performance.now();
      measured.add(device);
    }
    first = false;
    return device;
  });
  replace(GPUDevice, 'destroy', function (destroy) {
    if (measured.has(this)) {
      clock = undefined;
      new BroadcastChannel('measured').postMessage('given up');
    }
    return destroy();
  });
  // What is not run need not be compiled, which takes seconds.
  replace(GPUDevice, 'createShaderModule', function (make, wanted) {
    if (!measured.has(this)) return make();
    const made = make({ ...wanted, code: '@compute @workgroup_size(1) fn main() {}' });
    if (wanted.code.includes('dot4I8Packed(')) withDot4.add(made);
    return made;
  });
  replace(GPUDevice, 'createComputePipeline', function (make, wanted) {
    if (!measured.has(this)) return make();
    const made = make({ ...wanted, compute: { ...wanted.compute, constants: {} } });
    if (withDot4.has(wanted.compute.module)) withDot4.add(made);
    return made;
  });
  replace(GPUComputePassEncoder, 'setPipeline', function (set, pipeline) {
    if (measured.has(this)) dot4 = withDot4.has(pipeline);
    set();
  });
  replace(GPUComputePassEncoder, 'dispatchWorkgroups', function (dispatch) {
    if (!measured.has(this)) return dispatch();
    some ||= dot4;
    clock += dot4 ? gpu.dot4Ms : gpu.plainMs;
  });
  replace(GPUBuffer, 'mapAsync', function (map) {
    return gpu.stuck && measured.has(this) ? new Promise(() => {}) : map();
  });
  replace(GPUBuffer, 'getMappedRange', function (get) {
    const range = get();
    // Logits, not ids.
    if (gpu.wrong && some && measured.has(this) && range.byteLength >= 256) new Float32Array(range)[0] = 1;
    some = false;
    return range;
  });
  replace(Performance, 'now', (now) => clock ?? now());
  const fail = () => { throw new DOMException('no', gpu.full ? 'QuotaExceededError' : 'SecurityError'); };
  if (gpu.full) FileSystemFileHandle.prototype.createSyncAccessHandle = fail;
  if (gpu.storeless) StorageManager.prototype.getDirectory = CacheStorage.prototype.open = fail;
`;
const WORKERS = {
  dot4: { dot4Ms: 0.001 },
  plain: { dot4Ms: 0.003 },
  same: {},
  wrong: { dot4Ms: 0.001, wrong: true },
  stuck: { stuck: true },
  slow: { plainMs: 50, dot4Ms: 50 },
  full: { dot4Ms: 0.003, full: true },
  storeless: { storeless: true },
};
const timeout = 120_000;
let browser;
let server;
let page;
before(async () => {
  const files = Object.entries(WORKERS).flatMap(([name, gpu]) =>
    [[`${name}-patch.js`, patch(gpu)], [`${name}.js`, `import '/${name}-patch.js'; import '/pkg/worker.js';`]]);
  [browser, server] = await Promise.all([launch(), servePackage(Object.fromEntries(files))]);
  page = await browser.newPage();
  await page.goto(server.url);
});
after(async () => {
  await browser.close();
  server.close();
});
beforeEach(() => page.evaluate(async () => (await import('/pkg/index.js')).BitNet.cache.delete()));

const MODEL = '/fixtures/bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf';
/** Where there is no model a load ends after it has measured. */
const NOWHERE = '/nowhere.gguf';

/** Loads in a worker of `WORKERS` and says how that went, and what is remembered then.
 * @param {string} [worker] @param {object} [options] @param {string} [source] */
const visit = (worker, options = {}, source = NOWHERE) => page.evaluate(async ([worker, options, source]) => {
  const { BitNet } = await import('/pkg/index.js');
  const phases = new Set();
  const result = await BitNet.load(source, {
    device: 'webgpu', contextLength: 64, onProgress: ({ phase }) => phases.add(phase),
    ...(worker && { worker: new Worker(`/${worker}.js`, { type: 'module' }) }), ...options,
  }).then(async (model) => {
    await model.dispose();
    return { kernels: model.info.kernels };
  }, ({ code, message }) => ({ code, message }));
  const notes = [];
  const home = await (await navigator.storage.getDirectory()).getDirectoryHandle('bitnet-rust', { create: true });
  for await (const [id, folder] of home.entries()) {
    if (!id.startsWith('note-')) continue;
    const file = await folder.getFileHandle('manifest.1').catch(() => undefined); // Not come so far.
    const text = await (await file?.getFile())?.text();
    if (text) notes.push(JSON.parse(text.slice(text.indexOf('\n') + 1)));
  }
  return { ...result, measured: phases.has('measure'), notes, listed: (await BitNet.cache.list()).map((f) => f.url) };
}, [worker, options, source]);

test('the fastest kernels are measured once, and the next load takes them', { timeout }, async () => {
  const first = await visit('plain');
  assert.equal(first.code, 'download_failed', first.message);
  assert.ok(first.measured);
  assert.deepEqual(first.listed, [], 'a note is no file');
  const [{ name, note }] = first.notes;
  assert.equal(note, 'none');
  assert.match(name, /^kernels \d+\.\d+\.\d+ \["test","","",".*Chrome\//, 'version, adapter, browser');

  const next = await visit('dot4', {}, MODEL);
  assert.equal(next.kernels, 'none', next.message);
  assert.ok(!next.measured);
  const asked = await visit('dot4', { kernels: 'dot4' }, MODEL);
  assert.equal(asked.kernels, 'dot4', 'the option goes first');
  assert.deepEqual(asked.notes, first.notes);

  const gone = await page.evaluate(async () => (await import('/pkg/index.js')).BitNet.cache.delete());
  assert.equal(gone, 1, 'the model; the note went with it');
  const again = await visit('dot4');
  assert.ok(again.measured);
  assert.equal(again.notes[0].note, 'dot4', 'another time, another choice');
});

test('what the device has is used if it is no slower, unless it computes something else', { timeout }, async () => {
  assert.equal((await visit('same')).notes[0].note, 'dot4');
  await page.evaluate(async () => (await import('/pkg/index.js')).BitNet.cache.delete());
  const wrong = await visit('wrong');
  assert.ok(wrong.measured);
  assert.equal(wrong.notes[0].note, 'none');
});

test('a note that says something else is measured anew', { timeout }, async () => {
  const { notes: [{ name }] } = await visit('dot4');
  await page.evaluate(async (name) => {
    const { BitNet } = await import('/pkg/index.js');
    await BitNet.cache.delete();
    await (await import('/pkg/lib/cache.js')).writeNote(name, 'banana');
  }, name);
  const next = await visit('dot4');
  assert.equal(next.code, 'download_failed', next.message);
  assert.ok(next.measured);
  assert.equal(next.notes[0].note, 'dot4');
});

test('a very slow GPU is not measured for long: it uses what it has', { timeout }, async () => {
  assert.equal((await visit('slow')).notes[0].note, 'dot4');
});

test('an abort ends the measuring', { timeout }, async () => {
  const { error, heard, notes } = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const controller = new AbortController();
    const over = new Promise((resolve) => { new BroadcastChannel('measured').onmessage = ({ data }) => resolve(data); });
    const error = await BitNet.load('/nowhere.gguf', {
      device: 'webgpu', worker: new Worker('/stuck.js', { type: 'module' }), signal: controller.signal,
      onProgress: ({ phase }) => { if (phase === 'measure') setTimeout(() => controller.abort(), 500); },
    }).then(() => 'none', (e) => e.name);
    return { error, heard: await over };
  }).then(async (result) => ({ ...result, notes: (await visit()).notes }));
  assert.equal(error, 'AbortError');
  assert.equal(heard, 'given up');
  assert.deepEqual(notes, []);
});

test('storage that fails costs no load', { timeout }, async () => {
  const full = await visit('full');
  assert.equal(full.code, 'download_failed', full.message);
  assert.ok(full.measured);
  assert.deepEqual(full.notes, []);
  const none = await visit('storeless');
  assert.equal(none.code, 'download_failed', none.message);
  assert.ok(!none.measured, 'it would be measured at every load');
});

test('software adapters are not measured, nor is anything without a cache', { timeout }, async () => {
  const software = await visit();
  assert.equal(software.code, 'download_failed', software.message);
  assert.ok(!software.measured);
  assert.ok(!(await visit('dot4', { cache: false })).measured);
  assert.ok(!(await visit('dot4', { device: 'cpu' })).measured);
});
