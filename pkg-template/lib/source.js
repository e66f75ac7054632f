// Where a model comes from: what users may pass, as streams of bytes in the order they are needed.
import * as cache from './cache.js';
import { download } from './download.js';
import { BitNetError, invalid, throwIfAborted, toError } from './errors.js';
import { platform } from './platform.js';

const HUB = 'https://huggingface.co';
const BLOB_CHUNK_BYTES = 4 << 20;

/**
 * @typedef {object} File  one file of a model
 * @property {string} name  for messages and progress
 * @property {number} [bytes]  if known before it is read
 * @property {() => AsyncIterable<Uint8Array>} stream  can be read again where `again` is true
 * @property {boolean} again
 * @property {() => Promise<unknown>} [forget]  deletes what the cache has of it
 *
 * @typedef {object} Files  a model
 * @property {File[]} weights  one GGUF file, or the shards of a safetensors model
 * @property {Record<string, string>} [texts]  JSON files of a safetensors model by their names there
 *
 * @typedef {object} Context
 * @property {AbortSignal} signal
 * @property {boolean | 'required' | 'reload'} cache
 * @property {Record<string, string>} [headers]
 * @property {string} [hub]
 * @property {string} [sha256]
 * @property {number} [bytes]
 * @property {object} [download]  options of `download`
 * @property {() => { update(bytes: Uint8Array): void, hex(): string }} createHash
 * @property {(phase: 'wait' | 'read' | 'download') => void} onPhase
 * @property {(n: number, stored: boolean) => void} onBytes
 * @property {(file: File) => void} onSize
 * @property {(warning: Error) => void} onWarning
 */

/** JSON files of a safetensors folder: [option of the source, file name, needed]. */
const TEXTS = /** @type {const} */ ([
  ['config', 'config.json', true],
  ['tokenizer', 'tokenizer.json', true],
  ['tokenizerConfig', 'tokenizer_config.json', false],
  ['generationConfig', 'generation_config.json', false],
  ['chatTemplate', 'chat_template.jinja', false],
]);

/** The source in a form that can be posted to a worker, and what is to be transferred.
 * @param {any} source */
export function toSendable(source) {
  /** @type {Transferable[]} */
  const transfer = [];
  const one = (/** @type {any} */ part) => {
    if (part instanceof URL) return { url: part.href };
    if (typeof part === 'string') return textSource(part);
    if (part instanceof Blob) return { blob: part };
    if (part instanceof ArrayBuffer) {
      transfer.push(part);
      return { buffer: part };
    }
    if (ArrayBuffer.isView(part)) {
      // A view of a part of a buffer is copied: the rest of that buffer belongs to someone else.
      const whole = part.byteLength === part.buffer.byteLength && part.buffer instanceof ArrayBuffer;
      const buffer = whole ? part.buffer
        : new Uint8Array(part.buffer, part.byteOffset, part.byteLength).slice().buffer;
      transfer.push(/** @type {ArrayBuffer} */ (buffer));
      return { buffer };
    }
    if (typeof part?.getReader === 'function') {
      transfer.push(part);
      return { stream: part };
    }
    throw invalid('a source is a URL, "hf:owner/repo/file", a File or Blob, an ArrayBuffer, a '
      + 'ReadableStream, or { model, tokenizer, config } of these');
  };
  const isSet = source && Object.getPrototypeOf(source) === Object.prototype;
  if (!isSet) return { source: one(source), transfer };
  if (typeof source.url === 'string' && source.sha256) { // BitNet.defaultModel
    return { source: { ...source, url: absolute(source.url) }, transfer };
  }
  const { model, ...texts } = source;
  for (const [name, , needed] of TEXTS) {
    if (needed && texts[name] === undefined) throw invalid(`the source has a model but no ${name}`);
  }
  const set = {
    model: (Array.isArray(model) ? model : [model]).map(one),
    texts: Object.fromEntries(
      Object.entries(texts).filter(([, part]) => part !== undefined).map(([name, part]) => {
        if (!TEXTS.some(([known]) => known === name)) throw invalid(`${name} is not part of a source`);
        return [name, one(part)];
      })),
  };
  return { source: { set }, transfer };
}

