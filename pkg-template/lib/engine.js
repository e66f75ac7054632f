// The model itself: lives in the worker (or in place) and does what the messages ask.
import { whyNotWebGpu, withSubgroups } from './adapter.js';
import { Crew, Helper } from './crew.js';
import { BitNetError, invalid, toError, throwIfAborted } from './errors.js';
import { fastestKernels } from './kernels.js';
import { platform } from './platform.js';
import { Progress } from './progress.js';
import { resolve } from './source.js';
import { loadWasm, wasmBuild } from './wasm.js';

/** Longest time without giving the event loop a turn: messages such as an abort come in there. */
const TURN_MS = 8;
/** A file that keeps changing under us is not loaded for ever. */
const RESTARTS = 2;
/** Each takes an engine's worth of memory, and no machine that this is for has more cores. */
const MAX_THREADS = 64;
/** Below that, what a worker saves is what waking it takes: see tests/bench/README.md. */
const WORTH_SHARING_BYTES = 64e6;
/** What can go wrong with a GPU only: the CPU may well do. */
const GPU_TROUBLE = ['webgpu_unavailable', 'device_lost', 'out_of_memory', 'unsupported_model', 'internal'];

/** @typedef {import('./rpc.js').CallIO} CallIO */

/** As many as a user's machine can spare, where a token takes long enough to be shared.
 * @param {import('./source.js').File[]} weights */
function defaultThreads(weights) {
  const bytes = weights.reduce((sum, file) => sum + (file.bytes ?? 0), 0);
  if (bytes < WORTH_SHARING_BYTES) return 1;
  return Math.min(4, Math.max(1, platform.processors() - 1));
}

export class Engine {
  constructor() {
    /** The wasm module. @type {any} */
    this.wasm = undefined;
    /** @type {any} */
    this.session = undefined;
    /** @type {Crew | undefined} */
    this.crew = undefined;
    /** @type {Helper | undefined} */
    this.helper = undefined;
    /** What runs now; calls run one after the other. @type {Promise<any>} */
    this.last = Promise.resolve();
    /** Rejects when the wasm instance has died. */
    this.death = new Promise((_, reject) => { this.die = reject; });
    this.death.catch(() => {});
    /** @type {unknown} */
    this.dead = undefined;
    this.lastTurn = 0;
    /** @type {any} */
    this.timings = undefined;
    /** @type {any} */
    this.fixed = undefined;
  }

  /** Runs `work` after all earlier work. A panic in the engine fails it, and all work after it.
   * @template T @param {() => Promise<T>} work @param {AbortSignal} [signal] @returns {Promise<T>} */
  run(work, signal) {
    const task = this.last.then(async () => {
      throwIfAborted(signal);
      if (this.dead) throw this.dead;
      try {
        return await Promise.race([work(), this.death]);
      } catch (error) {
        throwIfAborted(signal);
        // A trap (a panic, or memory that could not grow) leaves the instance in no known state.
        if (error instanceof WebAssembly.RuntimeError) this.kill(error);
        throw this.dead ?? toError(error);
      }
    });
    this.last = task.catch(() => {});
    return task;
  }

  /** @param {any} cause */
  kill(cause) {
    this.dead ??= new BitNetError('internal', `the engine has stopped: ${cause?.message ?? cause}. `
      + 'This is a bug of bitnet-rust; load the model again to go on', { cause });
    this.session = undefined; // Nothing of a dead instance may be called, not even free().
    this.crew?.close();
    this.die?.(this.dead);
  }

