// The order of a module's functions, for compression: gzip looks back 32 KB, so what is alike stands side by side.

/** How far gzip looks back. */
const WINDOW_BYTES = 32_768;
/** Runs of bytes that functions are compared by. */
const RUN_BYTES = 6;

/** A position in `bytes`, read from. */
class Reader {
  /** @param {Uint8Array} bytes */
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  byte() {
    return this.bytes[this.at++];
  }

  /** LEB128, unsigned. */
  number() {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = this.byte();
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  }

  /** The bytes of something with its length in front. */
  sized() {
    const length = this.number();
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }
}

/** LEB128, unsigned. @param {number} value @returns {number[]} */
const number = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...number(value >>> 7)]);

/** @param {ArrayLike<number>} bytes */
const sized = (bytes) => Buffer.concat([Buffer.from(number(bytes.length)), Buffer.from(bytes)]);

/** Number of imported functions, and the bodies of the others. @param {Uint8Array} wasm */
function functions(wasm) {
  const module = new Reader(wasm, 8);
  let imported = 0;
  /** @type {Uint8Array[]} */
  const bodies = [];
  while (module.at < wasm.length) {
    const id = module.byte();
    const section = new Reader(module.sized());
    if (id === 2) {
      for (let left = section.number(); left > 0; left--) {
        section.sized();
        section.sized();
        // wasm-bindgen imports functions only: each is a kind and a type.
        if (section.byte() !== 0) throw new Error('an import that is no function');
        section.number();
        imported++;
      }
    } else if (id === 10) {
      for (let left = section.number(); left > 0; left--) bodies.push(section.sized());
    }
  }
  return { imported, bodies };
}

/** The different runs of bytes in `body`, as hashes. @param {Uint8Array} body */
function runs(body) {
  const found = new Set();
  for (let end = RUN_BYTES; end <= body.length; end++) {
    let hash = 0;
    for (let i = end - RUN_BYTES; i < end; i++) hash = Math.imul(hash, 0x01000193) ^ body[i];
    found.add(hash);
  }
  return found;
}

/** Next is always the function that finds most of itself in the window, by its length; runs that few
 * functions have count more. @param {Uint8Array[]} bodies @returns {number[]} */
function order(bodies) {
  const all = bodies.map(runs);
  /** Which functions have a run. @type {Map<number, number[]>} */
  const owners = new Map();
  for (const [f, own] of all.entries()) {
    for (const run of own) {
      const list = owners.get(run);
      if (list) list.push(f);
      else owners.set(run, [f]);
    }
  }
  const shared = all.map((own) => [...own].filter((run) => /** @type {number[]} */ (owners.get(run)).length > 1));
  const scale = all.map((own) => (own.size + 1) ** -0.6);
  const score = new Float64Array(bodies.length);
  /** How often a run is in the window. @type {Map<number, number>} */
  const present = new Map();
  /** @param {number} f @param {1 | -1} step */
  const slide = (f, step) => {
    for (const run of shared[f]) {
      const before = present.get(run) ?? 0;
      present.set(run, before + step);
      if (before > 0 && before + step > 0) continue;
      const list = /** @type {number[]} */ (owners.get(run));
      for (const other of list) score[other] += step / Math.sqrt(list.length);
    }
  };
  const left = new Set(bodies.keys());
  const result = [];
  for (let next = 0, bytes = 0, first = 0; left.size; ) {
    left.delete(next);
    result.push(next);
    slide(next, 1);
    for (bytes += bodies[next].length; bytes > WINDOW_BYTES && first < result.length - 1; first++) {
      slide(result[first], -1);
      bytes -= bodies[result[first]].length;
    }
    let most = -Infinity;
    for (const f of left) {
      if (score[f] * scale[f] > most) {
        most = score[f] * scale[f];
        next = f;
      }
    }
  }
  return result;
}

/** `wasm` with its functions named such that `wasm-opt --reorder-functions-by-name` puts them in order.
 * @param {Uint8Array} wasm */
export function nameByOrder(wasm) {
  const { imported, bodies } = functions(wasm);
  /** @type {[number, string][]} */
  const names = order(bodies).map((f, at) => [imported + f, String(at).padStart(6, '0')]);
  names.sort(([a], [b]) => a - b);
  const map = Buffer.concat([Buffer.from(number(names.length)),
    ...names.flatMap(([index, name]) => [Buffer.from(number(index)), sized(Buffer.from(name))])]);
  // A custom section "name", in it subsection 1: the names of functions.
  const section = Buffer.concat([sized(Buffer.from('name')), Buffer.from([1]), sized(map)]);
  return Buffer.concat([wasm, Buffer.from([0]), sized(section)]);
}
