// The pages by themselves: everything but the engine, which mock/index.js stands in for.
// The same pages on the real package: demo-e2e.test.mjs.  Run: node --test tests/page/demo.test.mjs
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';
import { launch, mock, serveWww, watch } from './browser.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** @type {import('playwright-core').Browser} */
let browser;
let server;
before(async () => {
  [browser, server] = await Promise.all([launch(), serveWww({ mounts: mock })]);
});
after(async () => {
  await browser?.close();
  await server?.close();
});

/** Runs `steps` on a fresh page; anything that must not happen there fails the test.
 * @param {(page: import('playwright-core').Page) => Promise<void>} steps
 * @param {{ path?: string, context?: object, allow?: RegExp }} [options] */
async function on(steps, { path = '', context: options = {}, allow } = {}) {
  const context = await browser.newContext({ serviceWorkers: 'block', ...options });
  try {
    const page = await context.newPage();
    const problems = watch(page, server.url);
    await page.goto(server.url + path);
    await steps(page);
    assert.deepEqual(problems.filter((p) => !allow?.test(p)), []);
  } finally {
    await context.close();
  }
}

const ready = (page) => page.waitForSelector('#cancel-load', { state: 'hidden' }).then(() => page.waitForFunction(() => /on /.test(document.getElementById('state-text').textContent)));
const finished = (page) => page.waitForSelector('.after .figures');
const calls = (page, name) => page.evaluate((n) => globalThis.mockLog.filter(([call]) => call === n), name);
const file = (name) => ({ name, mimeType: 'application/octet-stream', buffer: Buffer.from('GGUF') });

/** @param {import('playwright-core').Page} page @param {string} selector @param {string[]} names */
async function drop(page, names, selector = 'body') {
  await page.evaluate(([where, list]) => {
    const dataTransfer = new DataTransfer();
    for (const name of list) dataTransfer.items.add(new File(['GGUF'], name));
    const target = document.querySelector(where);
    for (const type of ['dragenter', 'dragover', 'drop']) {
      target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
    }
  }, [selector, names]);
}

