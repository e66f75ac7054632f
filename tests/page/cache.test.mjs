// Downloads and cache in a real browser: OPFS in the worker, the Cache API on the page, two tabs.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { FaultServer } from '../pkg/fault-server.mjs';
import { launch } from './browser.mjs';
import { pkg, servePackage } from './package.mjs';

const model = readFileSync(join(pkg, 'models', 'tales.gguf'));
const sha256 = createHash('sha256').update(model).digest('hex');

/** A worker whose storage grants so many bytes and no more. */
const SMALL_DISK = `
  let room = 3_000_000;
  const { write } = FileSystemSyncAccessHandle.prototype;
  FileSystemSyncAccessHandle.prototype.write = function (bytes, options) {
    if (bytes.byteLength > 1000 && (room -= bytes.byteLength) < 0) throw new DOMException('full', 'QuotaExceededError');
    return write.call(this, bytes, options);
  };
`;
let browser;
let server;
let files;
let context;
let page;
before(async () => {
  [browser, server, files] = await Promise.all([
    launch(), servePackage({
      'small-disk-patch.js': SMALL_DISK,
      // No top-level await: messages that come before the listener are lost.
      'small-disk.js': "import '/small-disk-patch.js'; import '/pkg/worker.js';",
    }), FaultServer.start()]);
  context = await browser.newContext();
  page = await context.newPage();
  await page.goto(server.url);
});
after(async () => {
  await browser.close();
  server.close();
  files.stop();
});
beforeEach(async () => {
  await page.evaluate(async () => (await import('/pkg/index.js')).BitNet.cache.delete());
  files.log.length = 0;
});

/** Loads in the page and says what happened. */
const load = (url, options = {}, where = page) => where.evaluate(async ([url, options]) => {
  const { BitNet } = await import('/pkg/index.js');
  const { abortAt, smallDisk, ...rest } = options;
  const phases = [];
  const warnings = [];
  const controller = new AbortController();
  let last;
  try {
    const model = await BitNet.load(url, {
      device: 'cpu', download: { partBytes: 1 << 20, backoffMs: 5 }, signal: controller.signal,
      ...(smallDisk ? { worker: new Worker('/small-disk.js', { type: 'module' }) } : {}),
      ...rest,
      onProgress: (p) => {
        last = p;
        if (phases.at(-1) !== p.phase) phases.push(p.phase);
        if (abortAt !== undefined && p.loadedBytes >= abortAt) controller.abort();
      },
      onWarning: (w) => warnings.push(w.code),
    });
    const { text } = await model.generate('Once upon a time', { maxTokens: 4, temperature: 0 }).result;
    await model.dispose();
    return { text, phases, warnings, ...last };
  } catch (error) {
    // A DOMException has a `code` too, a number of old.
    return { error: error instanceof DOMException ? error.name : error.code, message: error.message, phases, warnings };
  }
}, [url, options]);
/** Playwright's own waitForFunction takes a promise for a yes. */
async function until(holds) {
  while (!(await holds())) await new Promise((done) => { setTimeout(done, 50); });
}
const list = () => page.evaluate(async () => (await import('/pkg/index.js')).BitNet.cache.list());

test('a download is kept in OPFS and needs no network the second time', async () => {
  const { url } = files.serve('/a.gguf', model);
  const first = await load(url);
  assert.deepEqual(first.phases, ['download', 'prepare', 'ready'], JSON.stringify(first));
  const requests = files.log.length;
  const second = await load(url);
  assert.equal(files.log.length, requests);
  assert.equal(second.storedBytes, model.length);
  assert.equal(second.text, first.text);
  const [entry] = await list();
  assert.equal(entry.sha256, sha256);
  const tree = await page.evaluate(async () => {
    const home = await (await navigator.storage.getDirectory()).getDirectoryHandle('bitnet-rust');
    const names = [];
    for await (const [, folder] of home) for await (const name of folder.keys()) names.push(name);
    return names.sort();
  });
  assert.ok(tree.includes('data'), tree.join());
});

test('cuts, and an abort: the next load goes on where it stopped', async () => {
  const { url } = files.serve('/b.gguf', model, {
    fault: ({ n }) => (n % 3 === 2 ? { cutAfter: 123_457 } : { drip: { bytes: 256 << 10, ms: 10 } }),
  });
  const aborted = await load(url, { abortAt: 3_000_000 });
  assert.equal(aborted.error, 'AbortError');
  await until(() => page.evaluate(async () => (await navigator.locks.query()).held.length === 0));
  const [entry] = await list();
  assert.ok(!entry.complete && entry.storedBytes >= 2_000_000, JSON.stringify(entry));
  const again = await load(url);
  assert.ok(again.text, JSON.stringify(again));
  assert.ok(again.storedBytes >= entry.storedBytes, `${again.storedBytes} of ${entry.storedBytes}`);
  assert.equal((await list())[0].sha256, sha256);
});

test('a tab that is closed in the middle leaves what can be gone on with', async () => {
  const { url } = files.serve('/c.gguf', model, { fault: () => ({ drip: { bytes: 128 << 10, ms: 30 } }) });
  const tab = await context.newPage();
  await tab.goto(server.url);
  const lost = load(url, {}, tab).catch(() => {});
  await until(async () => (await list())[0]?.storedBytes > 2_000_000);
  await tab.close();
  await lost;
  files.files.get('/c.gguf').fault = undefined;
  const again = await load(url);
  assert.ok(again.text, JSON.stringify(again));
  assert.ok(again.storedBytes > 1_000_000, JSON.stringify(again));
  assert.equal((await list())[0].sha256, sha256);
});

