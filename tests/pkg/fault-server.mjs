// A file server that fails on purpose: what `faults` says happens to the requests for a path, in turn.
import { createHash, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

/** @typedef {object} Served
 * @property {Buffer} body
 * @property {string | null} [etag]
 * @property {boolean} [ranges]
 * @property {Record<string, string>} [headers]
 * @property {(request: { n: number, from: number, to: number, served: Served }) => Fault | undefined} [fault]
 * @typedef {{ status?: number, cutAfter?: number, drip?: { bytes: number, ms: number }, hang?: boolean }} Fault */

export class FaultServer {
  /** @type {Map<string, Served>} */
  files = new Map();
  /** Every request: path, range, bytes sent. @type {{ path: string, from: number, to: number, sent: number, ranged: boolean }[]} */
  log = [];

  static async start() {
    const server = new FaultServer();
    server.http = createServer((request, response) => server.answer(request, response));
    await new Promise((done) => server.http.listen(0, '127.0.0.1', () => done(undefined)));
    server.origin = `http://127.0.0.1:${server.http.address().port}`;
    return server;
  }

  /** @param {string} path @param {number | Buffer} body @param {Partial<Served>} [more] */
  serve(path, body, more = {}) {
    const bytes = typeof body === 'number' ? randomBytes(body) : body;
    const etag = `"${createHash('sha256').update(bytes).digest('hex').slice(0, 20)}"`;
    this.files.set(path, { body: bytes, etag, ranges: true, ...more });
    return { url: this.origin + path, body: bytes };
  }

  async answer(request, response) {
    const path = new URL(request.url, this.origin).pathname;
    const served = this.files.get(path);
    const cors = {
      'access-control-allow-origin': '*', 'access-control-allow-headers': '*',
      'access-control-expose-headers': 'ETag, Content-Range, X-Linked-ETag',
    };
    if (!served) return response.writeHead(404, cors).end('not found');
    const match = served.ranges && /^bytes=(\d+)-(\d+)?$/.exec(request.headers.range ?? '');
    const size = served.body.length;
    let [from, to] = match ? [Number(match[1]), Math.min(size, Number(match[2] ?? size - 1) + 1)] : [0, size];
    let ranged = Boolean(match);
    const ifRange = request.headers['if-range'];
    if (ranged && ifRange && ifRange !== served.etag) [from, to, ranged] = [0, size, false];
    const entry = { path, from, to, sent: 0, ranged };
    this.log.push(entry);
    const n = this.log.filter((e) => e.path === path).length;
    const fault = served.fault?.({ n, from, to, served }) ?? {};
    if (fault.hang) return;
    if (fault.status) return response.writeHead(fault.status, { ...cors, 'retry-after': '0' }).end('fault');
    if (ranged && from >= size) return response.writeHead(416, { ...cors, 'content-range': `bytes */${size}` }).end();

    /** @type {Record<string, any>} */
    const headers = { ...cors, 'content-type': 'application/octet-stream', 'content-length': to - from, ...served.headers };
    if (served.etag) headers.etag = served.etag;
    if (ranged) headers['content-range'] = `bytes ${from}-${to - 1}/${size}`;
    response.setMaxListeners(0);
    response.writeHead(ranged ? 206 : 200, headers);
    const body = served.body.subarray(from, to);
    const step = fault.drip?.bytes ?? 64 << 10;
    for (let at = 0; at < body.length; at += step) {
      const chunk = body.subarray(at, Math.min(at + step, fault.cutAfter ?? Infinity));
      entry.sent += chunk.length;
      if (!response.write(chunk)) await new Promise((done) => response.once('drain', done).once('close', done));
      if (response.destroyed) return;
      if (at + step >= (fault.cutAfter ?? Infinity)) {
        // Let what was written go out, then cut the connection in the middle of the body.
        await new Promise((done) => setTimeout(done, 20));
        response.destroy();
        return;
      }
      if (fault.drip) await new Promise((done) => setTimeout(done, fault.drip?.ms));
    }
    response.end();
  }

  bytesSent(path) {
    return this.log.filter((e) => e.path === path).reduce((sum, e) => sum + e.sent, 0);
  }

  stop() {
    this.http.closeAllConnections();
    this.http.close();
  }
}
