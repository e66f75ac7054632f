// A file over HTTP, in order, whatever happens on the way.
//
// The file is fetched in parts by range requests, several at a time, and handed on in order. A part
// that is cut goes on at the byte where it stopped; with a cache entry that holds across page
// loads. Every answer must carry the validators of the first one (ETag, else Last-Modified, and the
// length): a file that changes on the server half-way is an error, never a mixture.
// A server without ranges is read in one go.
import { BitNetError, throwIfAborted } from './errors.js';

const MIB = 1 << 20;

/**
 * @typedef {object} DownloadOptions
 * @property {AbortSignal} [signal]
 * @property {Record<string, string>} [headers]  sent with every request
 * @property {import('./cache.js').Entry | null} [entry]  where to keep what arrives
 * @property {string} [sha256]  what the content must hash to, if known beforehand
 * @property {() => { update(bytes: Uint8Array): void, hex(): string }} [createHash]  SHA-256
 * @property {(facts: { bytes?: number }) => void} [onStart]
 * @property {(bytes: number, stored: boolean) => void} [onBytes]  bytes that arrived, or lay in the cache
 * @property {number} [partBytes]
 * @property {number} [parallel]  parts under way at a time
 * @property {number} [retries]  attempts without a single new byte before giving up
 * @property {number} [backoffMs]  wait before the first retry; doubled each time
 * @property {number} [stallMs]  silence that counts as a cut
 *
 * @typedef {object} Facts  what the first answer says about the file
 * @property {number} [bytes]
 * @property {string | null} etag
 * @property {string | null} lastModified
 * @property {string} [sha256]
 * @property {boolean} ranges
 */

/** Yields the file at `url` in order. Rejects with `download_failed`, or `corrupt_file` when the
 * content does not have the expected hash.
 * @param {string} url @param {DownloadOptions} [options]
 * @returns {AsyncGenerator<Uint8Array, void, void>} */
export async function* download(url, options = {}) {
  const { entry, createHash, onStart, signal } = options;
  const http = new Http(url, options);
  let first;
  /** @type {Facts} */
  let facts;
  if (entry?.resumable) {
    facts = { ...entry.manifest, ranges: true };
    http.facts = facts;
  } else {
    first = await http.first(options.partBytes ?? 8 * MIB);
    facts = /** @type {Facts} */ (http.facts);
    await entry?.begin({ ...facts, partBytes: options.partBytes ?? 8 * MIB });
  }
  const expected = options.sha256 ?? facts.sha256;
  onStart?.({ bytes: facts.bytes });

  const hash = createHash?.();
  let total = 0;
  try {
    const chunks = facts.ranges ? inParts(http, facts, options, first) : inOne(http, options, first);
    for await (const chunk of chunks) {
      hash?.update(chunk);
      total += chunk.length;
      yield chunk;
      throwIfAborted(signal);
    }
  } finally {
    await entry?.save();
  }
  if (facts.bytes !== undefined && total !== facts.bytes) {
    await entry?.discard();
    throw failed(url, `it has ${total} bytes instead of ${facts.bytes}`);
  }
  const sha256 = hash?.hex();
  if (sha256 && expected && sha256 !== expected) {
    await entry?.discard();
    throw new BitNetError('corrupt_file', `${url}: the content does not have the expected hash`, {
      details: { url, expected, got: sha256 },
    });
  }
  await entry?.finish({ bytes: total, sha256 });
}

