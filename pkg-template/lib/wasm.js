// The engine's WebAssembly: two builds of the same code, chosen by what this browser validates.
import { BitNetError } from './errors.js';
import { platform } from './platform.js';

// The smallest modules that use i8x16.extract_lane_s and i16x8.relaxed_dot_i8x16_i7x16_s. An engine that
// does not know an instruction refuses the whole module, so that there can be no choice inside one.
const SIMD128 = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0,
  65, 0, 253, 15, 253, 98, 11];
const RELAXED = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0,
  65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11];

/** `'relaxed'`, `'simd128'`, or `undefined` where there is no SIMD at all. */
export function wasmBuild() {
  if (WebAssembly.validate(new Uint8Array(RELAXED))) return 'relaxed';
  if (WebAssembly.validate(new Uint8Array(SIMD128))) return 'simd128';
  return undefined;
}

/** @type {Promise<any> | undefined} */
let loading;

/** The instantiated module of this thread. */
export function loadWasm() {
  loading ??= instantiate().catch((error) => {
    loading = undefined; // A failed download may be tried again.
    throw error;
  });
  return loading;
}

async function instantiate() {
  const build = wasmBuild();
  if (!build) {
    throw new BitNetError('unsupported_browser', 'this browser has no WebAssembly SIMD (2021 or newer is needed)');
  }
  try {
    // Written out twice: bundlers follow literal paths only.
    const module = build === 'relaxed'
      ? await import('../wasm/relaxed/bitnet.js')
      : await import('../wasm/simd128/bitnet.js');
    const source = await platform.wasmSource(build);
    await module.default(source && { module_or_path: source });
    return module;
  } catch (error) {
    throw new BitNetError('download_failed', `the engine could not be loaded: ${/** @type {any} */ (error).message}`, { cause: error });
  }
}
