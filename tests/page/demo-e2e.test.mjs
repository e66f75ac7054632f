// The pages on the real package, in a real browser, on the CPU and with WebGPU.
// A software GPU needs minutes for what a real one does in a second: there a fixture takes the default
// model's place and only writing and switching are tried, unless `WEBGPU_FIXTURES=all`.
// Needs www/pkg: node pkg-template/build.mjs.  Run: node --test tests/page/demo-e2e.test.mjs
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { launch, repository, serveWww, watch, www } from './browser.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const fixture = readFileSync(join(repository, 'tests/fixtures/qwen3-mini/gguf/qwen3-mini-TQ1_0.gguf'));
const SLOW = { timeout: 300_000 }; // SwiftShader on a busy machine.
const real = { cpu: true, webgpu: process.env.WEBGPU_FIXTURES === 'all' };

/** The package with a fixture as its default model. */
function smallPackage() {
  const folder = mkdtempSync(join(tmpdir(), 'bitnet-small-'));
  cpSync(join(www, 'pkg'), folder, { recursive: true });
  const model = readFileSync(join(repository, 'tests/fixtures/qwen3-mini/gguf/qwen3-mini-Q2_0.gguf'));
  writeFileSync(join(folder, 'models', 'tales.gguf'), model);
  const facts = join(folder, 'lib', 'default-model.js');
  writeFileSync(facts, readFileSync(facts, 'utf8').replace(/bytes: \d+/, `bytes: ${model.length}`)
    .replace(/sha256: '\w+'/, `sha256: '${createHash('sha256').update(model).digest('hex')}'`));
  return folder;
}

let browser;
let small;
before(async () => {
  assert.ok(existsSync(join(www, 'pkg', 'index.js')), 'www/pkg is missing: run node pkg-template/build.mjs');
  browser = await launch();
  small = smallPackage();
});
after(async () => {
  await browser?.close();
  rmSync(small, { recursive: true, force: true });
});

/** A page on a server of its own; settings are set before it loads. @param {object} settings
 * @param {(page: import('playwright-core').Page, server: any) => Promise<void>} steps
 * @param {{ path?: string, allow?: RegExp, device?: 'cpu' | 'webgpu' }} [options] */
async function on(settings, steps, { path = '', allow, device = settings.device ?? 'cpu' } = {}) {
  const requests = [];
  const server = await serveWww({
    mounts: real[device] ? {} : { '/pkg/': small }, onRequest: (name) => requests.push(name),
  });
  const context = await browser.newContext();
  context.setDefaultTimeout(SLOW.timeout);
  try {
    const page = await context.newPage();
    const problems = watch(page, server.url);
    await page.addInitScript((values) => {
      localStorage.getItem('bitnet-rust:settings') ?? localStorage.setItem('bitnet-rust:settings', JSON.stringify(values));
    }, settings);
    await page.goto(server.url + path);
    await steps(page, { ...server, requests });
    assert.deepEqual(problems.filter((p) => !allow?.test(p)), []);
  } finally {
    await context.close();
    await server.close();
  }
}

const NAMES = { webgpu: 'on WebGPU', cpu: 'on the CPU' };
const ready = (page, device) => page.waitForFunction((name) => document.getElementById('state-text').textContent === name, NAMES[device]);
const write = async (page, words) => {
  await page.fill('#prompt', words);
  await page.press('#prompt', 'Enter');
};
const setTokens = async (page, n) => {
  await page.click('#open-panel');
  await page.fill('#field-maxTokens', String(n));
  await page.press('#field-maxTokens', 'Tab');
  await page.click('#close-panel');
};
const idle = (page) => page.waitForSelector('#stop', { state: 'hidden' });
const figures = (page) => page.textContent('.after .figures >> visible=true');

/** @param {import('playwright-core').Page} page @param {string} name @param {Buffer} bytes */
async function drop(page, name, bytes) {
  await page.evaluate(([fileName, base64]) => {
    const blob = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))]);
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([blob], fileName));
    for (const type of ['dragenter', 'dragover', 'drop']) {
      document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
    }
  }, [name, bytes.toString('base64')]);
}