test('two tabs that load one model download it once', async () => {
  const { url } = files.serve('/d.gguf', model, { fault: () => ({ drip: { bytes: 512 << 10, ms: 10 } }) });
  const tab = await context.newPage();
  await tab.goto(server.url);
  const [a, b] = await Promise.all([load(url), load(url, {}, tab)]);
  assert.equal(a.text, b.text, JSON.stringify([a, b]));
  assert.equal(files.bytesSent('/d.gguf'), model.length);
  assert.ok([a, b].some((r) => r.phases.includes('wait')));
  await tab.close();
});

test('a full disk is a warning, or an error if the cache is required; nothing stays', async () => {
  const { url } = files.serve('/e.gguf', model);
  const warned = await load(url, { smallDisk: true });
  assert.ok(warned.text, JSON.stringify(warned));
  assert.deepEqual(warned.warnings, ['quota_exceeded']);
  assert.deepEqual(await list(), []);
  const refused = await load(url, { smallDisk: true, cache: 'required' });
  assert.equal(refused.error, 'quota_exceeded', JSON.stringify(refused));
  assert.deepEqual(await list(), []);
});

test('wrong hash, 404, and a file that is no model: the right code, nothing corrupt left', async () => {
  const { url } = files.serve('/f.gguf', model);
  assert.equal((await load(url, { sha256: '00'.repeat(32) })).error, 'corrupt_file');
  assert.equal((await load(`${files.origin}/nowhere.gguf`)).error, 'download_failed');
  const page404 = files.serve('/g.gguf', Buffer.from('<!doctype html><title>Not a model</title>'));
  assert.equal((await load(page404.url)).error, 'corrupt_file');
  const shaky = files.serve('/h.gguf', model, { fault: ({ n }) => (n === 1 ? { status: 500 } : undefined) });
  assert.ok((await load(shaky.url)).text);
  assert.deepEqual((await list()).filter((f) => !f.complete), []);
});

test('a file that changes half-way: the load starts over and gets the new one', async () => {
  const { url } = files.serve('/i.gguf', Buffer.from(model), {
    fault: ({ n, served }) => { if (n === 4) served.etag = '"another"'; return undefined; },
  });
  const result = await load(url);
  assert.ok(result.text, JSON.stringify(result));
  assert.equal((await list())[0].sha256, sha256);
});

test('in place on the page: the Cache API keeps it, and finds what a worker has kept', async () => {
  const { url } = files.serve('/j.gguf', model, { fault: () => ({ drip: { bytes: 128 << 10, ms: 20 } }) });
  const aborted = await load(url, { worker: false, abortAt: 4_000_000 });
  assert.equal(aborted.error, 'AbortError');
  const again = await load(url, { worker: false });
  assert.ok(again.text && again.storedBytes > 1_000_000, JSON.stringify(again));
  const requests = files.log.length;
  assert.equal((await load(url, { worker: false })).text, again.text);
  assert.equal((await load(url)).text, again.text, 'a worker reads it too');
  assert.equal(files.log.length, requests);
});

test('Blobs, buffers and streams cross into the worker', async () => {
  files.serve('/k.gguf', model);
  const result = await page.evaluate(async (url) => {
    const { BitNet } = await import('/pkg/index.js');
    const bytes = await (await fetch(url)).arrayBuffer();
    const texts = [];
    for (const source of [new File([bytes], 'own.gguf'), new Blob([bytes]).stream(), bytes]) {
      const model = await BitNet.load(source, { device: 'cpu' });
      texts.push(await model.generate('Once', { maxTokens: 4, temperature: 0 }).text());
      await model.dispose();
    }
    return { texts, left: bytes.byteLength };
  }, `${files.origin}/k.gguf`);
  assert.equal(new Set(result.texts).size, 1);
  assert.equal(result.left, 0, 'the buffer was moved');
});

test('the page stays responsive while the CPU writes, and an abort is prompt', async () => {
  const result = await page.evaluate(async () => {
    const { BitNet } = await import('/pkg/index.js');
    const model = await BitNet.load(undefined, { device: 'cpu' });
    let longest = 0;
    const observer = new PerformanceObserver((l) => { for (const e of l.getEntries()) longest = Math.max(longest, e.duration); });
    observer.observe({ entryTypes: ['longtask'] });
    const controller = new AbortController();
    const story = model.generate('Once upon a time', { signal: controller.signal, ignoreEos: true });
    let pieces = 0;
    let aborted = 0;
    try {
      for await (const _ of story) if (++pieces === 60) { aborted = performance.now(); controller.abort(); }
    } catch (error) {
      const took = performance.now() - aborted;
      await model.generate('x', { maxTokens: 1 }).result;
      const after = performance.now() - aborted;
      await new Promise((done) => { setTimeout(done, 100); });
      return { name: error.name, took, after, longest };
    }
    return {};
  });
  assert.equal(result.name, 'AbortError');
  assert.ok(result.longest < 50, `longest task ${result.longest} ms`);
});
