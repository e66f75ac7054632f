// The packed package as its users get it: `npm install` of the tarball into fresh apps, each of which
// streams a story. Vite, webpack, plain modules from a static server, Node, and Deno where npm has it.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { serve } from '../../www/serve.mjs';
import { launch, repository } from './browser.mjs';

const npmFolder = join(repository, 'target', 'npm');
const tarball = existsSync(npmFolder) && readdirSync(npmFolder).find((f) => f.endsWith('.tgz'));
assert.ok(tarball, 'pack the package first: node pkg-template/build.mjs --pack');

/** Pinned: what this suite was last seen to pass with. */
const VERSIONS = { vite: '8.3.8', webpack: '5.112.2', 'webpack-cli': '7.3.1', deno: '2.9.6' };

const home = mkdtempSync(join(tmpdir(), 'bitnet-apps-'));
let browser;
before(async () => { browser = await launch(); });
after(async () => {
  await browser.close();
  rmSync(home, { recursive: true, force: true });
});

/** An app with the package and `tools` installed, and these files. */
function app(name, files, tools = []) {
  const root = join(home, name);
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(root, path, '..'), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  writeFileSync(join(root, 'package.json'), JSON.stringify({ name, private: true, type: 'module' }));
  const packages = [join(npmFolder, tarball), ...tools.map((t) => `${t}@${VERSIONS[t]}`)];
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--silent', ...packages], { cwd: root, stdio: 'inherit' });
  return root;
}

const run = (root, command, ...args) => execFileSync(command, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });

const MAIN = `
  import { BitNet } from 'bitnet-rust';
  import { createOpenAI } from 'bitnet-rust/openai';
  const out = [];
  try {
    const model = await BitNet.load(undefined, { device: new URLSearchParams(location.search).get('device') ?? 'auto' });
    for await (const piece of model.generate('Once upon a time', { maxTokens: 12, temperature: 0 })) out.push(piece);
    const answer = await createOpenAI(model).chat.completions.create({ messages: [{ role: 'user', content: 'Hi' }], max_tokens: 3 });
    window.done = { pieces: out, device: model.info.device, build: model.info.wasmBuild, openai: answer.object };
    await model.dispose();
  } catch (error) {
    window.done = { error: String(error.stack) };
  }
`;
const HTML = (script) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>app</title>${script}`;

/** Opens the app and waits for its story. */
async function visit(root, device, mounts) {
  const server = await serve({ root, mounts });
  const page = await browser.newPage();
  page.on('console', (m) => { if (m.type() === 'error') console.error(m.text()); });
  try {
    await page.goto(`${server.url}?device=${device}`);
    const done = await (await page.waitForFunction('window.done', undefined, { timeout: 120_000 })).jsonValue();
    assert.equal(done.error, undefined);
    assert.ok(done.pieces.length > 3 && /[a-z]{3}/.test(done.pieces.join('')), done.pieces.join(''));
    assert.equal(done.openai, 'chat.completion');
    if (device !== 'auto') assert.equal(done.device, device);
    return done;
  } finally {
    await page.close();
    server.close();
  }
}

test('plain ES modules from a static server', { timeout: 300_000 }, async () => {
  const importmap = '<script type="importmap">{"imports":{"bitnet-rust":"./node_modules/bitnet-rust/index.js","bitnet-rust/openai":"./node_modules/bitnet-rust/openai.js"}}</script>';
  const root = app('plain', { 'index.html': HTML(`${importmap}<script type="module" src="main.js"></script>`), 'main.js': MAIN });
  const cpu = await visit(root, 'cpu');
  const gpu = await visit(root, 'webgpu');
  assert.equal(cpu.pieces.join(''), gpu.pieces.join(''));
  assert.equal(cpu.build, 'relaxed');
});

test('Vite', { timeout: 300_000 }, async () => {
  const root = app('vite', { 'index.html': HTML('<script type="module" src="/src/main.js"></script>'), 'src/main.js': MAIN,
    'vite.config.js': 'export default { worker: { format: "es" }, build: { target: "esnext" } };' }, ['vite']);
  run(root, 'npx', 'vite', 'build', '--logLevel', 'error');
  await visit(join(root, 'dist'), 'cpu');

  // The development server, which bundles dependencies in another way.
  const dev = spawn('npx', ['vite', '--port', '0', '--host', '127.0.0.1'], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  try {
    const url = await new Promise((resolve, reject) => {
      let text = '';
      dev.stdout.on('data', (data) => {
        text += data;
        // eslint-disable-next-line no-control-regex
        const found = /http:\/\/127\.0\.0\.1:\d+\//.exec(text.replace(/\x1b\[\d+m/g, ''));
        if (found) resolve(found[0]);
      });
      dev.on('exit', () => reject(new Error(`vite ended: ${text}`)));
    });
    const page = await browser.newPage();
    page.on('console', (m) => { if (m.type() === 'error') console.error(m.text()); });
    await page.goto(`${url}?device=cpu`);
    const done = await (await page.waitForFunction('window.done', undefined, { timeout: 120_000 })).jsonValue();
    assert.equal(done.error, undefined);
    assert.ok(done.pieces.length > 3);
    await page.close();
  } finally {
    process.kill(-dev.pid);
  }
});

test('webpack', { timeout: 300_000 }, async () => {
  const root = app('webpack', { 'src/index.js': MAIN, 'dist/index.html': HTML('<script src="main.js"></script>') }, ['webpack', 'webpack-cli']);
  run(root, 'npx', 'webpack', '--mode', 'production', '--entry', './src/index.js', '--stats', 'errors-only');
  await visit(join(root, 'dist'), 'cpu');
});

const CONSOLE = `
  import { BitNet } from 'bitnet-rust';
  const model = await BitNet.load();
  const pieces = [];
  for await (const piece of model.generate('Once upon a time', { maxTokens: 12, temperature: 0 })) pieces.push(piece);
  console.log(JSON.stringify({ pieces, device: model.info.device }));
  await model.dispose();
`;

test('Node', { timeout: 120_000 }, () => {
  const root = app('node', { 'main.js': CONSOLE });
  const { pieces, device } = JSON.parse(run(root, 'node', 'main.js'));
  assert.ok(pieces.length > 3);
  assert.equal(device, 'cpu');
});

test('Deno', { timeout: 300_000 }, () => {
  const root = app('deno', { 'main.js': CONSOLE }, ['deno']);
  // Several times: a worker that had asked for a GPU made one ending in ten crash.
  for (let i = 0; i < 8; i++) {
    const { pieces } = JSON.parse(run(root, 'npx', 'deno', 'run', '-A', 'main.js').trim().split('\n').at(-1));
    assert.ok(pieces.length > 3);
  }
});
