// Threads of the CPU path in Chromium: the bits of one thread on a page with shared memory and on
// one without, while the page stays awake.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { launch } from './browser.mjs';
import { servePackage } from './package.mjs';

for (const isolated of [true, false]) {
  test(`threads on a page that is ${isolated ? '' : 'not '}isolated`, { timeout: 120_000 }, async () => {
    const [browser, server] = await Promise.all([launch(), servePackage({}, isolated)]);
    try {
      const page = await browser.newPage();
      await page.goto(server.url);
      const runs = await page.evaluate(async () => {
        const { BitNet } = await import('/pkg/index.js');
        const runs = [];
        // In a worker of its own, and on the page's own thread, which may not sleep.
        for (const options of [{}, { threads: 1 }, { threads: 2 }, { threads: 3 }, { threads: 2, worker: false }]) {
          const model = await BitNet.load(undefined, { device: 'cpu', contextLength: 256, cache: false, ...options });
          const logits = await model.logits([0, 5, 9, 200, 31, 77]);
          let turns = 0;
          const timer = setInterval(() => { turns++; }, 1);
          const { text } = await model.generate('Once upon a time', { maxTokens: 24, seed: 1, ignoreEos: true }).result;
          clearInterval(timer);
          const bits = new Uint32Array(await crypto.subtle.digest('SHA-256', logits));
          runs.push({ threads: model.info.threads, bits: Array.from(bits), text, turns });
          await model.dispose();
        }
        return { runs, isolated: crossOriginIsolated };
      });
      assert.equal(runs.isolated, isolated);
      assert.deepEqual(runs.runs.map((run) => run.threads), [1, 1, 2, 3, 2]);
      for (const { bits, text, turns } of runs.runs) {
        assert.deepEqual(bits, runs.runs[0].bits);
        assert.equal(text, runs.runs[0].text);
        assert.ok(turns > 0, 'the page had turns');
      }
    } finally {
      await browser.close();
      server.close();
    }
  });
}
