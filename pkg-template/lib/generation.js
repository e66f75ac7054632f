// A text under way: pieces to iterate over, and a result at the end.

/** @typedef {import('../index.js').GenerateResult} Result */

export class Generation {
  /** @type {string[]} */
  #waiting = [];
  #text = '';
  /** @type {{ error?: unknown } | undefined} */
  #end;
  /** @type {(() => void) | undefined} */
  #wake;
  #stop = new AbortController();

  /** Starts at once, whether or not anyone iterates.
   * @param {(onEvent: (event: any) => void, stop: AbortSignal) => Promise<any>} run */
  constructor(run) {
    /** @type {number[]} */
    const tokens = [];
    /** @type {any[]} */
    const logprobs = [];
    const onEvent = (/** @type {any} */ event) => {
      if (event.type === 'prefill') {
        this.onPrefill?.(event.done, event.total);
        return;
      }
      tokens.push(...event.ids);
      this.tokenCount = tokens.length;
      logprobs.push(...(event.logprobs ?? []));
      if (!event.text) return;
      this.#text += event.text;
      this.#waiting.push(event.text);
      this.#wake?.();
    };
    /** How it ended. Rejects when it failed or was aborted. @type {Promise<Result>} */
    this.result = run(onEvent, this.#stop.signal).then(({ type, stats, ...result }) => ({
      text: this.#text, tokens, ...(logprobs.length ? { logprobs } : {}), ...result,
    }));
    this.result.then(() => this.#finish({}), (error) => this.#finish({ error }));
    /** Tokens written so far; a piece may hold several, or half a character's. */
    this.tokenCount = 0;
    /** Called while the prompt is run. @type {((done: number, total: number) => void) | undefined} */
    this.onPrefill = undefined;
  }

  /** The whole text. */
  async text() {
    return (await this.result).text;
  }

  /** Ends it after the step under way; `result` tells what there is by then. */
  stop() {
    this.#stop.abort();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        const piece = this.#waiting.shift();
        if (piece !== undefined) yield piece;
        else if (this.#end) {
          if ('error' in this.#end) throw this.#end.error;
          return;
        } else await new Promise((done) => { this.#wake = () => done(undefined); });
      }
    } finally {
      // Leaving the loop early ends the generation.
      if (!this.#end) this.stop();
    }
  }

  /** @param {{ error?: unknown }} end */
  #finish(end) {
    this.#end ??= end;
    this.#wake?.();
  }
}
