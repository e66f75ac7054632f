// The Cache API, for pages and for browsers without OPFS in workers: one response a part, and one
// for the manifest. A part is kept in memory until it is flushed.

const NAME = 'bitnet-rust';
const BASE = 'https://bitnet-rust.invalid/';

/** The store, or `undefined` where there is no Cache API.
 * @returns {Promise<import('./cache.js').Store | undefined>} */
export async function cacheStore() {
  if (typeof caches === 'undefined') return undefined;
  /** @type {Cache} */
  let cache;
  try {
    cache = await caches.open(NAME);
  } catch {
    return undefined; // No secure context, or private browsing.
  }
  const key = (/** @type {string} */ id, /** @type {string | number} */ name) => `${BASE}${id}/${name}`;

  return {
    name: 'cache',
    async ids() {
      const ids = (await cache.keys()).map(({ url }) => url.slice(BASE.length).split('/')[0]);
      return [...new Set(ids)];
    },
    async readManifest(id) {
      return (await cache.match(key(id, 'manifest')))?.text();
    },
    async *stream(id, { done }) {
      for (let part = 0; part < done.length; part++) {
        for (let piece = 0, at = 0; at < done[part]; piece++) {
          const bytes = await (await cache.match(key(id, `${part}.${piece}`)))?.arrayBuffer();
          if (!bytes?.byteLength) throw new Error('a stored part is missing');
          at += bytes.byteLength;
          yield new Uint8Array(bytes);
        }
      }
    },
    async remove(id) {
      for (const request of await cache.keys()) {
        if (request.url.startsWith(key(id, ''))) await cache.delete(request);
      }
    },
    async open(id) {
      /** Pieces of each part: what is stored already, and what waits for the next flush.
       * @type {Map<number, { pieces: number, waiting: Uint8Array[] }>} */
      const parts = new Map();
      const stateOf = (/** @type {number} */ part) => {
        let state = parts.get(part);
        if (!state) parts.set(part, (state = { pieces: 0, waiting: [] }));
        return state;
      };
      return {
        write(part, _at, bytes) {
          stateOf(part).waiting.push(bytes);
        },
        async read(part, length) {
          const bytes = new Uint8Array(length);
          let at = 0;
          let piece = 0;
          for (; at < length; piece++) {
            const response = await cache.match(key(id, `${part}.${piece}`));
            const some = new Uint8Array((await response?.arrayBuffer()) ?? new ArrayBuffer(0));
            // Lengths that do not add up: as good as absent.
            if (!some.length || at + some.length > length) return new Uint8Array(0);
            bytes.set(some, at);
            at += some.length;
          }
          // Later pieces were stored just before a crash and are written over.
          stateOf(part).pieces = piece;
          return bytes;
        },
        async flush() {
          for (const [part, state] of parts) {
            if (!state.waiting.length) continue;
            const body = new Blob(/** @type {any} */ (state.waiting));
            state.waiting = [];
            await cache.put(key(id, `${part}.${state.pieces++}`), new Response(body));
          }
        },
        async saveManifest(text) {
          await cache.put(key(id, 'manifest'), new Response(text));
        },
        close() {},
      };
    },
  };
}