/** @param {Http} http @param {Facts} facts @param {DownloadOptions} options @param {Response} [first] */
async function* inParts(http, facts, { entry, onBytes, parallel = 4, ...options }, first) {
  const bytes = /** @type {number} */ (facts.bytes);
  const partBytes = entry?.manifest.partBytes ?? options.partBytes ?? 8 * MIB;
  const parts = Math.ceil(bytes / partBytes);
  /** @type {Map<number, Queue>} */
  const queues = new Map();
  const tasks = new Set();

  const run = async (/** @type {number} */ part, /** @type {Queue} */ queue) => {
    const start = part * partBytes;
    const end = Math.min(bytes, start + partBytes);
    const stored = await entry?.read(part);
    if (stored?.length) {
      onBytes?.(stored.length, true);
      queue.push(stored);
    }
    const from = start + (stored?.length ?? 0);
    for await (const chunk of http.range(from, end, part === 0 ? first : undefined)) {
      await entry?.append(part, chunk);
      onBytes?.(chunk.length, false);
      queue.push(chunk);
      if (queue.closed) return;
    }
    queue.end();
  };
  try {
    for (let part = 0; part < parts; part++) {
      // A part begins only when the one `parallel` before it has been handed on: memory stays bounded.
      for (let next = part; next < Math.min(parts, part + parallel); next++) {
        if (queues.has(next)) continue;
        const queue = new Queue();
        queues.set(next, queue);
        const task = run(next, queue).catch((error) => queue.fail(error)).finally(() => tasks.delete(task));
        tasks.add(task);
      }
      yield* /** @type {Queue} */ (queues.get(part));
      queues.delete(part);
    }
  } finally {
    http.stop();
    for (const queue of queues.values()) queue.closed = true;
    await Promise.all(tasks);
  }
}

/** @param {Http} http @param {DownloadOptions} options @param {Response} [first] */
async function* inOne(http, { entry, onBytes }, first) {
  try {
    for await (const chunk of http.whole(/** @type {Response} */ (first))) {
      await entry?.append(0, chunk);
      onBytes?.(chunk.length, false);
      yield chunk;
    }
  } finally {
    http.stop();
  }
}

/** Requests for one file, with retries. */
class Http {
  /** @param {string} url @param {DownloadOptions} options */
  constructor(url, { signal, headers = {}, retries = 5, backoffMs = 500, stallMs = 30_000 }) {
    this.url = url;
    this.headers = headers;
    this.retries = retries;
    this.backoffMs = backoffMs;
    this.stallMs = stallMs;
    this.stopped = new AbortController();
    this.signal = signal ? AbortSignal.any([signal, this.stopped.signal]) : this.stopped.signal;
    /** @type {Facts | undefined} */
    this.facts = undefined;
  }

  stop() {
    this.stopped.abort();
  }

  /** The answer that tells what the file is: a first part where the server knows ranges, else all.
   * @param {number} partBytes */
  async first(partBytes) {
    return this.persist(async () => {
      const response = await this.get(0, partBytes);
      const bytes = totalOf(response);
      const ranges = response.status === 206 && bytes !== undefined;
      this.facts = {
        bytes: ranges || !response.headers.has('content-encoding') ? bytes : undefined,
        etag: response.headers.get('etag'),
        lastModified: response.headers.get('last-modified'),
        sha256: hashOf(response),
        ranges,
      };
      if (response.status === 206 && !ranges) {
        // Another origin hides Content-Range: without the length there is no telling parts apart.
        await response.body?.cancel();
        this.facts.bytes = undefined;
        return this.get();
      }
      return response;
    }, 2);
  }

  /** Yields bytes `from..to`.
   * @param {number} from @param {number} to @param {Response} [response] */
  async *range(from, to, response) {
    while (from < to) {
      const at = from;
      const body = await this.persist(async () => {
        response ??= await this.get(at, to);
        const reader = this.body(response);
        response = undefined;
        const head = await reader.next();
        if (head.done) throw new Error('the connection was closed');
        return { head: head.value, reader };
      });
      /** @type {Uint8Array | undefined} */
      let chunk = body.head;
      try {
        while (chunk) {
          const take = chunk.length > to - from ? chunk.subarray(0, to - from) : chunk;
          from += take.length;
          yield take;
          if (from === to) return;
          chunk = (await body.reader.next()).value;
        }
      } catch (error) {
        // A cut after at least one byte: go on from there, with a fresh count of attempts.
        if (this.signal.aborted) throw this.signal.reason;
        if (error instanceof BitNetError) throw error;
      } finally {
        body.reader.return?.(undefined);
      }
    }
  }

