// Chromium and the page's own server, for the tests in this folder.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { serve } from '../../www/serve.mjs';

export const here = dirname(fileURLToPath(import.meta.url));
export const repository = join(here, '..', '..');
export const www = join(repository, 'www');
export const mock = { '/pkg/': join(here, 'mock') };

const BINARIES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** WebGPU comes from SwiftShader: no graphics processor is needed. @param {import('playwright-core').LaunchOptions} [options] */
export function launch(options = {}) {
  const executablePath = BINARIES.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error('no Chromium found; set CHROMIUM to its path');
  return chromium.launch({
    executablePath,
    args: ['--no-sandbox', '--disable-quic', '--disable-background-networking', '--disable-component-update',
      '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'],
    ...options,
  });
}

/** @param {Partial<Parameters<typeof serve>[0]>} [options] */
export const serveWww = (options = {}) => serve({ root: www, ...options });

/** Collects what must not happen on a page: errors, and requests to other hosts.
 * @param {import('playwright-core').Page} page @param {string} origin */
export function watch(page, origin) {
  /** @type {string[]} */
  const problems = [];
  page.on('pageerror', (error) => problems.push(`page error: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error') problems.push(`console: ${message.text()}`);
  });
  page.on('request', (request) => {
    const url = request.url();
    if (/^https?:/.test(url) && !url.startsWith(origin)) problems.push(`third-party request: ${url}`);
  });
  return problems;
}