describe('writing', () => {
  test('a story: begun, gone on with, tried again, copied, cleared', () => on(async (page) => {
    await ready(page);
    await page.fill('#prompt', 'Once upon a time');
    await page.press('#prompt', 'Enter');
    await finished(page);
    const text = await page.textContent('#story .text');
    assert.match(text, /^Once upon a time .{100}/s);
    assert.match(await page.textContent('.after .figures'), /200 tokens · 42 tok\/s · first after 15 ms · 6 of 10 remembered/);

    await page.click('.after >> text=Go on');
    await page.waitForFunction((n) => document.querySelector('#story .text').textContent.length > n, text.length);
    await finished(page);
    const [, second] = await calls(page, 'generate');
    assert.equal(second[1], text, 'the model goes on from all of the text');

    const longer = await page.textContent('#story .text');
    await page.click('.after >> text=Try again');
    await finished(page);
    const [, , third] = await calls(page, 'generate');
    assert.equal(third[1], text, 'the last piece was taken back');
    assert.ok(Number.isInteger(third[2].seed));
    assert.notEqual(await page.textContent('#story .text'), longer);

    await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
    await page.click('.after >> text=Copy');
    await page.waitForFunction(() => document.getElementById('state-text').textContent === 'copied');
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), await page.textContent('#story .text'));

    await page.click('.after >> text=New page');
    assert.ok(await page.isVisible('#opening'));
    assert.ok(await page.evaluate(() => document.activeElement.id === 'prompt'));
  }));

  test('a conversation: the model gets all turns', () => on(async (page) => {
    await ready(page);
    await page.check('input[value=chat]', { force: true });
    for (const words of ['Hello', 'And then?']) {
      await page.fill('#prompt', words);
      await page.press('#prompt', 'Enter');
      await page.waitForSelector('#stop', { state: 'visible' });
      await page.waitForSelector('#stop', { state: 'hidden' });
    }
    const messages = (await calls(page, 'chat'))[1][1];
    assert.deepEqual(messages.map((m) => m.role), ['user', 'assistant', 'user']);
    assert.equal(messages[2].content, 'And then?');
    assert.equal(await page.locator('#turns > li').count(), 4);
  }));

  test('Escape and the button stop it; what was written stays', () => on(async (page) => {
    await ready(page);
    for (const stop of [() => page.keyboard.press('Escape'), () => page.click('#stop')]) {
      await page.fill('#prompt', 'Once');
      await page.press('#prompt', 'Enter');
      await page.waitForFunction(() => document.querySelector('#story .text')?.textContent.length > 20);
      await stop();
      await page.waitForSelector('#stop', { state: 'hidden' });
      const text = await page.textContent('#story .text');
      assert.ok(text.length > 20);
      await page.waitForTimeout(200);
      assert.equal(await page.textContent('#story .text'), text);
      assert.match(await page.textContent('.after .figures'), /^stopped · \d+ tokens · /);
      assert.ok(await page.evaluate(() => document.activeElement.id === 'prompt'), 'the focus is not lost');
    }
  }, { path: '?speed=slow' }));

  test('Shift+Enter makes a new line, and words may come before the model', () => on(async (page) => {
    await page.fill('#prompt', 'One');
    await page.press('#prompt', 'Shift+Enter');
    await page.keyboard.type('Two');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#stop', { state: 'visible' });
    assert.equal((await calls(page, 'generate')).length, 0, 'it still loads');
    await page.evaluate(() => globalThis.mockRelease());
    await page.waitForFunction(() => document.querySelector('#story .text').textContent.length > 20);
    assert.equal((await calls(page, 'generate'))[0][1], 'One\nTwo');
  }, { path: '?speed=slow&hold' }));

  test('the text, the mode and the draft outlive a reload', () => on(async (page) => {
    await ready(page);
    await page.click('#openings button');
    await finished(page);
    const text = await page.textContent('#story .text');
    await page.check('input[value=chat]', { force: true });
    await page.fill('#prompt', 'a draft');
    await page.reload();
    assert.equal(await page.inputValue('#prompt'), 'a draft');
    assert.ok(await page.isChecked('input[value=chat]'));
    await page.check('input[value=story]', { force: true });
    assert.equal(await page.textContent('#story .text'), text);
  }));

  test('stored text of any shape is harmless', () => on(async (page) => {
    for (const bad of ['{', '[]', 'null', '{"story":[{"by":"x"},null,5],"turns":7,"mode":9,"draft":{}}']) {
      await page.evaluate((value) => {
        // The page saves when it goes: put it back afterwards.
        addEventListener('pagehide', () => sessionStorage.setItem('bitnet-rust:text', value));
        localStorage.setItem('bitnet-rust:settings', value);
      }, bad);
      await page.reload();
      await ready(page);
      assert.ok(await page.isVisible('#opening'));
    }
  }));
});