/** @param {string} text */
function textSource(text) {
  if (text.startsWith('hf:')) return { hub: text };
  if (!/^[a-z][a-z0-9+.-]+:/i.test(text) && platform.hasPaths) return { path: text };
  return { url: absolute(text) };
}

/** @param {string} url */
function absolute(url) {
  const { document, location } = /** @type {any} */ (globalThis);
  try {
    return new URL(url, document?.baseURI ?? location?.href).href;
  } catch {
    throw invalid(`${url} is not a URL`);
  }
}

/** The files behind a sendable source. @param {any} source @param {Context} context
 * @returns {Promise<Files>} */
export async function resolve(source, context) {
  if (source.set) {
    const weights = await Promise.all(source.set.model.map((/** @type {any} */ s) => toFile(s, context)));
    /** @type {Record<string, string>} */
    const texts = {};
    for (const [option, name] of TEXTS) {
      if (source.set.texts[option]) {
        texts[name] = await readText(await toFile(source.set.texts[option], context));
      }
    }
    return { weights, texts };
  }
  if (source.hub && !/\.gguf$/i.test(source.hub)) return hubFolder(source.hub, context);
  return { weights: [await toFile(source, context)] };
}

/** @param {any} source @param {Context} context @returns {Promise<File>} */
async function toFile(source, context) {
  const { url, hub, path, blob, buffer, stream } = source;
  if (hub) {
    const place = parseHub(hub, context);
    const folder = await hubFiles(place, parentOf(place.file), context).catch((error) => {
      throwIfAborted(context.signal);
      // The listing only adds the hash; an old copy of it must not be needed to read the cache.
      return error.details?.status === 404 ? Promise.reject(error) : [];
    });
    const facts = folder.find((f) => f.path === place.file);
    return urlFile(hubUrl(place, place.file), { ...context, sha256: facts?.sha256, bytes: facts?.bytes });
  }
  if (url?.startsWith('file:') || path !== undefined) {
    const file = await platform.localFile(path ?? new URL(url));
    if (!file) throw invalid('files are read by path in Node only; pass a File instead');
    const name = String(path ?? url);
    return { name, bytes: file.bytes, again: true, stream: () => counted(file.stream(), context) };
  }
  if (url) return urlFile(url, { ...context, sha256: source.sha256 ?? context.sha256, bytes: source.bytes });
  if (blob) {
    const name = blob.name ?? 'model';
    return { name, bytes: blob.size, again: true, stream: () => counted(slices(blob), context) };
  }
  if (buffer) {
    const blobOf = async function* () {
      for (let at = 0; at < buffer.byteLength; at += BLOB_CHUNK_BYTES) {
        yield new Uint8Array(buffer, at, Math.min(BLOB_CHUNK_BYTES, buffer.byteLength - at));
      }
    };
    return { name: 'model', bytes: buffer.byteLength, again: true, stream: () => counted(blobOf(), context) };
  }
  const reader = source.port ? portReader(source.port) : stream.getReader();
  return { name: 'model', again: false, stream: () => counted(pieces(reader, context.signal), context) };
}

/** @param {AsyncIterable<Uint8Array>} chunks @param {Context} context */
async function* counted(chunks, { onBytes, onPhase, signal }) {
  onPhase('read');
  for await (const chunk of chunks) {
    throwIfAborted(signal);
    onBytes(chunk.length, true);
    yield chunk;
  }
}

/** @param {Blob} blob */
async function* slices(blob) {
  for (let at = 0; at < blob.size; at += BLOB_CHUNK_BYTES) {
    try {
      yield new Uint8Array(await blob.slice(at, at + BLOB_CHUNK_BYTES).arrayBuffer());
    } catch (error) {
      // The file behind a File was changed or removed since it was chosen.
      throw new BitNetError('download_failed', 'the file can no longer be read', { cause: error });
    }
  }
}

/** Reads a stream that stayed on the other side of `port`. @param {MessagePort} port */
function portReader(port) {
  const ask = (/** @type {string} */ what) => new Promise((resolve, reject) => {
    port.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
    port.postMessage(what);
  });
  return { read: () => ask('pull'), cancel: () => ask('cancel').finally(() => port.close()) };
}

