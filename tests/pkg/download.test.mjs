// Downloads and cache against a server that fails on purpose, through the file-system store.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, rm, readFile, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { FaultServer } from './fault-server.mjs';

const home = await mkdtemp(join(tmpdir(), 'bitnet-cache-'));
process.env.BITNET_CACHE = join(home, 'cache');
const lib = new URL(`${process.env.BITNET_PKG ?? '../../pkg-template'}/`, import.meta.url);
const { platform } = await import(new URL('lib/platform.js', lib).href);
const { BitNet } = await import(new URL('node.js', lib).href);
const cache = await import(new URL('lib/cache.js', lib).href);
const { resolve, toSendable } = await import(new URL('lib/source.js', lib).href);

/** @type {FaultServer} */
let server;
before(async () => { server = await FaultServer.start(); });
after(async () => {
  server.stop();
  await rm(home, { recursive: true, force: true });
});
beforeEach(async () => {
  server.log.length = 0;
  await cache.remove();
});

const KIB = 1024;
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** Reads a source as `BitNet.load` does. */
async function read(source, options = {}) {
  const { signal = new AbortController().signal, onChunk, download, ...rest } = options;
  const seen = { phases: [], warnings: [], network: 0, stored: 0 };
  const context = {
    signal, cache: true, onPhase: (p) => seen.phases.push(p), onSize() {},
    onWarning: (w) => seen.warnings.push(w),
    onBytes: (n, stored) => { seen[stored ? 'stored' : 'network'] += n; },
    createHash: () => {
      const hash = createHash('sha256');
      return { update: (b) => void hash.update(b), hex: () => hash.digest('hex') };
    },
    ...rest,
    download: { partBytes: 64 * KIB, backoffMs: 5, stallMs: 2000, ...download },
  };
  const files = await resolve(toSendable(source).source, context);
  const bodies = [];
  for (const file of files.weights) {
    const chunks = [];
    for await (const chunk of file.stream()) {
      chunks.push(Buffer.from(chunk));
      onChunk?.(chunk);
    }
    bodies.push(Buffer.concat(chunks));
  }
  return { body: bodies[0], bodies, texts: files.texts, ...seen };
}

const code = (expected) => (error) => {
  assert.equal(error.code, expected, `${error.stack}`);
  return true;
};

test('a file comes whole, in parts, and the second time without the network', async () => {
  const { url, body } = server.serve('/whole', 1_000_003);
  const first = await read(url);
  assert.ok(first.body.equals(body));
  assert.ok(server.log.length >= 16, 'parts');
  assert.deepEqual(first.phases, ['download']);
  const requests = server.log.length;
  const second = await read(url);
  assert.ok(second.body.equals(body));
  assert.equal(server.log.length, requests, 'no request');
  assert.deepEqual(second.phases, ['read']);
  const [entry] = await cache.list();
  assert.equal(entry.sha256, sha256(body));
  assert.equal(entry.complete, true);
  assert.equal(entry.storedBytes, body.length);
});

test('parts are under way at the same time, but not too many', async () => {
  let now = 0;
  let most = 0;
  const { url, body } = server.serve('/parallel', 1_000_000, { fault: () => ({ drip: { bytes: 16 * KIB, ms: 5 } }) });
  const original = globalThis.fetch;
  globalThis.fetch = async (...args) => {
    most = Math.max(most, ++now);
    const response = await original(...args);
    const reader = response.body.getReader();
    return new Response(new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) { now--; controller.close(); } else controller.enqueue(value);
      },
      cancel: (reason) => { now--; return reader.cancel(reason); },
    }), { status: response.status, headers: response.headers });
  };
  try {
    assert.ok((await read(url, { download: { parallel: 3 } })).body.equals(body));
  } finally {
    globalThis.fetch = original;
  }
  assert.ok(most > 1 && most <= 3, `${most} at a time`);
});

test('cuts at any byte are gone on from there, within one load', async () => {
  for (const cutAfter of [1, 7, 1000, 40_000, 65_535]) {
    const path = `/cut-${cutAfter}`;
    const seen = new Set();
    const { url, body } = server.serve(path, 300_001, {
      // The first request for each part is cut.
      fault: ({ from }) => {
        const part = Math.floor(from / (64 * KIB));
        if (seen.has(part)) return undefined;
        seen.add(part);
        return { cutAfter };
      },
    });
    assert.ok((await read(url)).body.equals(body), path);
    // A connection that dies may take along what was still on its way, but not five parts of it.
    assert.ok(server.bytesSent(path) <= body.length + 2 * cutAfter, `${server.bytesSent(path)} bytes for ${body.length}`);
  }
});