for (const device of /** @type {const} */ (['cpu', 'webgpu'])) {
  describe(device, () => {
    test('load, stream, stop, go on, second turn from the KV cache', SLOW, () => on({ device, temperature: 0, maxTokens: 40 }, async (page) => {
      await ready(page, device);
      await write(page, 'Once upon a time');
      // It comes piece by piece, not at once at the end.
      await page.waitForFunction(() => document.querySelector('#story .text')?.textContent.length > 20
        && !document.getElementById('stop').hidden);
      await idle(page);
      const story = await page.textContent('#story .text');
      assert.match(story, real[device] ? /^Once upon a time[ ,]./ : /^Once upon a time./s);
      assert.match(await figures(page), /^40 tokens · [\d.]+ tok\/s · first after /);

      await page.click('.after >> text="Go on"');
      await idle(page);
      const longer = await page.textContent('#story .text');
      assert.ok(longer.startsWith(story) && longer.length > story.length);
      assert.match(await figures(page), /\d+ of \d+ remembered/);

      await setTokens(page, 1000);
      await page.check('input[value=chat]', { force: true });
      await write(page, 'Tell me a story about a fox and a crow.');
      await page.waitForFunction(() => document.querySelector('.model-text')?.textContent.length > 30);
      await page.keyboard.press('Escape');
      await idle(page);
      assert.match(await figures(page), /^stopped · \d+ tokens · /);
      const first = await page.textContent('.model-text');

      await write(page, 'And then?');
      await page.waitForFunction(() => document.querySelectorAll('.model-text')[1]?.textContent.length > 10);
      await page.keyboard.press('Escape');
      await idle(page);
      await setTokens(page, 6);
      await write(page, 'Tell me more.');
      await page.waitForFunction(() => document.querySelectorAll('.model-text')[2]?.textContent.length > 0);
      await idle(page);
      assert.equal(await page.locator('.model-text').first().textContent(), first);
      const [, cached, prompt] = /(\d+) of (\d+) remembered/.exec(await figures(page)) ?? [];
      assert.ok(Number(cached) > Number(prompt) / 2, `${cached} of ${prompt} prompt tokens were in the KV cache`);
    }));

    if (!real[device]) return;

    test('a file by drop, a damaged one, and back', SLOW, () => on({ device, maxTokens: 8 }, async (page) => {
      await ready(page, device);
      await drop(page, 'mine.gguf', fixture);
      await page.waitForFunction(() => document.getElementById('model-name').textContent !== 'Storyteller');
      await ready(page, device);
      await write(page, 'hello');
      await idle(page);
      assert.match(await figures(page), /tokens/);
      for (const [name, bytes] of [['half.gguf', fixture.subarray(0, fixture.length / 2)], ['text.gguf', Buffer.from('once upon a time')],
        ['empty.gguf', Buffer.alloc(0)], ['bad.gguf', Buffer.concat([fixture.subarray(0, 8), Buffer.alloc(64, 255)])]]) {
        await drop(page, name, bytes);
        await page.waitForSelector('#notice[data-code="corrupt_file"]:not([hidden])');
        assert.match(await page.textContent('#notice .detail'), /\w+/);
        await page.click('#notice button >> text="Close"');
      }
      await write(page, 'still here');
      await idle(page);
      assert.match(await figures(page), /tokens/, 'the model that was there goes on');
      await page.click('#open-panel');
      await page.click('#use-default');
      await page.waitForFunction(() => document.getElementById('model-name').textContent === 'Storyteller');
      await ready(page, device);
    }));

    test('a reload takes the model from the cache, and works without a network', SLOW, () => on({ device, maxTokens: 8 }, async (page, server) => {
      const weights = () => server.requests.filter((path) => path.endsWith('.gguf')).length;
      await ready(page, device);
      assert.ok(weights() > 0, 'the first visit downloads');
      const isKept = () => page.evaluate(async () => {
        const urls = (await (await caches.open('bitnet-rust-page')).keys()).map((request) => request.url);
        return Boolean(navigator.serviceWorker.controller) && ['_bg.wasm', 'pkg/index.js', '/'].every((end) => urls.some((url) => url.endsWith(end)));
      });
      while (!(await isKept())) await page.waitForTimeout(100);
      const before = weights();
      await page.reload();
      await ready(page, device);
      assert.equal(weights(), before, 'the second does not');

      await server.close();
      await page.reload();
      await ready(page, device);
      await page.click('#openings button');
      await page.waitForSelector('.after .figures');
      assert.match(await figures(page), /^8 tokens/);
      await page.goto(`${server.url}check.html`);
      assert.match(await page.textContent('h1'), /correctly/);
    }, { allow: /ERR_CONNECTION_REFUSED|Failed to update a ServiceWorker/ }));

    test('each kernel is right here', SLOW, () => on({}, async (page) => {
      await page.selectOption('#device', device);
      await page.click('#start');
      await page.waitForSelector('.status.good, .status.bad, #error:not([hidden])');
      assert.equal(await page.textContent('#error'), '');
      assert.match(await page.textContent('#status'), /^All \d\d+ are right\.$/, (await page.locator('tr:has(.fail)').allTextContents()).join('\n'));
    }, { path: 'check.html' }));
  });
}

