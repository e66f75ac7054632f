// What differs between a browser and Node. This is the browser's side; `node.js` replaces the parts
// that Node does in another way, before anything is loaded.
import { cacheStore } from './store-cache.js';
import { opfsStore } from './store-opfs.js';

/** @type {Promise<import('./cache.js').Store[]> | undefined} */
let storesOnce;

export const platform = {
  /** A worker that runs `worker.js`. The form of this expression is what bundlers look for.
   * @returns {any} */
  createWorker() {
    return new Worker(new URL('../worker.js', import.meta.url), { type: 'module', name: 'bitnet' });
  },

  /** Threads that the machine runs at once, as far as it tells. */
  processors: () => navigator.hardwareConcurrency ?? 1,

  /** What wasm-bindgen's init takes; `undefined`: the URL that it knows itself.
   * @param {string} build @returns {Promise<any>} */
  async wasmSource(build) {
    return undefined;
  },

  /** Why `device: 'auto'` must leave the GPU alone in this thread; `undefined`: it may ask for one.
   * @type {string | undefined} */
  gpuTrouble: undefined,

  /** Whether a source without a scheme is a path of the file system. */
  hasPaths: false,

  /** A local file, where there are paths. @param {string | URL} path
   * @returns {Promise<{ bytes: number, stream: () => AsyncIterable<Uint8Array> } | undefined>} */
  async localFile(path) {
    return undefined;
  },

  /** Where downloads can be kept, best first. A store without `open` can only be read here.
   * @returns {Promise<import('./cache.js').Store[]>} */
  stores() {
    storesOnce ??= Promise.all([opfsStore(), cacheStore()]).then((all) => all.filter((s) => s !== undefined));
    return storesOnce;
  },

  /** Runs `use` while the named lock is held.
   * @template T @param {string} name
   * @param {{ signal?: AbortSignal, ifAvailable?: boolean, onWait?: () => void }} options
   * @param {() => Promise<T>} use @returns {Promise<T | undefined>} `undefined`: not available */
  async lock(name, { signal, ifAvailable, onWait }, use) {
    const { locks } = navigator;
    if (!locks) return use();
    let held = false;
    const first = await locks.request(name, { ifAvailable: true }, (lock) => {
      if (!lock) return undefined;
      held = true;
      return use();
    });
    if (held || ifAvailable) return first;
    onWait?.();
    return locks.request(name, { signal }, use);
  },
};
