// Threads of the CPU path: workers with an engine of their own, each of which holds rows of every
// matrix (src/cpu/shards.rs has the what and why; here the bytes are carried).
//
// Where memory can be shared (cross-origin isolated pages, Node) the workers wait until a word
// changes; elsewhere requests and answers are messages, and no special headers are needed.
//
// To wake a thread takes as long as a small product. So those that wait stay awake for a while, longer than
// what is done between two products, before they sleep: they look at the word, or give themselves messages.
import { BitNetError } from './errors.js';
import { platform } from './platform.js';
import { remote } from './rpc.js';
import { loadWasm } from './wasm.js';

/** Bytes that a request or an answer may have. */
const ROOM = 4 << 20;
// Words of the shared control block.
const LEFT = 0, LENGTH = 1, WORKERS = 2;
/** A worker's words, from WORKERS on. */
const EPOCH = 0, ANSWER = 1, WORDS = 2;
/** A thread that waits looks so long before it sleeps. */
const AWAKE_MS = 3;
/** Looks between two looks at the clock, which takes longer than they do. */
const LOOKS = 512;
/** The caller sleeps so long before it looks whether a worker has died. */
const NAP_MS = 100;
/** A worker that has been asked for so long, while this thread was awake, will not answer. */
const PATIENCE_MS = 120_000;
/** The same for what was posted without waiting: weights, which a worker only copies. */
const POST_MS = 10_000;

/** @returns {boolean} */
function canShare() {
  try {
    // Missing on pages that are not isolated; sleeping is forbidden on a page's own thread.
    return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0) === 'timed-out';
  } catch {
    return false;
  }
}

/** Tells the processor, where there is a way to, that this thread only waits. @type {() => void} */
const pause = /** @type {any} */ (Atomics).pause ?? (() => {});

/** Waits for words to change: awake as long as the wait before was short, for on a busy machine who looks
 * keeps another from working. */
class Watch {
  short = true;

  /** @param {boolean} looks whether to look at all */
  constructor(looks) {
    this.looks = looks;
  }

  /** Whether a word is no longer `old` within `ms`.
   * @param {Int32Array} control @param {number} at @param {number} old @param {number} [ms] */
  wait(control, at, old, ms) {
    if (Atomics.load(control, at) !== old) return true;
    const start = performance.now();
    if (this.looks && this.short) {
      for (let looks = 1; looks % LOOKS || performance.now() - start < AWAKE_MS; looks++) {
        if (Atomics.load(control, at) !== old) return true;
        pause();
      }
    }
    const changed = Atomics.wait(control, at, old, ms) !== 'timed-out';
    this.short = performance.now() - start < AWAKE_MS;
    return changed;
  }
}

/** Keeps a thread that waits for a message from sleeping, by tasks of its own. */
class Vigil {
  until = 0;
  onItsWay = false;

  constructor() {
    const { port1, port2 } = new MessageChannel();
    this.port = port2;
    port1.onmessage = () => {
      this.onItsWay = false;
      this.go();
    };
  }

  start() {
    this.until = performance.now() + AWAKE_MS;
    this.go();
  }

  stop() {
    this.until = 0;
  }

  go() {
    if (this.onItsWay || performance.now() > this.until) return;
    this.onItsWay = true;
    this.port.postMessage(0);
  }

  close() {
    this.port.close();
  }
}

/** @param {string} reason */
const lost = (reason) => new BitNetError('device_lost', reason);

/** What the engine needs of its workers. It calls `post`, then `collect`, then `answer` for each. */
export class Crew {
  room = ROOM;
  /** @type {any} */
  dead;
  /** @type {any[]} */
  workers = [];
  /** @type {import('./rpc.js').Endpoint[]} */
  endpoints = [];
  /** Answers that are no message any more, or failures that nobody has heard of. @type {(Uint8Array | undefined)[]} */
  answers = [];
  /** @type {boolean[]} */
  asked = [];
  closed = false;
  /** Ways to the workers, where memory is not shared. @type {MessagePort[]} */
  ports = [];
  /** Requests by message that have not been answered. */
  left = 0;
  /** Who waits until there are none. @type {{ resolve: () => void, reject: (error: unknown) => void } | undefined} */
  waiting;
  /** @type {Vigil | undefined} */
  vigil;

