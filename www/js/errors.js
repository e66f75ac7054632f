// What to tell people about an error, and what they can do next.

/** @typedef {'retry' | 'cpu' | 'default' | 'settings' | 'new' | 'reload'} Action */

/** For each code of the package: what happened, what helps, and the buttons that do it.
 * @type {Record<string, { title: string, advice: string, actions: Action[] }>} */
const KNOWN = {
  invalid_argument: { title: 'That cannot be used', advice: '', actions: ['settings'] },
  download_failed: {
    title: 'The model could not be downloaded',
    advice: 'What has arrived is kept: trying again goes on from there. Another site must allow downloads from this page (CORS).',
    actions: ['retry', 'default'],
  },
  corrupt_file: {
    title: 'This is not a whole model file',
    advice: 'It is damaged, cut off, or of another kind. Download it once more, or choose another.',
    actions: ['default', 'settings'],
  },
  unsupported_model: {
    title: 'This kind of model is not supported',
    advice: 'Supported are ternary and 1-bit models: BitNet, Llama and Qwen3 shapes, as GGUF or safetensors.',
    actions: ['default', 'settings'],
  },
  tokenizer: {
    title: 'The model’s tokenizer cannot be used',
    advice: 'A safetensors model needs its tokenizer.json. For a model without a chat template, write a story instead.',
    actions: ['default', 'settings'],
  },
  webgpu_unavailable: {
    title: 'There is no usable WebGPU here',
    advice: 'A recent Chrome, Edge, Safari or Firefox with a graphics driver has it. The CPU works everywhere.',
    actions: ['cpu'],
  },
  device_lost: {
    title: 'The graphics device was lost',
    advice: 'Its driver was reset or the computer slept. The text is still here; load the model again to go on.',
    actions: ['retry', 'cpu'],
  },
  out_of_memory: {
    title: 'There is not enough memory',
    advice: 'Close other tabs, choose a smaller context or q8 for keys and values, or take a smaller model.',
    actions: ['settings', 'default'],
  },
  context_full: {
    title: 'The text is longer than the context',
    advice: 'Begin a new page, or allow a longer context in the settings.',
    actions: ['new', 'settings'],
  },
  quota_exceeded: {
    title: 'The browser grants no more storage',
    advice: 'Delete models that are kept on this device, in the settings.',
    actions: ['settings'],
  },
  storage_failed: {
    title: 'The browser’s storage failed',
    advice: 'The model works, but may have to be downloaded again next time.',
    actions: [],
  },
  cache_busy: {
    title: 'This file is being downloaded right now',
    advice: 'Cancel that download, perhaps in another tab, and delete it then.',
    actions: [],
  },
  unsupported_browser: {
    title: 'This browser is too old',
    advice: 'It lacks WebAssembly SIMD, which every browser since 2023 has.',
    actions: [],
  },
  internal: {
    title: 'Something in this page broke',
    advice: 'That is a bug of ours. Load the model again to go on.',
    actions: ['retry', 'reload'],
  },
};

/** @param {any} error */
export const isAbort = (error) => error?.name === 'AbortError' || error?.name === 'TimeoutError';

/** What to show for any thrown value. @param {any} error */
export function explain(error) {
  const code = typeof error?.code === 'string' && Object.hasOwn(KNOWN, error.code) ? error.code : 'internal';
  return { code, detail: String(error?.message ?? error), ...KNOWN[code] };
}

export const CODES = Object.keys(KNOWN);