test('a download that was given up goes on in the next load', async () => {
  for (const cutAt of [1, 30_000, 65_536, 150_000, 299_999]) {
    const path = `/resume-${cutAt}`;
    const { url, body } = server.serve(path, 300_000);
    const controller = new AbortController();
    let got = 0;
    const load = read(url, {
      signal: controller.signal,
      onChunk: (chunk) => {
        got += chunk.length;
        if (got >= cutAt) controller.abort();
      },
    });
    await assert.rejects(load, { name: 'AbortError' });
    const [entry] = await cache.list();
    assert.equal(entry.complete, false);
    assert.ok(entry.storedBytes > 0);
    const again = await read(url);
    assert.ok(again.body.equals(body), path);
    assert.equal(again.stored, entry.storedBytes, 'what was stored is not fetched again');
    assert.equal(again.network, body.length - entry.storedBytes);
    assert.equal((await cache.list())[0].sha256, sha256(body));
    await cache.remove();
  }
});

test('a wrong hash is a corrupt file, and nothing of it stays', async () => {
  const { url, body } = server.serve('/hash', 200_000);
  await assert.rejects(read(url, { sha256: 'ab'.repeat(32) }), code('corrupt_file'));
  assert.deepEqual(await cache.list(), []);
  assert.ok((await read(url, { sha256: sha256(body) })).body.equals(body));
});

test('hashes that the host gives are checked', async () => {
  const body = Buffer.alloc(150_000, 7);
  const good = sha256(body);
  const wrong = sha256('something else');
  const digest = (hex) => `sha-256=:${Buffer.from(hex, 'hex').toString('base64')}:`;
  const headers = [
    (h) => ({ 'x-linked-etag': `"${h}"` }), (h) => ({ 'repr-digest': digest(h) }),
  ];
  for (const [i, header] of headers.entries()) {
    const right = server.serve(`/digest-${i}`, body, { etag: null, headers: header(good) });
    assert.ok((await read(right.url)).body.equals(body));
    const bad = server.serve(`/bad-digest-${i}`, body, { etag: null, headers: header(wrong) });
    await assert.rejects(read(bad.url), code('corrupt_file'));
  }
  const right = server.serve('/digest-etag', body, { etag: `"${good}"` });
  assert.ok((await read(right.url)).body.equals(body));
  const bad = server.serve('/bad-digest-etag', body, { etag: `"${wrong}"` });
  await assert.rejects(read(bad.url), code('corrupt_file'));
  assert.equal((await cache.list()).length, headers.length + 1);
});

test('a cached file of another hash is not used', async () => {
  const old = server.serve('/new-version', 100_000);
  await read(old.url);
  const { body } = server.serve('/new-version', 100_000);
  assert.ok((await read(old.url)).body.equals(old.body), 'without a hash the copy will do');
  assert.ok((await read(old.url, { sha256: sha256(body) })).body.equals(body));
});

test('404 fails at once, 500 is tried again', async () => {
  await assert.rejects(read(`${server.origin}/nowhere`), (error) => {
    code('download_failed')(error);
    assert.equal(error.details.status, 404);
    return true;
  });
  const { url, body } = server.serve('/shaky', 200_000, { fault: ({ n }) => (n % 2 ? { status: 500 } : undefined) });
  assert.ok((await read(url)).body.equals(body));
  const dead = server.serve('/dead', 1000, { fault: () => ({ status: 503 }) });
  await assert.rejects(read(dead.url), code('download_failed'));
  assert.deepEqual((await cache.list()).map((f) => f.url), [url]);
});

test('a slow drip can be aborted, and a silent server counts as a cut', async () => {
  const slow = server.serve('/slow', 300_000, { fault: () => ({ drip: { bytes: 1000, ms: 50 } }) });
  const started = performance.now();
  const signal = AbortSignal.timeout(300);
  await assert.rejects(read(slow.url, { signal }), { name: 'TimeoutError' });
  assert.ok(performance.now() - started < 2000);
  const silent = server.serve('/silent', 100_000, { fault: ({ n }) => (n === 1 ? { hang: true } : undefined) });
  const { body } = await read(silent.url, { download: { stallMs: 200 } });
  assert.ok(body.equals(silent.body));
});

test('a server without ranges works; a cut is read again from the start', async () => {
  const { url, body } = server.serve('/plain', 400_000, { ranges: false, fault: ({ n }) => (n === 1 ? { cutAfter: 150_000 } : undefined) });
  assert.ok((await read(url)).body.equals(body));
  assert.equal((await read(url)).network, 0, 'it is cached all the same');
  const anonymous = server.serve('/plain-anonymous', 400_000, { ranges: false, etag: null, fault: () => ({ cutAfter: 150_000 }) });
  await assert.rejects(read(anonymous.url), (error) => error.details.changed === true);
});