describe('models', () => {
  test('by address', () => on(async (page) => {
    await ready(page);
    const tryLoad = async (typed) => {
      await page.click('#open-panel');
      await page.fill('#source', typed);
      await page.press('#source', 'Enter');
    };
    for (const bad of ['', 'hf:owner', 'hf:a/b?c', 'just words', 'ftp://example.org/x.gguf', 'javascript:alert(1)']) {
      await tryLoad(bad);
      assert.ok(await page.isVisible('#source-error'), bad);
      assert.equal(await page.getAttribute('#source', 'aria-invalid'), 'true');
      await page.click('#close-panel');
    }
    for (const good of ['hf:owner/repo', 'hf:owner/repo@main/dir/file.gguf', 'https://example.org/m.gguf', 'models/x.gguf']) {
      await tryLoad(good);
      await page.waitForSelector('#panel', { state: 'hidden' });
      await ready(page);
    }
    const loads = (await calls(page, 'load')).map(([, source]) => source);
    assert.deepEqual(loads.slice(1), ['hf:owner/repo', 'hf:owner/repo@main/dir/file.gguf', 'https://example.org/m.gguf', `${server.url}models/x.gguf`]);
    assert.equal((await calls(page, 'dispose')).length, 4, 'each model makes room for the next');
  }));

  test('a repository with several models: one is chosen', () => on(async (page) => {
    await ready(page);
    const type = async (typed) => {
      await page.fill('#source', typed);
      await page.press('#source', 'Enter');
    };
    await page.click('#open-panel');
    await type('hf:owner/many');
    await page.waitForSelector('#choices button');
    assert.deepEqual(await page.locator('#choices li').allTextContents(), ['a-Q2_0.gguf1.0 GB', 'b-TQ2_0.gguf2.0 GB']);
    await page.fill('#source', 'hf:owner/man');
    assert.ok(await page.isHidden('#choices'), 'they belong to another address');
    await type('hf:owner/many');
    await page.click('#choices >> text=b-TQ2_0.gguf');
    await page.waitForSelector('#panel', { state: 'hidden' });
    await ready(page);
    await page.click('#open-panel');
    await type('hf:owner/nothing');
    await page.waitForSelector('#panel', { state: 'hidden' });
    await ready(page);
    const loads = (await calls(page, 'load')).map(([, source]) => source);
    assert.deepEqual(loads.slice(1), ['hf:owner/many/b-TQ2_0.gguf', 'hf:owner/nothing']);
  }));

  test('by drop: a file, several of a safetensors model, and what cannot be', () => on(async (page) => {
    await ready(page);
    await drop(page, ['mine.gguf']);
    await page.waitForFunction(() => globalThis.mockLog.some(([, name]) => name === 'mine.gguf'));
    await ready(page);
    await drop(page, ['model.safetensors', 'config.json', 'tokenizer.json']);
    await page.waitForFunction(() => globalThis.mockLog.some(([, name]) => name === 'safetensors'));
    await ready(page);
    await drop(page, ['model.safetensors']);
    assert.match(await page.textContent('#notice'), /needs config\.json and tokenizer\.json/);
    await drop(page, ['a.gguf', 'b.gguf']);
    assert.match(await page.textContent('#notice'), /choose one/);
    assert.ok(await page.isHidden('#drop'));
  }));

  test('a bad file: what is wrong, what helps, and the model that was there goes on', () => on(async (page) => {
    await ready(page);
    await drop(page, ['corrupt_file.gguf']);
    await page.waitForSelector('#notice:not([hidden])');
    assert.equal(await page.getAttribute('#notice', 'data-code'), 'corrupt_file');
    assert.match(await page.textContent('#notice'), /not a whole model file.*Use the storyteller/s);
    await page.click('#openings button');
    await finished(page);
  }));

  test('kept models are listed and deleted', () => on(async (page) => {
    await ready(page);
    await page.click('#open-panel');
    assert.equal(await page.locator('#cached li').count(), 2);
    assert.match(await page.textContent('#cached'), /500 MB of 1\.2 GB, unfinished · example\.org/);
    await page.click('#cached li:nth-child(2) button:not(.name)');
    await page.waitForFunction(() => document.querySelectorAll('#cached li').length === 1);
    assert.deepEqual((await calls(page, 'delete'))[0], ['delete', 'https://example.org/models/half.gguf']);
    await page.click('#cached button:not(.name)');
    await page.waitForSelector('#cached .none');
  }));

  test('a load can be cancelled, and begins again with the first words', () => on(async (page) => {
    await page.click('#cancel-load');
    assert.equal(await page.textContent('#model-name'), 'No model');
    await page.click('#openings button');
    await finished(page);
    assert.equal((await calls(page, 'load')).length, 2);
  }, { path: '?speed=slow' }));

  test('a model without a chat template cannot chat', () => on(async (page) => {
    await page.check('input[value=chat]', { force: true });
    await ready(page);
    await page.setInputFiles('#file', file('base.gguf'));
    await page.waitForFunction(() => document.querySelector('input[value=chat]').disabled);
    assert.ok(await page.isChecked('input[value=story]'));
  }));
});

test('each error code has a title, advice and buttons that work', () => on(async (page) => {
  const { CODES } = await page.evaluate(() => import('/js/errors.js'));
  assert.ok(CODES.length >= 14);
  await ready(page);
  for (const code of ['download_failed', 'unsupported_model', 'webgpu_unavailable', 'device_lost', 'out_of_memory', 'internal']) {
    await page.setInputFiles('#file', file(`${code}.gguf`));
    await page.waitForSelector(`#notice[data-code="${code}"]`);
    await page.click('#notice button >> text="Close"');
    assert.ok(await page.isHidden('#notice'));
  }
  await page.setInputFiles('#file', file('webgpu_unavailable.gguf'));
  await page.click('#notice button >> text="Use the CPU"');
  await page.waitForFunction(() => globalThis.mockLog.at(-1)?.[2] === 'cpu' || globalThis.mockLog.some(([, , d]) => d === 'cpu'));
  await page.waitForSelector('#notice[data-code="webgpu_unavailable"]');
  await page.reload();
  await page.waitForFunction(() => document.getElementById('state-text').textContent === 'on the CPU');
  await page.fill('#prompt', 'context_full');
  await page.press('#prompt', 'Enter');
  await page.waitForSelector('#notice[data-code="context_full"]');
  await page.click('#notice button >> text="New page"');
  assert.ok(await page.isVisible('#opening'));
}));

