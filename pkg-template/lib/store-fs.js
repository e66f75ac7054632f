// A folder of the file system, for Node: `<home>/<id>/data` and `manifest`.
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

const CHUNK_BYTES = 4 << 20;

/** Where files are kept: `BITNET_CACHE`, or the user's cache folder. */
export function cacheFolder() {
  const { env } = process;
  return env.BITNET_CACHE ?? join(env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'bitnet-rust', 'npm');
}

/** @returns {import('./cache.js').Store} */
export function fsStore(home = cacheFolder()) {
  const missing = (/** @type {any} */ error) => {
    if (error.code !== 'ENOENT') throw error;
  };
  return {
    name: 'fs',
    async ids() {
      const entries = (await readdir(home, { withFileTypes: true }).catch(missing)) ?? [];
      return entries.filter((e) => e.isDirectory()).map((e) => e.name);
    },
    async readManifest(id) {
      return (await readFile(join(home, id, 'manifest'), 'utf8').catch(missing)) ?? undefined;
    },
    async *stream(id, { bytes }) {
      const file = await open(join(home, id, 'data'), 'r');
      try {
        if ((await file.stat()).size !== bytes) throw new Error('the stored file has the wrong length');
        yield* chunks(file, bytes);
      } finally {
        await file.close();
      }
    },
    async remove(id) {
      await rm(join(home, id), { recursive: true, force: true });
    },
    async open(id, { partBytes }) {
      const folder = join(home, id);
      await mkdir(folder, { recursive: true });
      const data = await open(join(folder, 'data'), 'a').then((f) => f.close())
        .then(() => open(join(folder, 'data'), 'r+'));
      return {
        async write(part, at, bytes) {
          for (let done = 0; done < bytes.length; ) {
            const where = part * partBytes + at + done;
            done += (await data.write(bytes, done, bytes.length - done, where)).bytesWritten;
          }
        },
        async read(part, length) {
          const bytes = new Uint8Array(length);
          const { bytesRead } = await data.read(bytes, 0, length, part * partBytes);
          return bytes.subarray(0, bytesRead);
        },
        flush: () => data.datasync(),
        async saveManifest(text) {
          // Renaming replaces the file in one step.
          await writeFile(join(folder, 'manifest.new'), text);
          await rename(join(folder, 'manifest.new'), join(folder, 'manifest'));
        },
        close: () => data.close(),
      };
    },
  };
}

/** @param {import('node:fs/promises').FileHandle} file @param {number} bytes */
export async function* chunks(file, bytes) {
  for (let at = 0; at < bytes; ) {
    const chunk = new Uint8Array(Math.min(CHUNK_BYTES, bytes - at));
    const { bytesRead } = await file.read(chunk, 0, chunk.length, at);
    if (!bytesRead) throw new Error('the file became shorter while it was read');
    at += bytesRead;
    yield chunk.subarray(0, bytesRead);
  }
}