  /** Gives the event loop a turn now and then.
   * @param {boolean} [now] */
  async turn(now = false) {
    if (!now && performance.now() - this.lastTurn < TURN_MS) return;
    await new Promise((done) => {
      // Not setTimeout, which waits at least 4 ms.
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        done(undefined);
      };
      port2.postMessage(0);
    });
    this.lastTurn = performance.now();
  }

  /** @param {{ source: any, options: any }} args @param {CallIO} io */
  load({ source, options }, { onEvent, signal }) {
    return this.run(async () => {
      const started = performance.now();
      this.wasm = await loadWasm();
      this.wasm.setPanicHandler((/** @type {string} */ message) => this.kill(message));
      const wantsAuto = options.device === undefined || options.device === 'auto';
      let fallback = wantsAuto ? await whyNotWebGpu() : undefined;
      if (fallback) options = { ...options, device: 'cpu' };
      /** @type {any} */
      let gpuError;
      const progress = new Progress((event) => onEvent?.(event));
      const context = {
        signal: /** @type {AbortSignal} */ (signal),
        cache: options.cache ?? true,
        headers: options.headers,
        hub: options.hub,
        sha256: options.sha256,
        download: options.download,
        createHash: () => new this.wasm.Sha256(),
        onPhase: (/** @type {any} */ phase) => progress.phase(phase),
        onBytes: (/** @type {number} */ n, /** @type {boolean} */ stored) => progress.add(n, stored),
        onSize: () => progress.sizes(),
        onWarning: (/** @type {any} */ e) => onEvent?.({ warning: { code: e.code, message: e.message } }),
      };
      if (options.kernels === undefined && context.cache && (options.device === 'webgpu' || (wantsAuto && !fallback))) {
        const kernels = await fastestKernels(this.wasm, signal, () => progress.phase('measure'));
        throwIfAborted(signal);
        options = { ...options, kernels };
      }
      for (let restarts = 0; ;) {
        /** @type {import('./source.js').File[]} */
        let files = [];
        try {
          const found = await resolve(source, context);
          files = found.weights;
          progress.begin(files);
          this.session = await this.fill(found, options, progress, signal);
          break;
        } catch (error) {
          const { code, details } = /** @type {any} */ (error) ?? {};
          // A file that is no model came whole, and is kept: the next load must not find it again.
          if (code === 'corrupt_file') await Promise.allSettled(files.map((f) => f.forget?.()));
          if (signal?.aborted || this.dead) throw error;
          if (wantsAuto && !fallback && GPU_TROUBLE.includes(code) && files.length && files.every((f) => f.again)) {
            gpuError = error;
            fallback = `WebGPU failed: ${gpuError.message}`;
            options = { ...options, device: 'cpu' };
          } else if (!details?.changed || restarts++ === RESTARTS) throw error;
        }
      }
      if (gpuError) onEvent?.({ warning: { code: gpuError.code, message: `the model runs on the CPU, because ${fallback}` } });
      this.fixed = { ...(fallback && { fallback }), ...this.session.info(), wasmBuild: wasmBuild(), loadMs: performance.now() - started };
      progress.phase('ready');
      return { info: this.fixed, stats: this.stats() };
    }, signal);
  }

  /** @param {import('./source.js').Files} files @param {any} options @param {Progress} progress
   * @param {AbortSignal} [signal] */
  async fill({ weights, texts }, options, progress, signal) {
    const { device, adapter, kernels, contextLength, kvCache, i2s, activations } = options;
    const open = (/** @type {boolean} */ subgroups) => this.wasm.Loader.open(
      { device, adapter, kernels, subgroups, contextLength, kvCache, i2s, activations },
      { lengths: weights.map((file) => file.bytes), texts: texts && new Map(Object.entries(texts)) },
      () => this.startCrew(options.threads, weights),
    );
    const loader = await withSubgroups(device, open);
    let owned = true;
    const readers = weights.map((file) => file.stream()[Symbol.asyncIterator]());
    /** Bytes read but not taken yet, a file. @type {(Uint8Array | undefined)[]} */
    const held = [];
    try {
      // The headers of all files first: only then it is known where the weights go.
      const order = weights.length > 1 ? [...weights.keys(), ...weights.keys()] : [0];
      for (const [turn, file] of order.entries()) {
        const headerOnly = turn < order.length - weights.length;
        for (;;) {
          const chunk = held[file] ?? (await readers[file].next()).value;
          held[file] = undefined;
          if (!chunk) break;
          throwIfAborted(signal);
          const taken = await loader.push(file, chunk);
          if (taken < chunk.length) held[file] = chunk.subarray(taken);
          await this.turn();
          if (headerOnly && held[file]) break;
        }
      }
      throwIfAborted(signal);
      progress.phase('prepare');
      await this.turn(true);
      owned = false; // finish() consumes it.
      return await loader.finish();
    } finally {
      for (const reader of readers) await reader.return?.(undefined);
      if (owned && !this.dead) loader.free();
    }
  }

  /** The other threads of the CPU path. @param {number | undefined} wanted
   * @param {import('./source.js').File[]} weights */
  async startCrew(wanted, weights) {
    if (wanted !== undefined && !(Number.isInteger(wanted) && wanted >= 1 && wanted <= MAX_THREADS)) {
      throw invalid(`threads must be an integer from 1 to ${MAX_THREADS}`);
    }
    const threads = wanted ?? defaultThreads(weights);
    this.crew = undefined;
    if (threads > 1) {
      // Where workers cannot start workers, one thread does, unless more were asked for.
      this.crew = await Crew.start(threads - 1).catch((error) => {
        if (wanted !== undefined) throw error;
        return undefined;
      });
    }
    return this.crew;
  }

  /** Becomes one of another engine's crew. @param {any} way */
  async join(way) {
    this.helper = new Helper();
    await this.helper.join(way);
  }

  /** @param {any} request @param {CallIO} io */
  generate(request, { onEvent, signal, stop }) {
    return this.run(async () => {
      const session = this.loaded();
      session.start(request);
      try {
        for (;;) {
          await this.turn();
          throwIfAborted(signal);
          if (stop?.aborted) session.cancel();
          const event = await session.next();
          if (event.type === 'finished') {
            this.timings = event.timings;
            return { ...event, seed: request.seed, stats: this.stats() };
          }
          onEvent?.(event);
        }
      } finally {
        if (!this.dead) session.end();
      }
    }, signal);
  }

  /** @param {{ text: string, addBos?: boolean }} args */
  tokenize({ text, addBos }) {
    return this.run(async () => Array.from(this.loaded().tokenize(text, addBos)));
  }

  /** @param {{ ids: number[], skipSpecial?: boolean }} args */
  detokenize({ ids, skipSpecial }) {
    return this.run(async () => this.loaded().detokenize(Uint32Array.from(ids), skipSpecial ?? false));
  }

  /** @param {{ ids: number[] }} args @param {CallIO} io @returns {Promise<Float32Array>} */
  logits({ ids }, { signal }) {
    return this.run(async () => this.loaded().logits(Uint32Array.from(ids)), signal);
  }

  /** Time of each kernel in a step. Browsers round timestamps (Chrome to 0.1 ms): the mean of many runs is
   * finer than that. @param {{ ids: number[], runs: number }} args @param {CallIO} io
   * @returns {Promise<import('../index.js').KernelTime[]>} */
  profile({ ids, runs }, { signal }) {
    return this.run(async () => {
      const session = this.loaded();
      /** @type {Map<string, import('../index.js').KernelTime>} */
      const rows = new Map();
      for (let run = 0; run < runs; run++) {
        await this.turn();
        throwIfAborted(signal);
        for (const { op: label, kernel, ms, weightBytes } of await session.profile(Uint32Array.from(ids))) {
          const op = label.replace(/^blk\.\d+\./, ''); // The same operation of all layers together.
          const key = `${op} ${kernel}`;
          const row = rows.get(key) ?? { op, kernel, dispatches: 0, ms: 0, weightBytes: 0 };
          rows.set(key, row);
          row.dispatches += 1 / runs;
          row.ms += ms / runs;
          row.weightBytes += weightBytes / runs;
        }
      }
      for (const row of rows.values()) {
        row.dispatches = Math.round(row.dispatches);
        row.weightBytes = Math.round(row.weightBytes);
      }
      return [...rows.values()];
    }, signal);
  }

  /** Each kernel of the device against its plain twin.
   * @param {{ device?: string }} args @param {CallIO} io */
  check(args, { onEvent, signal }) {
    return this.run(async () => {
      this.wasm = await loadWasm();
      this.wasm.setPanicHandler((/** @type {string} */ message) => this.kill(message));
      const onResult = async (/** @type {any} */ row) => {
        onEvent?.(row);
        await this.turn();
        throwIfAborted(signal);
      };
      return withSubgroups(args.device, (subgroups) => this.wasm.checkKernels({ ...args, subgroups }, onResult));
    }, signal);
  }

  /** Forgets the conversation in the KV cache. */
  reset() {
    return this.run(async () => this.loaded().reset());
  }

  /** @returns {import('../index.js').Stats} */
  stats() {
    return {
      deviceBytes: this.session.deviceBytes(),
      wasmBytes: this.wasm.memoryBytes(),
      cachedTokens: this.session.cachedTokens(),
      ...this.timings,
    };
  }

  dispose() {
    return this.run(async () => {
      this.session?.free();
      this.session = undefined;
    });
  }

  loaded() {
    if (!this.session) throw new BitNetError('invalid_argument', 'no model is loaded');
    return this.session;
  }
}