test('a file that changes half-way is never mixed', async () => {
  const { url } = server.serve('/changing', 500_000, {
    fault: ({ n, served }) => {
      if (n === 3) Object.assign(served, { body: Buffer.alloc(500_000, 1), etag: '"new"' });
      return undefined;
    },
  });
  await assert.rejects(read(url), (error) => {
    code('download_failed')(error);
    assert.equal(error.details.changed, true);
    return true;
  });
  assert.deepEqual(await cache.list(), []);
  assert.ok((await read(url)).body.equals(Buffer.alloc(500_000, 1)), 'the next attempt gets the new one');
});

test('a resumed download of a file that has changed starts over', async () => {
  const { url } = server.serve('/changed-since', 300_000);
  const controller = new AbortController();
  await assert.rejects(read(url, { signal: controller.signal, onChunk: () => controller.abort() }));
  const { body } = server.serve('/changed-since', 310_000);
  await assert.rejects(read(url), (error) => error.details.changed === true);
  assert.ok((await read(url)).body.equals(body));
});

test('two loads of one file at a time download it once', async () => {
  const { url, body } = server.serve('/shared', 500_000, { fault: () => ({ drip: { bytes: 32 * KIB, ms: 3 } }) });
  const [a, b] = await Promise.all([read(url), read(url)]);
  assert.ok(a.body.equals(body) && b.body.equals(body));
  assert.equal(server.bytesSent('/shared'), body.length);
  assert.ok([a, b].some((r) => r.phases.includes('wait')));
});

test('storage that is full ends the caching, not the download', async () => {
  const { url, body } = server.serve('/full', 300_000);
  const stores = platform.stores;
  const [store] = await stores();
  let room = 100_000;
  platform.stores = async () => [{
    ...store,
    async open(id, manifest) {
      const writer = await store.open(id, manifest);
      return {
        ...writer,
        write(part, at, bytes) {
          if ((room -= bytes.length) < 0) throw new DOMException('full', 'QuotaExceededError');
          return writer.write(part, at, bytes);
        },
      };
    },
  }];
  try {
    const { body: got, warnings } = await read(url);
    assert.ok(got.equals(body));
    assert.deepEqual(warnings.map((w) => w.code), ['quota_exceeded']);
    room = 100_000;
    await assert.rejects(read(url, { cache: 'required' }), code('quota_exceeded'));
  } finally {
    platform.stores = stores;
  }
  assert.deepEqual(await cache.list(), []);
  assert.deepEqual(await readdir(process.env.BITNET_CACHE), [], 'nothing is left behind');
});

test('a torn manifest or a truncated file counts as absent', async () => {
  const { url, body } = server.serve('/torn', 100_000);
  await read(url);
  const [id] = await readdir(process.env.BITNET_CACHE);
  const folder = join(process.env.BITNET_CACHE, id);
  const manifest = await readFile(join(folder, 'manifest'), 'utf8');
  await writeFile(join(folder, 'manifest'), manifest.slice(0, 40));
  assert.ok((await read(url)).body.equals(body));
  await writeFile(join(folder, 'data'), body.subarray(0, 5000));
  assert.ok((await read(url)).body.equals(body));
});

test('no cache: nothing is stored; reload: it is fetched again', async () => {
  const { url, body } = server.serve('/uncached', 100_000);
  assert.ok((await read(url, { cache: false })).body.equals(body));
  assert.deepEqual(await cache.list(), []);
  await read(url);
  assert.equal((await read(url, { cache: 'reload' })).network, body.length);
});

test('the cache can be emptied, file by file', async () => {
  const a = server.serve('/a', 1000);
  const b = server.serve('/b', 1000);
  await read(a.url);
  await read(b.url);
  assert.equal(await cache.remove(a.url), 1);
  assert.equal(await cache.remove(a.url), 0);
  assert.deepEqual((await cache.list()).map((f) => f.url), [b.url]);
  const release = await cache.lock(b.url, {});
  await assert.rejects(cache.remove(b.url), code('cache_busy'));
  release();
  assert.equal(await cache.remove(), 1);
});

test('a lock whose holder is gone is taken over, one that is held is not', async () => {
  const { url } = server.serve('/locked', 1000);
  await (await cache.lock(url, {}))();
  assert.deepEqual(await readdir(join(home, 'locks')), []);
  const release = await cache.lock(url, {});
  const [file] = await readdir(join(home, 'locks'));
  let waited = 0;
  const second = cache.lock(url, { onWait: () => waited++ });
  await new Promise((done) => { setTimeout(done, 300); });
  assert.equal(waited, 1);
  await release();
  await (await second)();
  // What a worker that was ended leaves: this process lives on, but nobody touches the file.
  const path = join(home, 'locks', file);
  await writeFile(path, String(process.pid));
  await assert.rejects(cache.lock(url, { signal: AbortSignal.timeout(300) }));
  const before = new Date(Date.now() - 60_000);
  await utimes(path, before, before);
  await (await cache.lock(url, {}))();
});