  /** @param {number} count */
  constructor(count) {
    this.count = count;
    this.shared = canShare();
    this.looks = count < platform.processors();
    this.watch = new Watch(this.looks);
    if (!this.shared && this.looks) this.vigil = new Vigil();
    if (this.shared) {
      this.control = new Int32Array(new SharedArrayBuffer((WORKERS + count * WORDS) * 4));
      this.request = new Uint8Array(new SharedArrayBuffer(ROOM));
      this.shares = Array.from({ length: count }, () => new Uint8Array(new SharedArrayBuffer(ROOM)));
    }
  }

  /** Starts `count` workers. @param {number} count @returns {Promise<Crew>} */
  static async start(count) {
    const crew = new Crew(count);
    try {
      for (let i = 0; i < count; i++) {
        const worker = platform.createWorker();
        crew.workers.push(worker);
        crew.endpoints.push(remote(worker));
        for (const type of ['error', 'exit']) {
          worker.addEventListener(type, (/** @type {any} */ event) => {
            crew.die(lost(event.message || 'it has ended'));
          });
        }
      }
      await Promise.all(crew.endpoints.map((endpoint, index) => {
        const { control, looks, request } = crew;
        if (control) return endpoint.call('join', { control, index, looks, request, answer: crew.shares?.[index] });
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = ({ data }) => crew.answered(index, data);
        crew.ports.push(port1);
        return endpoint.call('join', { port: port2, looks }, { transfer: [port2] });
      }));
      return crew;
    } catch (error) {
      crew.close();
      throw error;
    }
  }

  /** @param {unknown} error */
  die(error) {
    this.dead ??= error;
    this.waiting?.reject(this.dead);
  }

  check() {
    if (this.closed) throw lost('the workers were dismissed');
    if (this.dead) throw this.dead;
  }

  /** Sends a request to worker `to`, or to all if it is negative.
   * @param {number} to @param {Uint8Array} request a view that is only good during this call */
  post(to, request) {
    this.check();
    const asked = to < 0 ? [...this.endpoints.keys()] : [to];
    if (this.shared) return this.postShared(asked, request);
    this.left += asked.length;
    for (const i of asked) {
      const copy = request.slice();
      this.ports[i].postMessage(copy, [copy.buffer]);
    }
  }

  /** @param {number} i @param {Uint8Array} answer by message */
  answered(i, answer) {
    if (!this.answers[i]?.[0]) this.answers[i] = answer;
    if (--this.left === 0) this.waiting?.resolve();
  }

  /** @param {number[]} asked @param {Uint8Array} request */
  postShared(asked, request) {
    const control = /** @type {Int32Array} */ (this.control);
    // The request before, of which nobody waited for the answer.
    for (let slept = 0; !this.sleep(); slept += NAP_MS) {
      if (slept > POST_MS) throw lost('it does not answer');
    }
    this.keepFailures(asked);
    /** @type {Uint8Array} */ (this.request).set(request);
    control[LENGTH] = request.length;
    Atomics.store(control, LEFT, asked.length);
    for (const i of asked) {
      this.asked[i] = true;
      const at = WORKERS + i * WORDS + EPOCH;
      Atomics.add(control, at, 1);
      Atomics.notify(control, at);
    }
  }

  /** Sleeps until all have answered, but not long. @returns {boolean} whether they have */
  sleep() {
    const control = /** @type {Int32Array} */ (this.control);
    for (;;) {
      const left = Atomics.load(control, LEFT);
      if (left === 0) return true;
      if (!this.watch.wait(control, LEFT, left, NAP_MS)) return false;
    }
  }

  /** Nothing if all have answered by the time it returns. @returns {Promise<void> | undefined} */
  collect() {
    this.check();
    if (!this.shared) return this.left ? this.collectMessages() : undefined;
    return this.sleep() ? undefined : this.collectSlowly();
  }

