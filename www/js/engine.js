// The loaded model of the page: which one, where it runs, and how a load is going.
import { BitNet } from '../pkg/index.js';
import { isAbort } from './errors.js';

/** @typedef {{ source: any, name: string }} Choice  what to load, and what to call it until it is */

export const DEFAULT = { source: BitNet.defaultModel, name: 'Storyteller' };

export class Engine {
  /** @type {BitNet | undefined} */
  model;
  /** What was asked for last. @type {Choice} */
  choice = DEFAULT;
  /** What `model` was made from. @type {Choice | undefined} */
  loaded;
  /** @type {import('../pkg/index.js').Progress | undefined} */
  progress;
  /** @type {AbortController | undefined} */
  #loading;

  /** `changed` is called whenever something about loading changes.
   * @param {(engine: Engine) => void} changed @param {(warning: any) => void} warn */
  constructor(changed, warn) {
    this.changed = changed;
    this.warn = warn;
  }

  get isLoading() {
    return this.#loading !== undefined;
  }

  /** Loads a model; a load under way is given up. The model in use stays until the new one is ready,
   * so that a bad file costs nothing. Resolves to the model, or to `undefined` when this load was
   * given up; rejects when it failed.
   * @param {Choice} choice @param {object} options */
  async load(choice, options) {
    this.cancel();
    this.choice = choice;
    const loading = (this.#loading = new AbortController());
    this.progress = undefined;
    this.changed(this);
    const start = () => BitNet.load(choice.source, {
      ...options,
      signal: loading.signal,
      onWarning: this.warn,
      onProgress: (progress) => {
        if (this.#loading !== loading) return;
        this.progress = progress;
        this.changed(this);
      },
    });
    try {
      let model;
      try {
        model = await start();
      } catch (error) {
        // Two models may be one too many for the memory: then the old one goes first.
        if (/** @type {any} */ (error)?.code !== 'out_of_memory' || !this.model || loading.signal.aborted) throw error;
        await this.#drop();
        model = await start();
      }
      if (loading.signal.aborted) {
        await model.dispose();
        return undefined;
      }
      await this.#drop();
      this.model = model;
      this.loaded = choice;
      return model;
    } catch (error) {
      if (isAbort(error) || loading.signal.aborted) return undefined;
      throw error;
    } finally {
      if (this.#loading === loading) {
        this.#loading = undefined;
        this.progress = undefined;
      }
      this.changed(this);
    }
  }

  /** Gives up the load under way. What was downloaded is kept. */
  cancel() {
    if (!this.#loading) return;
    this.#loading.abort();
    this.#loading = undefined;
    this.progress = undefined;
    this.changed(this);
  }

  async #drop() {
    const old = this.model;
    this.model = undefined;
    this.loaded = undefined;
    await old?.dispose();
  }
}
