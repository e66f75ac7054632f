// The conformance fixtures through the built package, in Chromium, on the CPU and on WebGPU; kernels
// against their twins; and what happens when a GPU cannot take the model.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { launch, repository } from './browser.mjs';
import { servePackage } from './package.mjs';

const fixtures = join(repository, 'tests', 'fixtures');
const all = readdirSync(fixtures, { withFileTypes: true }).filter((f) => f.isDirectory()).flatMap(({ name: family }) =>
  readdirSync(join(fixtures, family, 'expected'))
    .filter((f) => f.endsWith('.json') && f !== 'agreement.json')
    .map((f) => ({ family, variant: f.slice(0, -'.json'.length) })));
assert.ok(all.length >= 10, 'fixtures are missing');

/** A worker with a GPU that passes for hardware (`auto` leaves software alone), is right in the self-test, and
 * has no memory for a model. */
const FULL_GPU = `
  for (const name of ['vendor', 'architecture', 'device', 'description', 'isFallbackAdapter']) {
    Object.defineProperty(GPUAdapterInfo.prototype, name, { get: () => (name === 'vendor' ? 'test' : '') });
  }
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (wanted) {
    return createBuffer.call(this, wanted.size > 1 << 20 ? { ...wanted, size: 2 ** 50 } : wanted);
  };
`;
let browser;
let server;
let page;
before(async () => {
  [browser, server] = await Promise.all([launch(), servePackage({
    'full-gpu-patch.js': FULL_GPU, 'full-gpu.js': "import '/full-gpu-patch.js'; import '/pkg/worker.js';",
  })]);
  page = await browser.newPage();
  await page.goto(server.url);
});
after(async () => {
  await browser.close();
  server.close();
});

const conform = (...args) => page.evaluate(async (args) => {
  const { conform } = await import('/page/conformance-page.mjs');
  return conform('/pkg/index.js', ...args);
}, args);

// The software GPU of a headless browser is slow: it runs every prompt, but generates only the first
// tokens, unless all are asked for (`WEBGPU_FIXTURES=all`).
const everything = process.env.WEBGPU_FIXTURES === 'all';
const maxTokens = { cpu: 32, webgpu: everything ? 32 : 8 };

for (const device of ['cpu', 'webgpu']) {
  for (const fixture of all) {
    test(`${fixture.variant} on ${device}`, { timeout: 600_000 }, async (t) => {
      const { problems, rms, same, exact, reference, used } = await conform(fixture, device, maxTokens[device]);
      t.diagnostic(`rms ${rms.toFixed(5)}, argmax ${same.toFixed(3)}, exact ${exact.toFixed(2)} (reference ${reference.toFixed(2)})`);
      assert.equal(used, device);
      assert.deepEqual(problems, []);
    });
  }
  // In the gate the WebAssembly suites do this, on a page and in a worker.
  if (device === 'webgpu' && !everything) continue;
  test(`kernels on ${device}`, { timeout: 600_000 }, async () => {
    const results = await page.evaluate(async (device) => {
      const { BitNet } = await import('/pkg/index.js');
      return BitNet.check({ device });
    }, device);
    assert.ok(results.length > 40);
    assert.deepEqual(results.filter((r) => !r.ok), []);
  });
}

test('the same seed begins the same text on the CPU and on WebGPU', { timeout: 600_000 }, async () => {
  const texts = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const texts = {};
    for (const device of ['cpu', 'webgpu']) {
      const model = await BitNet.load(undefined, { device, cache: false });
      const greedy = await model.generate('Once upon a time', { maxTokens: 8, temperature: 0 }).result;
      const sampled = await model.generate('Once upon a time', { maxTokens: 8, seed: 3 }).result;
      texts[device] = [greedy.text, sampled.text];
      await model.dispose();
    }
    return texts;
  });
  assert.deepEqual(texts.webgpu, texts.cpu);
});

test('kernels are what the option says, as far as the device goes', { timeout: 600_000 }, async () => {
  const runs = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const runs = [];
    const { requestDevice } = GPUAdapter.prototype;
    for (const options of [{}, { kernels: 'none' }, { kernels: 'subgroups+dot4' }, { kernels: 'subgroups', worker: false }]) {
      const source = '/fixtures/bitnet2b4t-mini/gguf/bitnet2b4t-mini-I2_S.gguf';
      const model = await BitNet.load(source, { device: 'webgpu', contextLength: 64, cache: false, ...options });
      const { tokens } = await model.generate([1, 2, 3, 4, 5], { maxTokens: 8, temperature: 0, ignoreEos: true }).result;
      runs.push({ kernels: model.info.kernels, tokens });
      await model.dispose();
    }
    if (GPUAdapter.prototype.requestDevice !== requestDevice) throw new Error('the page is not as it was');
    return runs;
  });
  assert.deepEqual(runs.map((run) => run.kernels), ['dot4', 'none', 'subgroups+dot4', 'subgroups']);
  for (const { tokens } of runs) assert.deepEqual(tokens, runs[0].tokens);
});

test('subgroups smaller than the runs that are summed', { timeout: 600_000 }, async () => {
  // SwiftShader's are of 4; each 32 activations, eight invocations, have a sum of their own where scales change along a row.
  const texts = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const texts = [];
    for (const kernels of ['dot4', 'subgroups+dot4']) {
      const source = '/fixtures/qwen3-mini/gguf/qwen3-mini-Q2_0.gguf';
      const model = await BitNet.load(source, { device: 'webgpu', contextLength: 64, cache: false, kernels });
      const { tokens } = await model.generate([1, 2, 3, 4, 5], { maxTokens: 8, temperature: 0, ignoreEos: true }).result;
      texts.push({ used: model.info.kernels, tokens });
      await model.dispose();
    }
    return texts;
  });
  assert.deepEqual(texts.map((text) => text.used), ['dot4', 'subgroups+dot4']);
  assert.deepEqual(texts[1].tokens, texts[0].tokens);
});

test('a GPU that cannot take the model: auto goes on with the CPU and says so once', { timeout: 600_000 }, async () => {
  const { warnings, text, info, refused } = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const load = (options, warnings) => BitNet.load(undefined, { cache: false, ...options,
      worker: new Worker('/full-gpu.js', { type: 'module' }), onWarning: ({ code, message }) => warnings.push({ code, message }) });
    const refused = await load({ device: 'webgpu' }, []).catch(({ code }) => code);
    const warnings = [];
    const model = await load({}, warnings);
    const text = await model.generate('Once upon a time', { maxTokens: 8, temperature: 0 }).text();
    await model.dispose();
    return { warnings, text, info: model.info, refused };
  });
  assert.equal(info.device, 'cpu');
  assert.match(info.fallback, /^WebGPU failed: /);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0].message, /runs on the CPU, because WebGPU failed/);
  assert.equal(refused, warnings[0].code);
  assert.ok(text.length > 8, text);
});
