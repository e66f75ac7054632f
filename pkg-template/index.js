// bitnet-rust: ternary (1.58-bit) language models in the browser and in Node.
import * as cache from './lib/cache.js';
import { MODEL } from './lib/default-model.js';
import { Engine } from './lib/engine.js';
import { BitNetError, invalid } from './lib/errors.js';
import { Generation } from './lib/generation.js';
import { platform } from './lib/platform.js';
import { local, remote } from './lib/rpc.js';
import { hubModels, toSendable } from './lib/source.js';

export { BitNetError, Generation };

const LOAD_OPTIONS = ['device', 'adapter', 'kernels', 'contextLength', 'kvCache', 'threads', 'activations', 'i2s',
  'cache', 'sha256', 'headers', 'hub', 'download'];
const GENERATE_OPTIONS = ['maxTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'presencePenalty',
  'frequencyPenalty', 'penaltyWindow', 'seed', 'stop', 'ignoreEos', 'logprobs'];
/** How long an abandoned load may take to put its part of the download in order. */
const GRACE_MS = 3000;

export class BitNet {
  static defaultModel = MODEL;

  static cache = {
    list: () => cache.list(),
    /** @param {string | URL} [url] */
    delete: (url) => cache.remove(url === undefined ? undefined : String(url)),
  };

  /** @param {string} repository @param {{ hub?: string, headers?: Record<string, string>, signal?: AbortSignal }} [options] */
  static async hubModels(repository, { signal = new AbortController().signal, ...options } = {}) {
    checkNames(options, ['hub', 'headers']);
    if (typeof repository !== 'string') throw invalid('a repository is written hf:owner/repo');
    return hubModels(repository, { signal, ...options });
  }

  /** @type {import('./lib/rpc.js').Endpoint} */
  #endpoint;
  #disposed = false;

  /** @param {import('./lib/rpc.js').Endpoint} endpoint @param {any} loaded */
  constructor(endpoint, loaded) {
    if (!loaded?.info) throw invalid('use BitNet.load()');
    this.#endpoint = endpoint;
    this.info = loaded.info;
    this.stats = loaded.stats;
  }

  /** @param {any} [source] @param {import('./index.js').LoadOptions} [options] */
  static async load(source = BitNet.defaultModel, options = {}) {
    const { signal, onProgress, onWarning, worker = true, ...rest } = options;
    checkNames(rest, LOAD_OPTIONS);
    signal?.throwIfAborted();
    const { source: sendable, transfer } = toSendable(source);
    const endpoint = connect(worker);
    const onEvent = (/** @type {any} */ event) => {
      if (event.warning) {
        const error = new BitNetError(event.warning.code, event.warning.message);
        if (onWarning) onWarning(error);
        else console.warn(`bitnet-rust: ${error.message}`);
      } else onProgress?.(event);
    };
    try {
      const args = { source: sendable, options: rest };
      const loaded = await send(endpoint, 'load', args, { onEvent, signal, transfer });
      return new BitNet(endpoint, loaded);
    } catch (error) {
      // The download is put in order before the worker goes, so that it can be resumed.
      /** @type {any} */
      let timer;
      const late = new Promise((done) => { timer = setTimeout(done, GRACE_MS); });
      Promise.race([endpoint.call('dispose', {}).catch(() => {}), late]).then(() => {
        clearTimeout(timer);
        endpoint.close();
      });
      throw error;
    }
  }

  /** @param {{ device?: 'auto' | 'webgpu' | 'cpu', signal?: AbortSignal, onResult?: (row: any) => void, worker?: any }} [options] */
  static async check({ device = 'auto', signal, onResult, worker = true } = {}) {
    const endpoint = connect(worker);
    try {
      return await endpoint.call('check', { device }, { onEvent: onResult, signal });
    } finally {
      endpoint.close();
    }
  }

  /** @param {string | number[]} prompt @param {import('./index.js').GenerateOptions} [options] */
  generate(prompt, options = {}) {
    if (typeof prompt !== 'string' && !isIds(prompt)) throw invalid('a prompt is a string or an array of token ids');
    return this.#start(typeof prompt === 'string' ? { text: prompt } : { ids: Array.from(prompt) }, options);
  }

  /** @param {import('./index.js').Message[]} messages @param {import('./index.js').GenerateOptions} [options] */
  chat(messages, options = {}) {
    const ok = Array.isArray(messages) && messages.length > 0
      && messages.every((m) => typeof m?.role === 'string' && typeof m?.content === 'string');
    if (!ok) throw invalid('messages are a non-empty array of { role, content } strings');
    return this.#start({ messages: messages.map(({ role, content }) => ({ role, content })) }, options);
  }

