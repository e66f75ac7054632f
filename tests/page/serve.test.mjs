// The static server: types, ranges, validators, and no way out of its folder.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseRange, serve } from '../../www/serve.mjs';
import { www } from './browser.mjs';

let folder;
let server;
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'serve-'));
  mkdirSync(join(folder, 'root', 'sub'), { recursive: true });
  writeFileSync(join(folder, 'secret.txt'), 'secret');
  writeFileSync(join(folder, 'root', 'a.bin'), Buffer.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
  writeFileSync(join(folder, 'root', 'empty.js'), '');
  writeFileSync(join(folder, 'root', 'x y.wasm'), 'wasm');
  writeFileSync(join(folder, 'root', 'sub', 'index.html'), 'hello');
  symlinkSync(join(folder, 'secret.txt'), join(folder, 'root', 'link.txt'));
  server = await serve({ root: join(folder, 'root') });
});
after(async () => {
  await server.close();
  rmSync(folder, { recursive: true });
});

/** A request whose path no client has tidied up. @param {string} path @param {object} [headers] @param {string} [method] */
const get = (path, headers = {}, method = 'GET') => new Promise((done, failed) => {
  http.request({ port: server.port, path, headers, method, agent: false }, (response) => {
    const chunks = [];
    response.on('data', (chunk) => chunks.push(chunk));
    response.on('end', () => done({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks) }));
  }).on('error', failed).end();
});

test('whole files with their types', async () => {
  const whole = await get('/a.bin');
  assert.equal(whole.status, 200);
  assert.deepEqual([...whole.body], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(whole.headers['content-length'], '10');
  assert.equal((await get('/x%20y.wasm')).headers['content-type'], 'application/wasm');
  const empty = await get('/empty.js?v=1');
  assert.deepEqual([empty.status, empty.body.length, empty.headers['content-type']], [200, 0, 'text/javascript; charset=utf-8']);
  assert.equal((await get('/sub/')).body.toString(), 'hello');
  assert.equal((await get('/sub')).headers.location, './sub/');
  const head = await get('/a.bin', {}, 'HEAD');
  assert.deepEqual([head.status, head.body.length, head.headers['content-length']], [200, 0, '10']);
});

test('ranges and validators', async () => {
  const part = await get('/a.bin', { range: 'bytes=2-4' });
  assert.deepEqual([part.status, part.headers['content-range'], ...part.body], [206, 'bytes 2-4/10', 2, 3, 4]);
  assert.deepEqual([...(await get('/a.bin', { range: 'bytes=8-' })).body], [8, 9]);
  assert.deepEqual([...(await get('/a.bin', { range: 'bytes=-3' })).body], [7, 8, 9]);
  assert.deepEqual([...(await get('/a.bin', { range: 'bytes=5-999' })).body], [5, 6, 7, 8, 9]);
  const outside = await get('/a.bin', { range: 'bytes=10-' });
  assert.deepEqual([outside.status, outside.headers['content-range']], [416, 'bytes */10']);
  const { etag } = part.headers;
  assert.equal((await get('/a.bin', { 'if-none-match': etag })).status, 304);
  assert.equal((await get('/a.bin', { range: 'bytes=0-0', 'if-range': etag })).status, 206);
  assert.equal((await get('/a.bin', { range: 'bytes=0-0', 'if-range': '"old"' })).status, 200);
  for (const odd of ['bytes=', 'bytes=-', 'bytes=a-b', 'bytes=0-1,4-5', 'items=0-1']) assert.equal((await get('/a.bin', { range: odd })).status, 200, odd);
  for (const [header, size, expected] of [['bytes=3-1', 10, 'bad'], ['bytes=0-', 0, 'bad'], ['bytes=-0', 10, 'bad']]) {
    assert.equal(parseRange(header, size), expected, header);
  }
});

test('nothing outside the folder', async () => {
  for (const path of ['/../secret.txt', '/%2e%2e/secret.txt', '/sub/..%2f..%2fsecret.txt', '/link.txt', '/nothing', '/%00', '/sub/../../secret.txt']) {
    assert.equal((await get(path)).status, 404, path);
  }
  assert.equal((await get('/%zz')).status, 400);
  assert.equal((await get('/a.bin', {}, 'POST')).status, 405);
  assert.equal((await get('/a.bin')).status, 200, 'it goes on');
});

test('the command: free port, isolation, usage', async () => {
  const child = spawn(process.execPath, [join(www, 'serve.mjs'), '--port', '0', '--isolated'], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    const [line] = await new Promise((done) => child.stdout.once('data', (data) => done(String(data).split('\n'))));
    const response = await fetch(line);
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('cross-origin-opener-policy'), 'same-origin');
    assert.equal(response.headers.get('cross-origin-embedder-policy'), 'require-corp');
    await response.text();
  } finally {
    child.kill();
  }
  assert.throws(() => execFileSync(process.execPath, [join(www, 'serve.mjs'), '--port', 'x'], { stdio: 'pipe' }), { status: 2 });
});
