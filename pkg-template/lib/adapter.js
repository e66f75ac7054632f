// Whether the GPU of this browser is one: a software adapter is slower than our own CPU kernels.
import { platform } from './platform.js';

/** Why `device: 'auto'` must not use WebGPU here; `undefined`: it may. */
export async function whyNotWebGpu() {
  if (platform.gpuTrouble) return platform.gpuTrouble;
  const { gpu } = /** @type {any} */ (globalThis.navigator ?? {});
  if (!gpu) return 'there is no WebGPU here (navigator.gpu is missing)';
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  if (!adapter) return 'WebGPU has no adapter here';
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info ?? {};
  const name = [vendor, architecture, device, description].filter(Boolean).join(' ');
  const software = isFallbackAdapter || adapter.isFallbackAdapter
    || /swiftshader|llvmpipe|lavapipe|basic render/i.test(name);
  return software ? `the WebGPU adapter is a software one (${name})` : undefined;
}
