// The worker that holds a model, in Node.
import { parentPort } from 'node:worker_threads';
import './node.js';
import { Engine } from './lib/engine.js';
import { serve } from './lib/rpc.js';

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
