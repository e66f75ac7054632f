// The GPU of this browser: what it tells of itself, and what wgpu does not ask it for.
import { platform } from './platform.js';

/** @returns {Promise<any>} */
async function requestAdapter() {
  if (platform.gpuTrouble) return null;
  return globalThis.navigator?.gpu?.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
}

/** What the adapter is called, whether it is a program, and what tells it from others, which goes for the browser, too:
 * that compiles the kernels. `undefined` where there is none. */
export async function adapterFacts() {
  const adapter = await requestAdapter();
  if (!adapter) return undefined;
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info ?? {};
  const words = [vendor, architecture, device, description];
  const name = words.filter(Boolean).join(' ');
  const software = isFallbackAdapter || adapter.isFallbackAdapter
    || /swiftshader|llvmpipe|lavapipe|basic render/i.test(name);
  return { name, software, identity: JSON.stringify([...words, navigator.userAgent]) };
}

/** Why `device: 'auto'` must not use WebGPU here; `undefined`: it may. A software adapter is slower than our
 * own CPU kernels. */
export async function whyNotWebGpu() {
  if (platform.gpuTrouble) return platform.gpuTrouble;
  if (!globalThis.navigator?.gpu) return 'there is no WebGPU here (navigator.gpu is missing)';
  const facts = await adapterFacts();
  if (!facts) return 'WebGPU has no adapter here';
  return facts.software ? `the WebGPU adapter is a software one (${facts.name})` : undefined;
}

/** Calls of `withSubgroups` under way, and the method that they stand in for. */
let calls = 0;
/** @type {any} */
let requestDevice;

/**
 * What `make` resolves to. Devices made meanwhile may use subgroups if their adapter has them, and `make` is
 * told whether: wgpu 30 asks a browser for the features in its table, where they are missing.
 * @template T
 * @param {string | undefined} device
 * @param {(subgroups: boolean) => Promise<T>} make
 */
export async function withSubgroups(device, make) {
  const prototype = /** @type {any} */ (globalThis).GPUAdapter?.prototype;
  if (device === 'cpu' || !prototype || !(await requestAdapter())?.features.has('subgroups')) return make(false);
  if (calls++ === 0) {
    const original = requestDevice = prototype.requestDevice;
    prototype.requestDevice = function (/** @type {any} */ descriptor) {
      const subgroups = this.features.has('subgroups') ? ['subgroups'] : [];
      return original.call(this, {
        ...descriptor,
        requiredFeatures: [...descriptor?.requiredFeatures ?? [], ...subgroups],
      });
    };
  }
  try {
    return await make(true);
  } finally {
    if (--calls === 0) prototype.requestDevice = requestDevice;
  }
}
