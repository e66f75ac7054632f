// The same package in Node (and in Deno and Bun, which follow Node's conditions).
import { mkdir, open, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { BitNetError } from './lib/errors.js';
import { platform } from './lib/platform.js';
import { cacheFolder, chunks, fsStore } from './lib/store-fs.js';

Object.assign(platform, {
  hasPaths: true,

  createWorker() {
    const worker = new Worker(new URL('./worker-node.js', import.meta.url));
    // A model that is idle keeps no program from ending; one at work does.
    let calls = 0;
    worker.unref();
    const post = worker.postMessage.bind(worker);
    const busy = (/** @type {number} */ by) => {
      calls += by;
      if (calls > 0) worker.ref();
      else worker.unref();
    };
    return {
      addEventListener(/** @type {string} */ type, /** @type {Function} */ listener) {
        if (type === 'message') {
          worker.on('message', (data) => {
            if (!('event' in data)) busy(-1);
            listener({ data });
          });
        } else if (type === 'error') {
          worker.on('error', (error) => listener({ error, message: error.message }));
        } else worker.on(type, () => listener({}));
      },
      postMessage(/** @type {any} */ data, /** @type {any} */ transfer) {
        post(data, transfer);
        if (data.op) busy(1);
      },
      terminate: () => worker.terminate(),
    };
  },

  processors: availableParallelism,

  wasmSource: (/** @type {string} */ build) =>
    readFile(new URL(`./wasm/${build}/bitnet_bg.wasm`, import.meta.url)),

  async localFile(/** @type {string | URL} */ path) {
    const name = path instanceof URL ? fileURLToPath(path) : path;
    const fail = (/** @type {any} */ error) => {
      throw new BitNetError('download_failed', `${name}: ${error.message}`, { cause: error });
    };
    const file = await open(name, 'r').catch(fail);
    const bytes = (await file.stat()).size;
    await file.close();
    return {
      bytes,
      async *stream() {
        const file = await open(name, 'r').catch(fail);
        try {
          yield* chunks(file, bytes);
        } finally {
          await file.close();
        }
      },
    };
  },

  stores: async () => [fsStore()],

  // A file that its holder keeps touching: locks of the Web do not reach across processes.
  async lock(
    /** @type {string} */ name,
    /** @type {{ signal?: AbortSignal, ifAvailable?: boolean, onWait?: () => void }} */ { signal, ifAvailable, onWait },
    /** @type {() => Promise<any>} */ use,
  ) {
    const folder = join(cacheFolder(), '..', 'locks');
    await mkdir(folder, { recursive: true });
    const path = join(folder, `${name.replaceAll(':', '-')}.lock`);
    for (let waited = false; ; ) {
      signal?.throwIfAborted();
      try {
        await writeFile(path, String(process.pid), { flag: 'wx' });
        break;
      } catch (error) {
        if (/** @type {any} */ (error).code !== 'EEXIST') throw error;
      }
      if (await isLeftOver(path)) {
        await rm(path, { force: true });
        continue;
      }
      if (ifAvailable) return undefined;
      if (!waited) onWait?.();
      waited = true;
      await sleep(LOCK_POLL_MS, undefined, { signal });
    }
    const beat = setInterval(() => utimes(path, new Date(), new Date()).catch(() => {}), LOCK_BEAT_MS);
    try {
      return await use();
    } finally {
      clearInterval(beat);
      await rm(path, { force: true });
    }
  },
});

const LOCK_POLL_MS = 100;
const LOCK_BEAT_MS = 1000;
/** Silence after which a holder is taken for dead: a worker can be ended while its process lives on. */
const LOCK_SILENT_MS = 10_000;

/** Whether the holder of the lock file is gone. @param {string} path */
async function isLeftOver(path) {
  try {
    const [holder, { mtimeMs }] = await Promise.all([readFile(path, 'utf8'), stat(path)]);
    return (Number(holder) > 0 && !isAlive(Number(holder))) || Date.now() - mtimeMs > LOCK_SILENT_MS;
  } catch {
    return false; // Let go of just now.
  }
}

/** @param {number} pid */
function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return /** @type {any} */ (error).code === 'EPERM';
  }
}

export * from './index.js';
