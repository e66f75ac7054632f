// What the tests of the built package share: a blank page that can import it.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serve } from '../../www/serve.mjs';
import { repository } from './browser.mjs';

export const pkg = join(repository, 'pkg');
assert.ok(existsSync(join(pkg, 'index.js')), 'build the package first: node pkg-template/build.mjs');

/** A server of `/` (blank), `/pkg/` and `/fixtures/`, and of more files.
 * @param {Record<string, string>} [files] @param {boolean} [isolated] */
export function servePackage(files = {}, isolated = false) {
  const root = mkdtempSync(join(tmpdir(), 'bitnet-page-'));
  writeFileSync(join(root, 'index.html'), '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>blank</title>');
  for (const [name, text] of Object.entries(files)) writeFileSync(join(root, name), text);
  return serve({ root, isolated, mounts: { '/pkg/': pkg, '/fixtures/': join(repository, 'tests', 'fixtures'), '/page/': join(repository, 'tests', 'page') } });
}
