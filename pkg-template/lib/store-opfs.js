// The origin private file system: a folder a file, with `data` and two manifests written in turn
// (a crash while one is written leaves the other).
//
// Writing needs a FileSystemSyncAccessHandle, which only dedicated workers have; reading and listing
// work everywhere.

/** @typedef {import('./cache.js').Store} Store */

const CHUNK_BYTES = 4 << 20;

/** The store, or `undefined` where there is no OPFS. @returns {Promise<Store | undefined>} */
export async function opfsStore() {
  try {
    const root = await navigator.storage.getDirectory();
    const home = () => root.getDirectoryHandle('bitnet-rust', { create: true });
    const dir = async (/** @type {string} */ id, create = false) =>
      (await home()).getDirectoryHandle(id, { create });
    const canWrite = 'createSyncAccessHandle' in FileSystemFileHandle.prototype;

    /** @type {any} */
    const store = {
      name: 'opfs',
      async ids() {
        const ids = [];
        for await (const id of /** @type {any} */ (await home()).keys()) ids.push(id);
        return ids;
      },
      async readManifest(/** @type {string} */ id) {
        return (await manifests(await dir(id)))[0]?.text;
      },
      async *stream(/** @type {string} */ id, /** @type {import('./cache.js').Manifest} */ { bytes }) {
        const file = await (await (await dir(id)).getFileHandle('data')).getFile();
        if (file.size !== bytes) throw new Error('the stored file has the wrong length');
        for (let at = 0; at < file.size; at += CHUNK_BYTES) {
          yield new Uint8Array(await file.slice(at, at + CHUNK_BYTES).arrayBuffer());
        }
      },
      async remove(/** @type {string} */ id) {
        await (await home()).removeEntry(id, { recursive: true }).catch((error) => {
          if (error.name !== 'NotFoundError') throw error;
        });
      },
    };
    if (canWrite) store.open = (/** @type {string} */ id, /** @type {any} */ manifest) => open(dir, id, manifest);
    return store;
  } catch {
    return undefined; // No secure context, or private browsing.
  }
}

/** @param {(id: string, create: boolean) => Promise<FileSystemDirectoryHandle>} dir
 * @param {string} id @param {import('./cache.js').Manifest} manifest */
async function open(dir, id, { partBytes }) {
  const folder = await dir(id, true);
  const data = await exclusive(await folder.getFileHandle('data', { create: true }));
  let sequence = (await manifests(folder))[0]?.sequence ?? 0;
  return {
    write(/** @type {number} */ part, /** @type {number} */ at, /** @type {Uint8Array} */ bytes) {
      const written = data.write(bytes, { at: part * partBytes + at });
      // Some browsers report a full disk by writing less.
      if (written !== bytes.length) throw new DOMException('the disk is full', 'QuotaExceededError');
    },
    async read(/** @type {number} */ part, /** @type {number} */ length) {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, data.read(bytes, { at: part * partBytes }));
    },
    flush: () => data.flush(),
    async saveManifest(/** @type {string} */ text) {
      sequence += 1;
      const handle = await exclusive(
        await folder.getFileHandle(`manifest.${sequence % 2}`, { create: true }));
      try {
        const bytes = new TextEncoder().encode(`${sequence}\n${text}`);
        handle.truncate(0);
        handle.write(bytes, { at: 0 });
        handle.flush();
      } finally {
        handle.close();
      }
    },
    close: () => data.close(),
  };
}

/** Both manifests that can be read, the newer one first. @param {FileSystemDirectoryHandle} folder */
async function manifests(folder) {
  const found = [];
  for (const name of ['manifest.0', 'manifest.1']) {
    try {
      const text = await (await (await folder.getFileHandle(name)).getFile()).text();
      const end = text.indexOf('\n');
      JSON.parse(text.slice(end + 1)); // A torn one does not count.
      found.push({ sequence: Number(text.slice(0, end)), text: text.slice(end + 1) });
    } catch {
      // Absent or torn.
    }
  }
  return found.sort((a, b) => b.sequence - a.sequence);
}

/** A handle that no one else may hold; a worker that was just terminated may still let go of it.
 * @param {any} file @returns {Promise<any>} */
async function exclusive(file) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await file.createSyncAccessHandle();
    } catch (error) {
      const busy = /** @type {any} */ (error).name === 'NoModificationAllowedError';
      if (!busy || attempt >= 20) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