  /** With turns of the event loop, which bring news of a worker's death. */
  async collectSlowly() {
    for (let slept = 0; ; slept += NAP_MS) {
      await new Promise((done) => { setTimeout(done); });
      this.check();
      if (this.sleep()) return;
      if (slept > PATIENCE_MS) this.die(lost('it does not answer'));
    }
  }

  async collectMessages() {
    const timer = setTimeout(() => this.die(lost('it does not answer')), PATIENCE_MS);
    this.vigil?.start();
    try {
      await new Promise((resolve, reject) => { this.waiting = { resolve: () => resolve(undefined), reject }; });
    } finally {
      this.vigil?.stop();
      clearTimeout(timer);
    }
  }

  /** The last answer of worker `i`, or its first failure. @param {number} i @returns {Uint8Array | undefined} */
  answer(i) {
    if (this.shared && this.asked[i] && !this.answers[i]) {
      this.asked[i] = false;
      const { control, shares } = /** @type {any} */ (this);
      return shares[i].subarray(0, control[WORKERS + i * WORDS + ANSWER]);
    }
    const answer = this.answers[i];
    this.answers[i] = undefined;
    this.asked[i] = false;
    return answer;
  }

  /** Before answers of these workers are overwritten that nobody has read. @param {number[]} workers */
  keepFailures(workers) {
    const { control, shares } = /** @type {any} */ (this);
    for (const i of workers) {
      if (!this.asked[i]) continue;
      const answer = shares[i].subarray(0, control[WORKERS + i * WORDS + ANSWER]);
      if (answer[0]) this.answers[i] ??= answer.slice();
    }
  }

  close() {
    this.closed = true;
    this.waiting?.reject(lost('the workers were dismissed'));
    this.vigil?.close();
    for (const port of this.ports) port.close();
    for (const endpoint of this.endpoints) endpoint.close();
  }
}

/** The other side, in the worker. */
export class Helper {
  /** @type {any} */
  wasm;
  /** @type {any} */
  shard;
  /** @type {Uint8Array | undefined} */
  failure;

  /** @param {any} way what is shared, or where messages come from */
  async join(way) {
    this.wasm = await loadWasm();
    this.shard = new this.wasm.Shard();
    // Not before the reply to this call has gone out: there is no event loop any more then.
    if (way.control) setTimeout(() => this.work(way));
    else this.listen(way);
  }

  /** @param {{ port: MessagePort, looks: boolean }} way */
  listen({ port, looks }) {
    const vigil = looks ? new Vigil() : undefined;
    port.onmessage = ({ data }) => {
      const answer = this.answer(data);
      port.postMessage(answer, [answer.buffer]);
      vigil?.start();
    };
  }

  /** @param {Uint8Array} request @returns {Uint8Array} */
  answer(request) {
    if (this.failure) return this.failure.slice();
    try {
      return this.shard.answer(request);
    } catch (error) {
      // A trap: this instance is of no use any more, but can still say so.
      const why = `its engine has stopped: ${/** @type {any} */ (error)?.message ?? error}`;
      this.failure = Uint8Array.from([1, 0, 0, 0, ...new TextEncoder().encode(why)]);
      return this.failure.slice();
    }
  }

  /** @param {{ control: Int32Array, index: number, looks: boolean, request: Uint8Array, answer: Uint8Array }} shared */
  work({ control, index, looks, request, answer: room }) {
    const mine = WORKERS + index * WORDS;
    const watch = new Watch(looks);
    for (let epoch = 0; ;) {
      watch.wait(control, mine + EPOCH, epoch);
      epoch = Atomics.load(control, mine + EPOCH);
      const answer = this.answer(request.subarray(0, control[LENGTH]));
      room.set(answer);
      control[mine + ANSWER] = answer.length;
      if (Atomics.sub(control, LEFT, 1) === 1) Atomics.notify(control, LEFT);
    }
  }
}