/** @param {any} reader @param {AbortSignal} signal */
async function* pieces(reader, signal) {
  const stop = () => { reader.cancel(signal.reason).catch(() => {}); };
  signal.addEventListener('abort', stop, { once: true });
  try {
    for (;;) {
      const { done, value } = await reader.read();
      throwIfAborted(signal);
      if (done) return;
      if (value instanceof ArrayBuffer) yield new Uint8Array(value);
      else if (ArrayBuffer.isView(value)) yield new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
      else throw invalid('a stream must bring bytes (Uint8Array)');
    }
  } catch (error) {
    throw toError(error, 'download_failed');
  } finally {
    signal.removeEventListener('abort', stop);
    reader.cancel().catch(() => {});
  }
}

/** A file from the cache or the network. @param {string} url @param {Context} context @returns {File} */
function urlFile(url, context) {
  const { signal, onPhase, onBytes, onSize, onWarning, createHash, sha256, headers } = context;
  /** @type {File} */
  const file = { name: nameOf(url), bytes: context.bytes, again: true, stream, forget: () => cache.remove(url) };

  async function* fromCache() {
    const hit = await cache.find(url, sha256);
    if (!hit) return false;
    let yielded = false;
    try {
      file.bytes = hit.bytes;
      onSize(file);
      onPhase('read');
      for await (const chunk of hit.stream()) {
        throwIfAborted(signal);
        yielded = true;
        onBytes(chunk.length, true);
        yield chunk;
      }
      return true;
    } catch (error) {
      if (yielded) throw error;
      return false; // Unreadable: as good as absent.
    }
  }

  async function* stream() {
    const keep = context.cache && /^https?:/.test(url);
    const mayRead = keep && context.cache !== 'reload';
    if (mayRead && (yield* fromCache())) return;
    const release = keep
      ? await cache.lock(url, { signal, onWait: () => onPhase('wait') })
      : async () => {};
    let entry;
    try {
      // Another tab may have finished it meanwhile.
      if (mayRead && (yield* fromCache())) return;
      const onError = (/** @type {Error} */ error) => {
        if (context.cache === 'required') throw error;
        onWarning(error);
      };
      entry = keep ? await cache.openEntry(url, { fresh: !mayRead, onError }) : undefined;
      // What is known to be another content cannot be gone on with.
      if (entry?.resumable && sha256 && entry.manifest.sha256 && entry.manifest.sha256 !== sha256) {
        await entry.close();
        entry = await cache.openEntry(url, { fresh: true, onError });
      }
      onPhase('download');
      yield* download(url, {
        ...context.download, signal, headers, entry, sha256, createHash, onBytes,
        onStart: ({ bytes }) => {
          file.bytes = bytes;
          onSize(file);
        },
      });
    } catch (error) {
      if (/** @type {any} */ (error)?.details?.changed) await entry?.discard();
      throw error;
    } finally {
      await entry?.close();
      await release();
    }
  }
  return file;
}

/** @param {File} file */
async function readText(file) {
  const LIMIT_BYTES = 256 << 20; // A tokenizer.json takes up to 40 MB; a wrong file much more.
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let text = '';
  let total = 0;
  try {
    for await (const chunk of file.stream()) {
      total += chunk.length;
      if (total > LIMIT_BYTES) throw new TypeError('it is too large');
      text += decoder.decode(chunk, { stream: true });
    }
    return text + decoder.decode();
  } catch (error) {
    if (error instanceof TypeError) {
      throw new BitNetError('corrupt_file', `${file.name} is not a text file: ${error.message}`, { cause: error });
    }
    throw error;
  }
}

// ---- the Hugging Face hub ----

/** @typedef {{ base: string, repo: string, revision: string, file: string }} Place */

/** `hf:owner/repo[@revision][/file]`. @param {string} text @param {{ hub?: string }} context @returns {Place} */
function parseHub(text, { hub = HUB }) {
  const match = /^hf:([\w.-]+\/[\w.-]+)(?:@([\w.-]+))?(?:\/(.+))?$/.exec(text);
  if (!match) throw invalid(`${text}: expected hf:owner/repo or hf:owner/repo/file`);
  return { base: hub, repo: match[1], revision: match[2] ?? 'main', file: match[3] ?? '' };
}

/** @param {Place} place @param {string} file */
function hubUrl({ base, repo, revision }, file) {
  return `${base}/${repo}/resolve/${revision}/${file.split('/').map(encodeURIComponent).join('/')}`;
}

