// The worker that holds a model, in Node.
import { parentPort } from 'node:worker_threads';
import './node.js';
import { Engine } from './lib/engine.js';
import { platform } from './lib/platform.js';
import { serve } from './lib/rpc.js';

// Seen with Deno 2.9: a process that ends while its worker still lets go of a GPU adapter is killed by a
// memory fault, now and then, after all its work is done.
if ('Deno' in globalThis) {
  platform.gpuTrouble = 'Deno can crash at its end once a worker has used a GPU (worker: false may use it)';
}

const engine = new Engine();
// A trap inside a future of the engine surfaces here, not in the promise that waits for it.
for (const type of ['uncaughtException', 'unhandledRejection']) {
  process.on(type, (error) => {
    if (!(error instanceof WebAssembly.RuntimeError)) throw error;
    engine.kill(error);
  });
}
const port = /** @type {import('node:worker_threads').MessagePort} */ (parentPort);
serve({
  addEventListener: (/** @type {string} */ type, /** @type {Function} */ listener) =>
    port.on(type, (data) => listener({ data })),
  postMessage: (/** @type {any} */ data, /** @type {any} */ transfer) => port.postMessage(data, transfer),
}, /** @type {any} */ (engine));
