// Downloaded files, kept for the next time.
//
// A file is stored in parts, each filled from its start, with a manifest that says how far each part
// has come: a download that was cut goes on there. The manifest is written after the data it speaks
// of has been flushed, so it never claims more than there is. Where the bytes lie is a store's
// business: `store-opfs.js` (workers), `store-cache.js` (pages), `store-fs.js` (Node).
import { BitNetError, toError } from './errors.js';
import { platform } from './platform.js';

const VERSION = 1;
const SAVE_EVERY_MS = 1000;

/**
 * @typedef {object} Manifest
 * @property {number} version
 * @property {string} url
 * @property {number} [bytes]
 * @property {string | null} etag
 * @property {string | null} lastModified
 * @property {string} [sha256]  expected while it downloads, checked when complete
 * @property {boolean} ranges  the server can resume
 * @property {number} partBytes
 * @property {number[]} done  bytes stored of each part
 * @property {boolean} complete
 * @property {number} savedAt  ms since 1970
 *
 * What a store must do. `id` is a short file-name-safe string.
 * @typedef {object} Store
 * @property {string} name
 * @property {() => Promise<string[]>} ids
 * @property {(id: string) => Promise<string | undefined>} readManifest
 * @property {(id: string, manifest: Manifest) => Promise<Writer>} open  for one writer
 * @property {(id: string, manifest: Manifest) => AsyncIterable<Uint8Array>} stream  a complete file
 * @property {(id: string) => Promise<void>} remove
 *
 * @typedef {object} Writer
 * @property {(part: number, at: number, bytes: Uint8Array) => void | Promise<void>} write
 * @property {(part: number, length: number) => Promise<Uint8Array>} read
 * @property {() => void | Promise<void>} flush
 * @property {(text: string) => Promise<void>} saveManifest
 * @property {() => void | Promise<void>} close
 */

/** A complete file in the cache, or `undefined`. With `sha256` given, only that content will do.
 * @param {string} url @param {string} [sha256] */
export async function find(url, sha256) {
  const id = await idOf(url);
  for (const store of await platform.stores()) {
    const manifest = await readManifest(store, id);
    if (manifest?.complete && manifest.url === url && (!sha256 || manifest.sha256 === sha256)) {
      return {
        bytes: /** @type {number} */ (manifest.bytes),
        stream: () => store.stream(id, manifest),
      };
    }
  }
  return undefined;
}

/** Takes the file's lock; the result lets go of it. One tab downloads, the others wait and then read.
 * @param {string} url @param {{ signal?: AbortSignal, onWait?: () => void }} options
 * @returns {Promise<() => Promise<unknown>>} */
export async function lock(url, options) {
  const name = `bitnet-rust:${await idOf(url)}`;
  return new Promise((resolve, reject) => {
    const held = platform.lock(name, options, () => new Promise((letGo) => resolve(() => {
      letGo(undefined);
      return held; // Gone when this has settled, not before.
    })));
    held.catch(reject);
  });
}

/** Opens the file for writing; what an earlier download left is kept if it can be resumed.
 * The caller holds the lock. `undefined` where nothing can be stored.
 * @param {string} url
 * @param {{ fresh?: boolean, onError?: (error: Error) => void }} [options]
 *   `fresh`: forget what is there; `onError`: told once when storing fails and is given up
 * @returns {Promise<Entry | undefined>} */
export async function openEntry(url, { fresh = false, onError } = {}) {
  const store = (await platform.stores()).find((s) => s.open);
  if (!store) return undefined;
  const id = await idOf(url);
  try {
    let manifest = fresh ? undefined : await readManifest(store, id);
    if (manifest?.url !== url || manifest.complete || !manifest.ranges) manifest = undefined;
    if (!manifest) await store.remove(id);
    return new Entry(store, id, url, manifest, onError);
  } catch (error) {
    onError?.(storageError(error));
    return undefined;
  }
}

/** @returns {Promise<import('../index.js').CachedFile[]>} */
export async function list() {
  const files = [];
  for (const store of await platform.stores()) {
    for (const id of await store.ids()) {
      const m = await readManifest(store, id);
      if (!m) continue;
      const storedBytes = m.done.reduce((sum, n) => sum + n, 0);
      files.push({
        url: m.url, bytes: m.bytes, storedBytes, complete: m.complete, sha256: m.sha256,
        savedAt: new Date(m.savedAt),
      });
    }
  }
  return files;
}

/** Whether anything can be kept here. */
export const canKeep = async () => (await platform.stores()).some((store) => store.open);

const NOTE = 'note-';
const noteId = async (/** @type {string} */ name) => NOTE + await idOf(name);

/** A few words that lie beside the files under `name`, where there are any.
 * @param {string} name @returns {Promise<string | undefined>} */
export async function readNote(name) {
  const id = await noteId(name);
  for (const store of await platform.stores()) {
    try {
      const { name: whose, note } = JSON.parse((await store.readManifest(id)) ?? '{}');
      if (whose === name && typeof note === 'string') return note;
    } catch {
      // Unreadable is as good as absent.
    }
  }
  return undefined;
}

/** Keeps a few words. @param {string} name @param {string} note */
export async function writeNote(name, note) {
  const store = (await platform.stores()).find((s) => s.open);
  // No file: `list` has none of it.
  const writer = await store?.open(await noteId(name), /** @type {any} */ ({ partBytes: 0 }));
  try {
    await writer?.saveManifest(JSON.stringify({ name, note }));
  } finally {
    await writer?.close();
  }
}