test('every code of the contract is explained', async () => {
  const { CODES, explain } = await import('../../www/js/errors.js');
  const contract = readFileSync(new URL('../../pkg-template/index.d.ts', import.meta.url), 'utf8');
  const [, union] = /export type ErrorCode =([^;]+);/.exec(contract);
  assert.deepEqual([...union.matchAll(/'(\w+)'/g)].map(([, code]) => code).sort(), [...CODES].sort());
  for (const odd of [undefined, null, 'text', {}, { code: 'constructor' }, { code: 5 }]) assert.equal(explain(odd).code, 'internal');
});

describe('settings', () => {
  test('are checked, explained, kept and used', () => on(async (page) => {
    await ready(page);
    await page.click('#open-panel');
    const set = async (name, value) => {
      await page.fill(`#field-${name}`, value);
      await page.press(`#field-${name}`, 'Tab');
    };
    for (const [name, bad] of [['temperature', '-1'], ['temperature', 'warm'], ['topK', '1.5'], ['topP', '0'], ['minP', '2'],
      ['repetitionPenalty', '0'], ['seed', '4294967296'], ['maxTokens', '0'], ['contextLength', '1e99'], ['presencePenalty', 'NaN']]) {
      await set(name, bad);
      assert.equal(await page.getAttribute(`#field-${name}`, 'aria-invalid'), 'true', `${name} ${bad}`);
      assert.match(await page.textContent(`#field-${name}-error`), /number/);
      await set(name, '');
      assert.equal(await page.getAttribute(`#field-${name}`, 'aria-invalid'), 'false', name);
    }
    await set('temperature', '0.25');
    await set('maxTokens', '12');
    await set('seed', '3');
    await page.press('#field-temperature', 'ArrowUp');
    assert.equal(await page.inputValue('#field-temperature'), '0.3');
    await set('contextLength', '512');
    await page.selectOption('#field-device', 'cpu');
    await page.keyboard.press('Escape');
    assert.ok(await page.isHidden('#panel'));
    await page.waitForFunction(() => document.getElementById('state-text').textContent === 'on the CPU');
    assert.deepEqual((await calls(page, 'load')).at(-1).slice(2), ['cpu', 512]);
    await page.click('#openings button');
    await finished(page);
    const options = (await calls(page, 'generate'))[0][2];
    assert.deepEqual([options.temperature, options.maxTokens, options.seed, options.topK, options.device], [0.3, 12, 3, 40, undefined]);

    await page.reload();
    await page.waitForFunction(() => document.getElementById('state-text').textContent === 'on the CPU');
    await page.click('#open-panel');
    assert.equal(await page.inputValue('#field-temperature'), '0.3');
    await page.click('#reset-settings');
    assert.equal(await page.inputValue('#field-temperature'), '0.7');
    assert.equal(await page.inputValue('#field-seed'), '');
    await page.waitForFunction(() => document.getElementById('state-text').textContent === 'on WebGPU');
  }));

  test('the panel shows speed and memory', () => on(async (page) => {
    await ready(page);
    await page.click('#openings button');
    await finished(page);
    await page.click('#open-panel');
    assert.equal(await page.locator('#figures svg.plot').count(), 2);
    assert.match(await page.textContent('#figures'), /Memory: 26\.0 MB.*6 of them remembered/s);
  }, { path: '?speed=slow' }));

  test('dark and light: the system’s choice, then the reader’s', () => on(async (page) => {
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(await page.getAttribute('#theme', 'aria-pressed'), 'true');
    const dark = await paper();
    await page.click('#theme');
    assert.notEqual(await paper(), dark);
    await page.reload();
    assert.notEqual(await paper(), dark);
    assert.equal(await page.getAttribute('#theme', 'aria-pressed'), 'false');
  }, { context: { colorScheme: 'dark' } }));
});