test('an empty file is a whole file', async () => {
  const { url } = server.serve('/empty', 0, { ranges: false });
  assert.equal((await read(url)).body.length, 0);
});

test('Blobs, buffers, streams and paths', async () => {
  const body = Buffer.from('GGUF and so on');
  assert.ok((await read(new Blob([body]))).body.equals(body));
  assert.ok((await read(new Uint8Array(body))).body.equals(body));
  assert.ok((await read(new Uint8Array(body).buffer)).body.equals(body));
  assert.ok((await read(new Blob([body]).stream())).body.equals(body));
  const path = join(home, 'a file.gguf');
  await writeFile(path, body);
  assert.ok((await read(path)).body.equals(body));
  await assert.rejects(read(join(home, 'missing.gguf')), code('download_failed'));
  assert.throws(() => toSendable(17), code('invalid_argument'));
  assert.throws(() => toSendable({ model: 'x' }), code('invalid_argument'));
  const stream = new ReadableStream({ start: (c) => { c.enqueue('text'); c.close(); } });
  await assert.rejects(read(stream), code('invalid_argument'));
});

test('the hub: one file with its hash, and whole folders', async () => {
  const json = (value) => Buffer.from(JSON.stringify(value));
  const weights = server.serve('/own/repo/resolve/main/model.gguf', 90_000);
  const lfs = (body) => ({ oid: sha256(body), size: body.length });
  const file = (path, body) => ({ type: 'file', path, size: body.length, lfs: lfs(body) });
  server.serve('/api/models/own/repo/tree/main', json([file('model.gguf', weights.body), { type: 'directory', path: 'x' }]));
  const options = { hub: server.origin };
  assert.ok((await read('hf:own/repo/model.gguf', options)).body.equals(weights.body));
  assert.deepEqual(await BitNet.hubModels('hf:own/repo', options), [
    { source: 'hf:own/repo/model.gguf', name: 'model.gguf', format: 'GGUF', bytes: 90_000, sha256: sha256(weights.body) },
  ]);
  assert.equal((await read('hf:own/repo', options)).network, 0, 'the one GGUF file, from the cache');

  server.serve('/api/models/own/repo/tree/main', json([file('model.gguf', Buffer.from('another'))]));
  await assert.rejects(read('hf:own/repo/model.gguf', options), code('corrupt_file'));

  const config = server.serve('/own/hf/resolve/v1/config.json', json({ a: 1 }));
  const tokenizer = server.serve('/own/hf/resolve/v1/tokenizer.json', json({ b: 2 }));
  const shards = [1, 2].map((i) => server.serve(`/own/hf/resolve/v1/model-0000${i}-of-00002.safetensors`, 5000 * i));
  server.serve('/api/models/own/hf/tree/v1', json([
    file('model-00002-of-00002.safetensors', shards[1].body), file('model-00001-of-00002.safetensors', shards[0].body),
    { type: 'file', path: 'config.json', size: config.body.length }, { type: 'file', path: 'tokenizer.json', size: 8 },
  ]));
  const folder = await read('hf:own/hf@v1', options);
  assert.deepEqual(folder.bodies.map(sha256), shards.map((s) => sha256(s.body)));
  assert.deepEqual(folder.texts, { 'config.json': String(config.body), 'tokenizer.json': String(tokenizer.body) });

  server.serve('/api/models/own/many/tree/main', json([file('a.gguf', Buffer.from('')), file('b.gguf', Buffer.from(''))]));
  await assert.rejects(read('hf:own/many', options), /a\.gguf, b\.gguf/);
  server.serve('/api/models/own/many/tree/main/more', json([file('more/c.gguf', Buffer.from('')), file('more/d.safetensors', Buffer.from('dd'))]));
  server.files.get('/api/models/own/many/tree/main').headers = { link: `<${server.origin}/api/models/own/many/tree/main/more>; rel="next"` };
  assert.deepEqual((await BitNet.hubModels('hf:own/many', options)).map((m) => [m.source, m.format, m.bytes]), [
    ['hf:own/many/a.gguf', 'GGUF', 0], ['hf:own/many/b.gguf', 'GGUF', 0], ['hf:own/many/more/c.gguf', 'GGUF', 0],
    ['hf:own/many', 'safetensors', 2],
  ]);
  assert.deepEqual((await BitNet.hubModels('hf:own/many/more', options)).map((m) => m.source), ['hf:own/many/more/c.gguf', 'hf:own/many/more']);
  await assert.rejects(BitNet.hubModels('hf:own/nothing', options), code('download_failed'));
  await assert.rejects(read('hf:own/nothing/x.gguf', options), code('download_failed'));
  await assert.rejects(read('hf:nonsense', options), code('invalid_argument'));
});
