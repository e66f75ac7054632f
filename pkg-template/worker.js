// The worker that holds a model. `BitNet.load` starts one for each model by itself; where a bundler
// cannot follow that, start it yourself and pass it: { worker: new Worker(…) }.
import { Engine } from './lib/engine.js';
import { serve } from './lib/rpc.js';

const engine = new Engine();
// A trap inside a future of the engine surfaces here, not in the promise that waits for it.
for (const type of ['error', 'unhandledrejection']) {
  self.addEventListener(type, (/** @type {any} */ event) => {
    const error = event.error ?? event.reason;
    if (!(error instanceof WebAssembly.RuntimeError)) return;
    event.preventDefault();
    engine.kill(error);
  });
}
serve(self, /** @type {any} */ (engine));
