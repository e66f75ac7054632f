// Which kernels a GPU is quickest with: measured once an adapter, browser and version, and remembered.
import { adapterFacts, withSubgroups } from './adapter.js';
import { canKeep, readNote, writeNote } from './cache.js';

/** What a note may say; anything else is as good as none. */
const KERNELS = /^(none|(subgroups|dot4|matrices)(\+(subgroups|dot4|matrices))*)$/;

/** What the option `kernels` is best set to; `undefined` where that cannot be known, which stands for all that there
 * is: without a GPU, with a software one, whose speed says nothing, where nothing can be remembered, for that would
 * be measured at every load, and when measuring fails or `signal` ends it.
 * @param {any} wasm @param {AbortSignal} [signal] @param {() => void} [onMeasure]
 * @returns {Promise<string | undefined>} */
export async function fastestKernels(wasm, signal, onMeasure) {
  try {
    const facts = await adapterFacts();
    if (!facts || facts.software || !(await canKeep())) return undefined;
    const name = `kernels ${wasm.version()} ${facts.identity}`;
    const known = await readNote(name);
    if (known !== undefined && KERNELS.test(known)) return known;
    if (signal?.aborted) return undefined;
    onMeasure?.();
    const givenUp = new Promise((resolve) => signal?.addEventListener('abort', resolve, { once: true }));
    const kernels = await withSubgroups('webgpu', (subgroups) => wasm.measureKernels(subgroups, givenUp));
    if (kernels) await writeNote(name, kernels).catch(() => {}); // It holds for this load.
    return kernels;
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError) throw error;
    return undefined;
  }
}