  /** Yields the file from a server without ranges; a cut means reading it again from the start.
   * @param {Response} response */
  async *whole(response) {
    let delivered = 0;
    for (let failures = 0; ; ) {
      let at = 0;
      try {
        for await (const chunk of this.body(response)) {
          at += chunk.length;
          if (at <= delivered) continue;
          const fresh = chunk.subarray(Math.max(0, chunk.length - (at - delivered)));
          delivered = at;
          failures = 0;
          yield fresh;
        }
        const { bytes } = /** @type {Facts} */ (this.facts);
        if (bytes === undefined || delivered >= bytes) return;
        throw new Error('the connection was closed');
      } catch (error) {
        if (this.signal.aborted) throw this.signal.reason;
        if (error instanceof BitNetError) throw error;
        const { etag, lastModified } = /** @type {Facts} */ (this.facts);
        // Nothing would tell whether the second answer is the same file.
        if (!etag && !lastModified) throw changed(this.url, error);
        if (++failures > this.retries) throw failed(this.url, message(error), error);
        await sleep(this.backoffMs * 2 ** (failures - 1), this.signal);
        response = await this.persist(() => this.get());
      }
    }
  }

  /** Runs `attempt` until it succeeds or fails for good.
   * @template T @param {() => Promise<T>} attempt @param {number} [retries] @returns {Promise<T>} */
  async persist(attempt, retries = this.retries) {
    for (let failures = 0; ; failures++) {
      throwIfAborted(this.signal);
      try {
        return await attempt();
      } catch (error) {
        if (this.signal.aborted) throw this.signal.reason;
        if (error instanceof BitNetError) throw error;
        if (failures >= retries) throw failed(this.url, message(error), error);
        const wait = /** @type {any} */ (error).retryAfterMs ?? this.backoffMs * 2 ** failures;
        await sleep(wait * (1 + Math.random() / 4), this.signal);
      }
    }
  }

