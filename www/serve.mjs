#!/usr/bin/env node
// A static file server without dependencies: right types, ranges, validators. Nothing here needs
// it in particular; the pages work from any server that hands out files.
//
//   node serve.mjs [--port N] [--host NAME] [--isolated]
//
// --port 0 takes a free port. --isolated sends COOP/COEP, which gives the page finer clocks and
// SharedArrayBuffer; the pages do not need them.
import { createReadStream, realpathSync } from 'node:fs';
import { realpath, stat } from 'node:fs/promises';
import http from 'node:http';
import { dirname, extname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
  '.png': 'image/png',
};

/** A server of the files under `root`; `mounts` puts other folders at path prefixes, such as
 * `{ '/pkg/': '…/mock/' }`. Listens on `port` (0: a free one) and resolves to it and its `url`.
 * @param {{ root: string, port?: number, host?: string, isolated?: boolean,
 *   mounts?: Record<string, string>, onRequest?: (path: string, request: http.IncomingMessage) => void }} options */
export async function serve({ root, port = 0, host = '127.0.0.1', isolated = false, mounts = {}, onRequest }) {
  const server = http.createServer((request, response) => {
    answer(request, response).catch(() => {
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  });

  async function answer(request, response) {
    if (isolated) {
      response.setHeader('cross-origin-opener-policy', 'same-origin');
      response.setHeader('cross-origin-embedder-policy', 'require-corp');
    }
    const fail = (status) => response.writeHead(status, { 'content-type': 'text/plain' }).end(`${http.STATUS_CODES[status]}\n`);
    if (request.method !== 'GET' && request.method !== 'HEAD') return fail(405);
    let path;
    try {
      path = decodeURIComponent(new URL(request.url ?? '/', 'http://x').pathname);
    } catch {
      return fail(400);
    }
    onRequest?.(path, request);
    const found = await locate(path);
    if (!found) return fail(404);
    if (found.redirect) return response.writeHead(301, { location: found.redirect }).end();

    const { file, info } = found;
    const etag = `"${info.size.toString(36)}-${Math.trunc(info.mtimeMs).toString(36)}"`;
    response.setHeader('etag', etag);
    response.setHeader('last-modified', info.mtime.toUTCString());
    // Always ask again: answered with 304 while nothing has changed, so an update is never half seen.
    response.setHeader('cache-control', 'no-cache');
    response.setHeader('accept-ranges', 'bytes');
    if (request.headers['if-none-match'] === etag) return response.writeHead(304).end();
    response.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');

    const mayRange = !request.headers['if-range'] || request.headers['if-range'] === etag;
    const range = mayRange ? parseRange(request.headers.range, info.size) : undefined;
    if (range === 'bad') {
      response.setHeader('content-range', `bytes */${info.size}`);
      return fail(416);
    }
    const { start, end } = range ?? { start: 0, end: info.size - 1 };
    response.setHeader('content-length', end - start + 1);
    if (range) response.setHeader('content-range', `bytes ${start}-${end}/${info.size}`);
    response.writeHead(range ? 206 : 200);
    if (request.method === 'HEAD' || info.size === 0) return response.end();
    createReadStream(file, { start, end }).on('error', () => response.destroy()).pipe(response);
  }

  async function locate(path) {
    const mount = Object.keys(mounts).find((prefix) => path.startsWith(prefix));
    const base = realpathSync(mount ? mounts[mount] : root);
    const wanted = join(base, mount ? path.slice(mount.length) : path);
    try {
      // Resolved first, so that neither `..` nor a link leads out of the folder.
      let file = await realpath(wanted);
      if (file !== base && !file.startsWith(base + sep)) return undefined;
      let info = await stat(file);
      if (info.isDirectory()) {
        if (!path.endsWith('/')) return { redirect: `./${path.split('/').at(-1)}/` };
        file = await realpath(join(file, 'index.html'));
        info = await stat(file);
      }
      return info.isFile() ? { file, info } : undefined;
    } catch {
      return undefined;
    }
  }

  await new Promise((done, failed) => server.once('error', failed).listen(port, host, () => done(undefined)));
  const address = /** @type {import('node:net').AddressInfo} */ (server.address());
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${address.port}/`,
    port: address.port,
    close: () => new Promise((done) => {
      server.close(() => done(undefined));
      server.closeAllConnections();
    }),
  };
}

/** One range of bytes: `undefined` when there is none (or several: the whole file is a right answer
 * to those), `'bad'` when it lies outside. @param {string | undefined} header @param {number} size */
export function parseRange(header, size) {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '');
  if (!match || (match[1] === '' && match[2] === '')) return undefined;
  const [first, last] = [match[1], match[2]];
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first);
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1);
  return start > end || start >= size ? 'bad' : { start, end };
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '8080' },
      host: { type: 'string', default: '127.0.0.1' },
      isolated: { type: 'boolean', default: false },
    },
  });
  const port = Number(values.port);
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    console.error(`--port must be a number from 0 to 65535, got ${values.port}`);
    process.exit(2);
  }
  const root = dirname(fileURLToPath(import.meta.url));
  try {
    const { url } = await serve({ root, port, host: values.host, isolated: values.isolated });
    console.log(url);
  } catch (error) {
    console.error(`cannot listen on ${values.host}:${port}: ${error.message}`);
    process.exit(1);
  }
}