/** @param {string} path */
const lastPart = (path) => path.split('/').at(-1) ?? path;

/** @param {string} path */
const parentOf = (path) => path.split('/').slice(0, -1).join('/');

/** The hub lists a thousand files at a time. */
const MOST_PAGES = 20;

/** Files of a folder with their hashes; the hub keeps those of large files in `lfs.oid`.
 * @param {Place} place @param {string} folder @param {Pick<Context, 'signal' | 'headers'>} context */
async function hubFiles({ base, repo, revision }, folder, { signal, headers }) {
  let url = `${base}/api/models/${repo}/tree/${revision}${folder ? `/${folder}` : ''}`;
  /** @type {any[]} */
  const entries = [];
  for (let page = 0; url && page < MOST_PAGES; page++) {
    let response;
    try {
      response = await fetch(url, { signal, headers });
    } catch (error) {
      throwIfAborted(signal);
      throw new BitNetError('download_failed', `${url}: ${/** @type {any} */ (error).message}`, { cause: error });
    }
    if (!response.ok) {
      throw new BitNetError('download_failed', `${url}: the server answered ${response.status}`, {
        details: { url, status: response.status },
      });
    }
    const some = await response.json().catch(() => []);
    if (Array.isArray(some)) entries.push(...some);
    url = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get('link') ?? '')?.[1] ?? '';
    if (url && new URL(url).origin !== new URL(base).origin) break; // `headers` may hold a token for the hub.
  }
  return entries
    .filter((entry) => entry?.type === 'file')
    .map(({ path, size, lfs }) => ({ path: String(path), bytes: Number(size), sha256: /** @type {string | undefined} */ (lfs?.oid) }));
}

const isGguf = (/** @type {{ path: string }} */ { path }) => /\.gguf$/i.test(path);
const isShard = (/** @type {{ path: string }} */ { path }) => /\.safetensors$/i.test(path);

/** The models of a repository (or a folder of it): its GGUF files, and its safetensors model.
 * @param {string} text @param {Pick<Context, 'signal' | 'headers' | 'hub'>} context
 * @returns {Promise<import('../index.js').HubModel[]>} */
export async function hubModels(text, context) {
  const place = parseHub(text, context);
  const files = await hubFiles(place, place.file, context);
  const start = text.slice(0, text.length - (place.file ? place.file.length + 1 : 0));
  const models = files.filter(isGguf).map(({ path, bytes, sha256 }) => ({
    source: `${start}/${path}`, name: lastPart(path), format: /** @type {const} */ ('GGUF'), bytes, sha256,
  }));
  const shards = files.filter(isShard);
  if (!shards.length) return models;
  const bytes = shards.reduce((sum, f) => sum + f.bytes, 0);
  return [...models, { source: text, name: lastPart(place.file || place.repo), format: 'safetensors', bytes }];
}

/** A repository or folder without a file name: its one GGUF file, or its safetensors model.
 * @param {string} text @param {Context} context @returns {Promise<Files>} */
async function hubFolder(text, context) {
  const place = parseHub(text, context);
  const files = await hubFiles(place, place.file, context);
  const open = ({ path, bytes, sha256 } = /** @type {typeof files[0]} */ ({})) =>
    urlFile(hubUrl(place, path), { ...context, bytes, sha256 });
  const named = (/** @type {string} */ name) => files.find((f) => lastPart(f.path) === name);

  const gguf = files.filter(isGguf);
  if (gguf.length === 1) return { weights: [open(gguf[0])] };
  const shards = files.filter(isShard).sort((a, b) => (a.path < b.path ? -1 : 1));
  if (!shards.length) {
    const choices = gguf.map((f) => f.path).join(', ');
    throw invalid(choices ? `${text} has several models; add one of ${choices}` : `${text} has no GGUF or safetensors file`);
  }
  /** @type {Record<string, string>} */
  const texts = {};
  for (const [, name, needed] of TEXTS) {
    const file = named(name);
    if (file) texts[name] = await readText(open(file));
    else if (needed) throw new BitNetError('unsupported_model', `${text} has no ${name}`);
  }
  return { weights: shards.map(open), texts };
}

/** @param {string} url */
const nameOf = (url) => decodeURIComponent(new URL(url).pathname.split('/').at(-1) || url);