  /** One request; checks status and validators.
   * @param {number} [from] @param {number} [to] */
  async get(from, to) {
    /** @type {Record<string, string>} */
    const headers = { ...this.headers };
    if (to !== undefined) headers.range = `bytes=${from}-${to - 1}`;
    const known = this.facts;
    // If-Range saves a useless body when the file has changed. It is not a CORS-safelisted header:
    // to other origins it would cost a preflight request, and the check below does the same.
    if (known?.etag && !known.etag.startsWith('W/') && to !== undefined && sameOrigin(this.url)) {
      headers['if-range'] = known.etag;
    }
    // The browser's HTTP cache would keep a second copy of what our own cache holds.
    const stall = new AbortController();
    const timer = setTimeout(() => stall.abort(new Error('the server does not answer')), this.stallMs);
    let response;
    try {
      response = await fetch(this.url, {
        headers, cache: 'no-store', signal: AbortSignal.any([this.signal, stall.signal]),
      });
    } finally {
      clearTimeout(timer);
    }
    const { status } = response;
    const refuse = async (/** @type {Error} */ error) => {
      await response.body?.cancel().catch(() => {});
      throw error;
    };
    if (status === 206) {
      const range = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '');
      if (range && Number(range[1]) !== from) await refuse(failed(this.url, 'the server sent another range'));
    } else if (status === 408 || status === 425 || status === 429 || status >= 500) {
      const error = new Error(`the server answered ${status}`);
      const seconds = Number(response.headers.get('retry-after'));
      if (seconds > 0) Object.assign(error, { retryAfterMs: Math.min(seconds, 60) * 1000 });
      await refuse(error);
    } else if (status === 416 && known) {
      await refuse(changed(this.url));
    } else if (status !== 200) {
      await refuse(failed(this.url, `the server answered ${status}`, undefined, { status }));
    }
    if (known) {
      const total = totalOf(response);
      const same = (to === undefined || status === 206)
        && agree(known.etag, response.headers.get('etag'))
        && agree(known.lastModified, response.headers.get('last-modified'))
        && (total === undefined || known.bytes === undefined || total === known.bytes);
      if (!same) await refuse(changed(this.url));
    }
    return response;
  }

  /** The chunks of a body; a long silence counts as a cut.
   * @param {Response} response @returns {AsyncGenerator<Uint8Array, undefined, void>} */
  async *body(response) {
    if (!response.body) return;
    const reader = response.body.getReader();
    try {
      for (;;) {
        /** @type {any} */
        let timer;
        const stalled = new Promise((_, reject) => {
          timer = setTimeout(() => reject(new Error('the connection stalled')), this.stallMs);
        });
        const { done, value } = await Promise.race([reader.read(), stalled]).finally(() => clearTimeout(timer));
        if (done) return;
        if (value.length) yield value;
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }
}

/** Chunks of one part, pushed by its download and pulled by the reader. */
class Queue {
  constructor() {
    /** @type {Uint8Array[]} */
    this.chunks = [];
    this.closed = false;
    this.ended = false;
    /** @type {{ error: unknown } | undefined} */
    this.failure = undefined;
    /** @type {(() => void) | undefined} */
    this.wake = undefined;
  }
  /** @param {Uint8Array} chunk */
  push(chunk) {
    this.chunks.push(chunk);
    this.wake?.();
  }
  end() {
    this.ended = true;
    this.wake?.();
  }
  /** @param {unknown} error */
  fail(error) {
    this.failure = { error };
    this.wake?.();
  }
  async *[Symbol.asyncIterator]() {
    for (;;) {
      const chunk = this.chunks.shift();
      if (chunk) yield chunk;
      else if (this.failure) throw this.failure.error;
      else if (this.ended) return;
      else await new Promise((resolve) => { this.wake = () => resolve(undefined); });
    }
  }
}

/** Length of the whole file. @param {Response} response */
function totalOf(response) {
  const text = response.status === 206
    ? /\/(\d+)$/.exec(response.headers.get('content-range') ?? '')?.[1]
    : response.headers.get('content-length');
  return text === null || text === undefined ? undefined : Number(text);
}

/** SHA-256 of the whole file, where a header gives it: Repr-Digest (RFC 9530), the hub's
 * X-Linked-ETag, or an ETag that can be nothing else. @param {Response} response */
function hashOf({ headers }) {
  const digest = /sha-256=:([A-Za-z0-9+/=]{44}):/.exec(headers.get('repr-digest') ?? '')?.[1];
  if (digest) {
    return Array.from(atob(digest), (c) => c.charCodeAt(0).toString(16).padStart(2, '0')).join('');
  }
  for (const name of ['x-linked-etag', 'etag']) {
    const hex = /^"?([0-9a-f]{64})"?$/.exec(headers.get(name) ?? '')?.[1];
    if (hex) return hex;
  }
  return undefined;
}

/** Validators agree unless both are there and differ.
 * @param {string | null | undefined} a @param {string | null | undefined} b */
const agree = (a, b) => !a || !b || a === b;

/** @param {string} url */
function sameOrigin(url) {
  const { location } = /** @type {any} */ (globalThis);
  return !location?.origin || new URL(url, location.href).origin === location.origin;
}

/** @param {unknown} error */
const message = (error) => String(/** @type {any} */ (error)?.message ?? error);

/** @param {string} url @param {string} why @param {unknown} [cause] @param {object} [details] */
function failed(url, why, cause, details) {
  return new BitNetError('download_failed', `${url}: ${why}`, { cause, details: { url, ...details } });
}

/** @param {string} url @param {unknown} [cause] */
function changed(url, cause) {
  return failed(url, 'the file changed on the server during the download', cause, { changed: true });
}

/** @param {number} ms @param {AbortSignal} signal */
function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', onAbort);
      resolve(undefined);
    }, ms);
    signal.addEventListener('abort', onAbort, { once: true });
  });
}