/** Deletes the file of `url`, or everything; says how many files went.
 * A file that is being downloaded now, here or in another tab, is left alone.
 * @param {string} [url] */
export async function remove(url) {
  let count = 0;
  for (const store of await platform.stores()) {
    const ids = url === undefined ? await store.ids() : [await idOf(url)];
    for (const id of ids) {
      if (!(await store.ids()).includes(id)) continue;
      const gone = await platform.lock(`bitnet-rust:${id}`, { ifAvailable: true }, async () => {
        await store.remove(id);
        return true;
      });
      if (gone) count += id.startsWith(NOTE) ? 0 : 1;
      else if (url !== undefined) throw new BitNetError('cache_busy', `${url} is being downloaded`);
    }
  }
  return count;
}

/** A file on its way into the cache. A store that fails ends the caching, not the download. */
export class Entry {
  /** @param {Store} store @param {string} id @param {string} url @param {Manifest} [manifest]
   * @param {(error: Error) => void} [onError] */
  constructor(store, id, url, manifest, onError) {
    this.store = store;
    this.id = id;
    this.url = url;
    this.resumable = manifest !== undefined;
    this.manifest = /** @type {Manifest} */ (manifest);
    this.onError = onError;
    /** @type {Writer | undefined} */
    this.writer = undefined;
    /** @type {Promise<Writer> | undefined} */
    this.opening = undefined;
    this.abandoned = false;
    this.saved = 0;
    this.dirty = false;
    /** @type {Promise<any>} */
    this.last = Promise.resolve();
  }

  /** @param {{ bytes?: number, etag: string | null, lastModified: string | null, sha256?: string, ranges: boolean, partBytes: number }} facts */
  async begin(facts) {
    const parts = facts.ranges ? Math.ceil((facts.bytes ?? 0) / facts.partBytes) : 1;
    this.manifest = {
      version: VERSION, url: this.url, ...facts, done: new Array(parts).fill(0), complete: false,
      savedAt: Date.now(),
      // A server without ranges: one part as long as the file may become.
      partBytes: facts.ranges ? facts.partBytes : Number.MAX_SAFE_INTEGER,
    };
  }

  /** Stores `bytes` at the end of what `part` has. @param {number} part @param {Uint8Array} bytes */
  async append(part, bytes) {
    await this.guard(async () => {
      const writer = (this.writer ??= await this.open());
      const at = this.manifest.done[part];
      await writer.write(part, at, bytes);
      this.manifest.done[part] = at + bytes.length;
      this.dirty = true;
    });
    if (Date.now() - this.saved > SAVE_EVERY_MS) await this.save();
  }

  /** The stored beginning of `part`. @param {number} part @returns {Promise<Uint8Array | undefined>} */
  async read(part) {
    const length = this.manifest.done[part];
    if (!length || this.abandoned) return undefined;
    try {
      this.writer ??= await this.open();
      const bytes = await this.writer.read(part, length);
      if (bytes.length === length) return bytes;
    } catch {
      // Unreadable is as good as absent.
    }
    this.manifest.done[part] = 0;
    return undefined;
  }

  /** Writes down how far it has come. */
  async save() {
    if (!this.dirty || this.abandoned) return;
    this.saved = Date.now();
    this.dirty = false;
    await this.guard(async () => {
      const text = JSON.stringify({ ...this.manifest, savedAt: this.saved });
      await this.writer?.flush();
      await this.writer?.saveManifest(text);
    });
  }

  /** Marks the file as whole and checked. @param {{ bytes: number, sha256?: string }} facts */
  async finish(facts) {
    Object.assign(this.manifest, facts, { complete: true });
    // An empty file has written nothing yet.
    await this.guard(async () => { this.writer ??= await this.open(); });
    this.dirty = true;
    await this.save();
    await this.close();
  }

  /** Forgets the file. */
  async discard() {
    this.abandoned = true;
    await this.close();
    await this.store.remove(this.id).catch(() => {});
  }

  async close() {
    const { writer } = this;
    this.writer = undefined;
    await writer?.close();
  }

  /** Opens once, also when two parts ask at the same time. */
  open() {
    this.opening ??= this.store.open(this.id, this.manifest);
    return this.opening;
  }

  /** Runs storage work, one piece after the other; a failure drops the entry.
   * @param {() => Promise<void>} work */
  guard(work) {
    const next = this.last.then(async () => {
      if (this.abandoned) return;
      try {
        await work();
      } catch (error) {
        await this.discard();
        this.onError?.(storageError(error));
      }
    });
    this.last = next.catch(() => {});
    return next;
  }
}

/** @param {Store} store @param {string} id @returns {Promise<Manifest | undefined>} */
async function readManifest(store, id) {
  try {
    const manifest = JSON.parse((await store.readManifest(id)) ?? 'null');
    if (manifest?.version !== VERSION || !Array.isArray(manifest.done)) return undefined;
    return manifest;
  } catch {
    return undefined;
  }
}

/** A short name for `url`: 128 bits of its SHA-256. @param {string} url */
async function idOf(url) {
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(url));
  return Array.from(new Uint8Array(hash, 0, 16), (b) => b.toString(16).padStart(2, '0')).join('');
}

/** @param {unknown} error @returns {Error} */
function storageError(error) {
  const { name, code } = /** @type {any} */ (error) ?? {};
  if (name === 'QuotaExceededError' || code === 'ENOSPC' || code === 'EDQUOT') {
    return new BitNetError('quota_exceeded', 'there is not enough storage to keep the model', { cause: error });
  }
  return /** @type {Error} */ (toError(error, 'storage_failed'));
}