  /** @param {object} prompt @param {any} options */
  #start(prompt, { signal, ...options }) {
    checkNames(options, GENERATE_OPTIONS);
    const seed = options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
    const stop = typeof options.stop === 'string' ? [options.stop] : options.stop;
    return new Generation(async (/** @type {any} */ onEvent, /** @type {AbortSignal} */ stopped) => {
      const io = { onEvent, signal, stop: stopped };
      const result = await this.#call('generate', { ...prompt, ...options, stop, seed }, io);
      this.stats = result.stats;
      return result;
    });
  }

  /** @param {string} text @param {{ addBos?: boolean }} [options] @returns {Promise<number[]>} */
  async tokenize(text, { addBos = false } = {}) {
    if (typeof text !== 'string') throw invalid('text must be a string');
    return this.#call('tokenize', { text, addBos });
  }

  /** @param {number[]} ids @param {{ skipSpecial?: boolean }} [options] @returns {Promise<string>} */
  async detokenize(ids, { skipSpecial = false } = {}) {
    if (!isIds(ids)) throw invalid('ids must be an array of token ids');
    return this.#call('detokenize', { ids: Array.from(ids), skipSpecial });
  }

  /** @param {number[]} ids @param {{ signal?: AbortSignal }} [options] @returns {Promise<Float32Array>} */
  async logits(ids, { signal } = {}) {
    if (!isIds(ids)) throw invalid('ids must be an array of token ids');
    return this.#call('logits', { ids: Array.from(ids) }, { signal });
  }

  /** @param {{ promptTokens?: number, runs?: number, signal?: AbortSignal }} [options]
   * @returns {Promise<import('./index.js').KernelTime[]>} */
  async profile({ promptTokens = 1, runs = 20, signal } = {}) {
    for (const [name, n] of Object.entries({ promptTokens, runs })) {
      if (!(Number.isInteger(n) && n > 0)) throw invalid(`${name} must be a positive integer`);
    }
    const ids = Array.from({ length: promptTokens }, (_, i) => i % this.info.vocabSize);
    return this.#call('profile', { ids, runs }, { signal });
  }

  async reset() {
    await this.#call('reset', {});
  }

  async dispose() {
    if (this.#disposed) return;
    this.#disposed = true;
    // In place there is no worker whose end would free everything.
    if (this.#endpoint.inPlace) await this.#endpoint.call('dispose', {}).catch(() => {});
    this.#endpoint.close();
  }

  [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    return this.dispose();
  }

  /** @param {string} op @param {object} args @param {import('./lib/rpc.js').CallIO} [io] */
  async #call(op, args, io) {
    if (this.#disposed) throw invalid('the model has been disposed of');
    return this.#endpoint.call(op, args, io);
  }
}

/** A misspelt option would be ignored in silence. @param {object} options @param {string[]} names */
function checkNames(options, names) {
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) throw invalid(`there is no option ${name}; there are signal, ${names.join(', ')}`);
  }
}

/** @param {any} worker */
function connect(worker) {
  if (worker === false) return { ...local(/** @type {any} */ (new Engine())), inPlace: true };
  return remote(worker === true ? platform.createWorker() : worker);
}

/** Posts a load. A stream that this browser cannot transfer goes over chunk by chunk.
 * @param {import('./lib/rpc.js').Endpoint} endpoint @param {string} op @param {any} args
 * @param {import('./lib/rpc.js').CallIO} io */
async function send(endpoint, op, args, io) {
  const { stream } = args.source;
  if (!stream || endpoint.inPlace || canTransferStreams()) return endpoint.call(op, args, io);
  const { port1, port2 } = new MessageChannel();
  const reader = stream.getReader();
  port1.onmessage = async ({ data }) => {
    try {
      const { done, value } = data === 'pull' ? await reader.read() : await reader.cancel().then(() => ({ done: true }));
      port1.postMessage({ done, value });
      if (done) port1.close();
    } catch (error) {
      port1.postMessage({ error: String(/** @type {any} */ (error)?.message ?? error) });
    }
  };
  return endpoint.call(op, { ...args, source: { port: port2 } }, { ...io, transfer: [port2] });
}

function canTransferStreams() {
  try {
    const stream = new ReadableStream();
    structuredClone(stream, { transfer: [/** @type {any} */ (stream)] });
    return true;
  } catch {
    return false;
  }
}

/** @param {any} ids */
function isIds(ids) {
  return (Array.isArray(ids) || ArrayBuffer.isView(ids))
    && Array.prototype.every.call(ids, (id) => Number.isInteger(id) && id >= 0 && id < 2 ** 32);
}
