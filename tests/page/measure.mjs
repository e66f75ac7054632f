// Figures of the writing page on this machine: node tests/page/measure.mjs [--tokens N] [--device cpu]
// For each device: from navigation to the first token, on the first visit and on the second, and
// the longest task of the page's main thread while text is written. Prints JSON lines.
import { parseArgs } from 'node:util';
import { launch, serveWww } from './browser.mjs';

const { values: { tokens, device: devices } } = parseArgs({ options: {
  tokens: { type: 'string', default: '100' }, device: { type: 'string', multiple: true, default: ['webgpu', 'cpu'] },
} });
const server = await serveWww();

for (const device of devices) {
  const browser = await launch();
  const page = await browser.newPage();
  page.setDefaultTimeout(600_000);
  await page.addInitScript((settings) => {
    localStorage.setItem('bitnet-rust:settings', JSON.stringify(settings));
    sessionStorage.clear();
    // Words are given at once; the page writes as soon as the model is there.
    addEventListener('DOMContentLoaded', async () => {
      while (!document.querySelector('#openings button')) await new Promise(requestAnimationFrame);
      const begin = document.querySelector('#openings button');
      new MutationObserver((_, observer) => {
        if (!document.querySelector('.by-model')?.textContent) return;
        globalThis.firstTokenMs = performance.now();
        observer.disconnect();
      }).observe(document.getElementById('story'), { subtree: true, characterData: true, childList: true });
      begin.click();
    });
  }, { device, maxTokens: Number(tokens), seed: 1 });

  const visits = [];
  for (const visit of ['first', 'second']) {
    await page.goto(server.url);
    await page.waitForFunction(() => globalThis.firstTokenMs);
    visits.push(await page.evaluate(() => Math.round(globalThis.firstTokenMs)));
    await page.waitForSelector('.after .figures');
    if (visit === 'first') await page.waitForTimeout(1500); // The service worker fills its cache.
  }
  const loaded = await page.evaluate(async () => {
    document.getElementById('open-panel').click();
    return document.getElementById('facts').innerText.replace(/\n/g, ' ');
  });
  await page.click('#close-panel');
  await page.waitForTimeout(500);

  await browser.startTracing(page, { categories: ['toplevel', 'devtools.timeline', 'disabled-by-default-devtools.timeline'] });
  await page.click('.after >> text="Go on"');
  await page.waitForSelector('#stop', { state: 'visible' });
  await page.waitForSelector('#stop', { state: 'hidden' });
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString());
  const main = traceEvents.filter((e) => e.name === 'thread_name' && e.args.name === 'CrRendererMain').map((e) => `${e.pid}/${e.tid}`);
  const tasks = traceEvents.filter((e) => /RunTask$/.test(e.name) && main.includes(`${e.pid}/${e.tid}`) && e.dur).map((e) => e.dur / 1000).sort((a, b) => b - a);
  console.log(JSON.stringify({
    device, firstVisitMs: visits[0], secondVisitMs: visits[1],
    mainThreadTasks: tasks.length, longestTaskMs: tasks[0], next: tasks.slice(1, 4),
    figures: await page.textContent('.after .figures'), model: loaded,
  }));
  await browser.close();
}
await server.close();
