// Screenshots to look at, of every page, light and dark, desktop and phone: node tests/page/shots.mjs FOLDER
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { launch, mock, serveWww } from './browser.mjs';

const out = process.argv[2];
if (!out) throw new Error('usage: node shots.mjs FOLDER');
mkdirSync(out, { recursive: true });
const server = await serveWww({ mounts: mock });
const browser = await launch();
for (const [size, viewport] of Object.entries({ desktop: { width: 1200, height: 800 }, phone: { width: 375, height: 720 } })) {
  for (const colorScheme of /** @type {const} */ (['light', 'dark'])) {
    const context = await browser.newContext({ viewport, colorScheme, deviceScaleFactor: size === 'phone' ? 2 : 1, hasTouch: size === 'phone' });
    const page = await context.newPage();
    const shot = (name) => page.screenshot({ path: join(out, `${name}-${size}-${colorScheme}.png`) });
    await page.goto(`${server.url}?speed=slow`);
    await page.waitForTimeout(350);
    await shot('1-loading');
    await page.waitForFunction(() => !document.querySelector('#cancel-load:not([hidden])'));
    await page.click('#openings button');
    await page.waitForTimeout(3200);
    await shot('2-writing');
    await page.click('#stop');
    await page.fill('#prompt', 'But the youngest daughter only shook her head.');
    await page.click('#send');
    await page.waitForSelector('#stop', { state: 'hidden', timeout: 60_000 });
    await shot('3-story');
    await page.click('#open-panel');
    await page.waitForTimeout(400);
    await shot('4-panel');
    await page.evaluate(() => document.querySelector('#h-figures').scrollIntoView());
    await page.waitForTimeout(200);
    await shot('5-figures');
    await page.click('#close-panel');
    await page.check('input[value=chat]', { force: true });
    await page.fill('#prompt', 'Tell me a story about a fox and a crow.');
    await page.click('#send');
    await page.waitForSelector('#stop', { state: 'hidden', timeout: 60_000 });
    await shot('6-chat');
    await page.setInputFiles('#file', { name: 'corrupt_file.gguf', mimeType: 'application/octet-stream', buffer: Buffer.from('x') });
    await page.waitForSelector('#notice:not([hidden])');
    await page.waitForTimeout(400);
    await shot('7-error');
    await page.goto(`${server.url}bench.html`);
    await page.click('#start');
    await page.waitForSelector('#stop', { state: 'hidden', timeout: 60_000 });
    await shot('8-bench');
    await page.goto(`${server.url}check.html`);
    await page.click('#start');
    await page.waitForSelector('#stop', { state: 'hidden', timeout: 60_000 });
    await shot('9-check');
    await context.close();
  }
}
await browser.close();
await server.close();
