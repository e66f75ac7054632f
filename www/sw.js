// The page without a network. Every answer comes from the network if there is one (the HTTP cache
// makes that cheap, and an update is never mixed with what it replaces) and from this cache if not.
// Models are not its business: the package keeps them.

const CACHE = 'bitnet-rust-page';

/** All that the pages consist of. `tests/page/demo-e2e.test.mjs` fails when one is missing here. */
const FILES = [
  './', 'bench.html', 'check.html', 'icon.svg', 'css/theme.css', 'css/write.css', 'css/report.css',
  ...['app', 'bench', 'check', 'dom', 'engine', 'errors', 'fields', 'figures', 'model-picker', 'offline', 'pages',
    'plot', 'settings', 'store', 'theme', 'thread'].map((name) => `js/${name}.js`),
  'pkg/index.js', 'pkg/worker.js',
  ...['adapter', 'cache', 'crew', 'default-model', 'download', 'engine', 'errors', 'generation', 'kernels', 'platform', 'progress', 'rpc', 'source',
    'store-cache', 'store-opfs', 'wasm'].map((name) => `pkg/lib/${name}.js`),
];

/** Of the two builds of the engine only the one that this browser takes is kept. */
const wasmFiles = (/** @type {string} */ build) => [`pkg/wasm/${build}/bitnet.js`, `pkg/wasm/${build}/bitnet_bg.wasm`];

self.addEventListener('install', (event) => event.waitUntil(keep(FILES).then(() => self.skipWaiting())));
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('message', (event) => {
  const build = event.data?.keep;
  if (build === 'simd128' || build === 'relaxed') event.waitUntil(keep(wasmFiles(build)));
});

/** @param {string[]} files */
async function keep(files) {
  const cache = await caches.open(CACHE);
  // One by one: a file that fails today must not keep the others out.
  await Promise.allSettled(files.map(async (file) => {
    const response = await fetch(file);
    if (response.ok) await cache.put(file, response);
  }));
}

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const ours = request.method === 'GET' && url.href.startsWith(self.registration.scope)
    && !request.headers.has('range') && !/\.(gguf|safetensors)$/i.test(url.pathname);
  if (ours) event.respondWith(answer(event, request, url));
});

/** @param {any} event @param {Request} request @param {URL} url */
async function answer(event, request, url) {
  const cache = await caches.open(CACHE);
  const key = url.origin + url.pathname;
  try {
    const response = await fetch(request);
    if (response.status === 200) event.waitUntil(cache.put(key, response.clone()).catch(() => {}));
    return response;
  } catch (error) {
    const kept = await cache.match(key.replace(/\/index\.html$/, '/'));
    if (kept) return kept;
    throw error;
  }
}