test('devices are switched, and the text stays', SLOW, () => on({ device: 'webgpu', temperature: 0, maxTokens: 6 }, async (page) => {
  await ready(page, 'webgpu');
  await write(page, 'Once upon a time');
  await idle(page);
  const story = await page.textContent('#story .text');
  await page.click('#open-panel');
  await page.selectOption('#field-device', 'cpu');
  await page.click('#close-panel');
  await ready(page, 'cpu');
  assert.equal(await page.textContent('#story .text'), story);
  await page.click('.after >> text="Go on"');
  await idle(page);
  assert.ok((await page.textContent('#story .text')).length > story.length);
}));

test('a prompt longer than the context says what to do', SLOW, () => on({ device: 'cpu', contextLength: 32 }, async (page) => {
  await ready(page, 'cpu');
  await write(page, 'A long tale of a king and his horse. '.repeat(20));
  await page.waitForSelector('#notice[data-code="context_full"]:not([hidden])');
}));

test('bench: figures of the real thing', SLOW, () => on({}, async (page) => {
  await page.uncheck('input[value=webgpu]');
  await page.selectOption('#runs', '1');
  await page.click('#start');
  await page.waitForFunction(() => document.querySelectorAll('#rows tbody tr').length >= 2);
  await page.click('#stop');
  await page.waitForSelector('#start', { state: 'visible' });
  const cells = await page.locator('#rows tbody tr').first().locator('td').allTextContents();
  assert.ok(Number(cells[1]) > 0 && Number(cells[3]) > 0, cells.join(' '));
}, { path: 'bench.html' }));

test('axe finds nothing on the real page', SLOW, () => on({ device: 'cpu', maxTokens: 8 }, async (page) => {
  await ready(page, 'cpu');
  await write(page, 'Once upon a time');
  await idle(page);
  await page.click('#open-panel');
  await page.waitForTimeout(300);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map((v) => `${v.id} (${v.impact})`), []);
}));

test('the service worker knows every file of the pages', async () => {
  const source = readFileSync(join(www, 'sw.js'), 'utf8');
  const list = new Function(`${/const FILES = \[[^]*?\n\];/.exec(source)[0]} return FILES;`)();
  // What the pages load, by following their imports. Those that only Node takes are written as URLs there.
  const found = new Set(['./', 'bench.html', 'check.html', 'pkg/worker.js']);
  const queue = ['index.html', 'bench.html', 'check.html', 'pkg/worker.js'];
  const seen = new Set();
  while (queue.length) {
    const path = queue.pop();
    if (seen.has(path)) continue;
    seen.add(path);
    const text = readFileSync(join(www, path), 'utf8');
    const pattern = path.endsWith('.html') ? /(?:src|href)="([\w/.-]+\.(?:js|css|svg))"/g : /^(?:import|export)\b[^'"]*from '(\.[^']+)'|import\('(\.[^']+)'\)/gm;
    for (const [, a, b] of text.matchAll(pattern)) {
      const next = join(path, path.endsWith('.html') ? `../${a}` : `../${a ?? b}`);
      if (next.includes('wasm/')) continue; // Kept once it is known which build this browser takes.
      found.add(next);
      if (next.endsWith('.js')) queue.push(next);
    }
  }
  assert.deepEqual([...found].sort(), [...list].sort());
  for (const build of ['simd128', 'relaxed']) {
    assert.deepEqual(readdirSync(join(www, 'pkg', 'wasm', build)).filter((n) => /\.(js|wasm)$/.test(n)).sort(), ['bitnet.js', 'bitnet_bg.wasm']);
  }
});