describe('reports', () => {
  test('bench: plots, table, JSON', () => on(async (page) => {
    await page.click('#start');
    await page.waitForFunction(() => document.getElementById('status').textContent === 'Done.', undefined, { timeout: 60_000 });
    assert.ok(await page.locator('#decode-plot .series-1.line').count());
    assert.ok(await page.locator('#prefill-plot .series-2.line').count());
    const rows = await page.locator('#rows tbody tr').count();
    const [saved] = await Promise.all([page.waitForEvent('download'), page.click('#download')]);
    const json = JSON.parse(readFileSync(await saved.path(), 'utf8'));
    assert.equal(json.rows.length, rows);
    assert.deepEqual([...new Set(json.rows.map((r) => r.device))], ['webgpu', 'cpu']);
    assert.equal(json.rows[0].runs.length, 3);
    assert.deepEqual(await page.locator('#kernels tbody tr').allTextContents(), ['attnattention_decode80.60075 %–', 'ffn_upternary_gemv acts_i880.20025 %10.0']);
    assert.equal(json.kernels.length, 2);
  }, { path: 'bench.html' }));

  test('bench: one device failing leaves the other', () => on(async (page) => {
    await page.fill('#model', 'models/webgpu_unavailable.gguf');
    await page.click('#start');
    await page.waitForSelector('#model-error:not([hidden])');
    assert.match(await page.textContent('#model-error'), /There is no usable WebGPU here/);
  }, { path: 'bench.html' }));

  test('check: failures first, and a verdict', () => on(async (page) => {
    await page.selectOption('#device', 'webgpu');
    await page.click('#start');
    await page.waitForSelector('.status.bad');
    await page.waitForTimeout(100);
    assert.match(await page.textContent('#status'), /^1 of 16 are wrong/);
    assert.match(await page.textContent('#rows tbody tr:first-child'), /rope.*expected 0\.25, got 0\.5/);
    await page.selectOption('#device', 'cpu');
    await page.click('#start');
    await page.waitForSelector('.status.good');
    assert.equal(await page.textContent('#status'), 'All 16 are right.');
  }, { path: 'check.html' }));
});

describe('for everybody', () => {
  const states = {
    opening: ['', async (page) => { await ready(page); }],
    story: ['', async (page) => { await ready(page); await page.click('#openings button'); await finished(page); }],
    panel: ['', async (page) => { await ready(page); await page.click('#open-panel'); await page.waitForTimeout(300); }],
    notice: ['', async (page) => { await ready(page); await drop(page, ['corrupt_file.gguf']); await page.waitForSelector('#notice:not([hidden])'); }],
    bench: ['bench.html', async (page) => { await page.click('#start'); await page.waitForFunction(() => document.getElementById('status').textContent === 'Done.', undefined, { timeout: 60_000 }); }],
    check: ['check.html', async (page) => { await page.click('#start'); await page.waitForSelector('.status.bad, .status.good'); }],
  };
  for (const [name, [path, steps]] of Object.entries(states)) {
    for (const colorScheme of ['light', 'dark']) {
      test(`axe finds nothing: ${name}, ${colorScheme}`, () => on(async (page) => {
        await steps(page);
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => globalThis.axe.run());
        assert.deepEqual(violations.map((v) => `${v.id} (${v.impact}): ${v.nodes.map((n) => n.target).join(', ')}`), []);
      }, { path, context: { colorScheme, viewport: { width: 390, height: 780 } } }));
    }
  }

  test('nothing is wider than a small phone', () => on(async (page) => {
    for (const path of ['', 'bench.html', 'check.html']) {
      await page.goto(server.url + path);
      await page.waitForTimeout(200);
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), path);
    }
  }, { context: { viewport: { width: 320, height: 568 } } }));

  test('sentences are read out once they are whole', () => on(async (page) => {
    await ready(page);
    await page.evaluate(() => {
      globalThis.said = [];
      new MutationObserver(() => globalThis.said.push(document.getElementById('live').textContent))
        .observe(document.getElementById('live'), { childList: true, characterData: true, subtree: true });
    });
    await page.click('#openings button');
    await finished(page);
    const said = await page.evaluate(() => globalThis.said);
    assert.ok(said.length >= 3, String(said.length));
    for (const sentence of said.slice(0, -1)) assert.match(sentence, /[.!?…][”"’')]*\u00a0?$/);
  }));

  test('the keyboard reaches everything in order', () => on(async (page) => {
    await ready(page);
    const order = [];
    for (let i = 0; i < 13; i++) {
      await page.keyboard.press('Tab');
      order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.value || document.activeElement.textContent.trim()));
    }
    assert.equal(order[0], 'Skip to the text field');
    assert.deepEqual(order.slice(2, 6), ['Write', 'Bench', 'Check', 'theme']);
    assert.deepEqual(order.slice(9), ['open-panel', 'story', 'prompt', 'send']);
  }));
});
