// The thread between the text and the text field. It fills while a model loads, and while text is
// written each token pulls it up as high as the writing is fast.
import { byId, svg } from './dom.js';

/** Tokens that the speed is taken over: enough to be calm, few enough to be live. */
const WINDOW = 12;
const HEIGHT = 34;

export class Thread {
  /** When each token came, in ms. @type {number[]} */
  #times = [];
  #svg = byId('thread-plot');
  #line = svg('path', { class: 'line' });
  #area = svg('path', { class: 'area' });
  #bar = byId('load-bar');
  /** Tokens a second at each token. @type {number[]} */
  rates = [];

  constructor() {
    this.#svg.append(this.#area, this.#line);
  }

  /** Begins a text. */
  begin() {
    this.#times = [performance.now()];
    this.rates = [];
    this.draw();
  }

  /** `tokens` more have come. @param {number} tokens */
  add(tokens) {
    const now = performance.now();
    for (let i = 0; i < tokens; i++) this.#times.push(now);
    this.rates.push(this.rate);
  }

  /** Tokens a second, over the last ones. */
  get rate() {
    const last = this.#times.slice(-WINDOW - 1);
    const ms = last[last.length - 1] - last[0];
    return ms > 0 ? (last.length - 1) / ms * 1000 : 0;
  }

  draw() {
    // The first token waits for the prompt; its speed says nothing about writing.
    const rates = this.rates.slice(2);
    const width = 1000;
    this.#svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    if (rates.length < 2) {
      this.#line.setAttribute('d', '');
      this.#area.setAttribute('d', '');
      return;
    }
    const top = Math.max(...rates) * 1.15;
    const step = width / Math.max(rates.length - 1, 160);
    const points = rates.map((r, i) => `${(i * step).toFixed(1)} ${(HEIGHT - 1 - r / top * (HEIGHT - 4)).toFixed(1)}`);
    this.#line.setAttribute('d', `M${points.join('L')}`);
    this.#area.setAttribute('d', `M0 ${HEIGHT}L${points.join('L')}L${((rates.length - 1) * step).toFixed(1)} ${HEIGHT}Z`);
  }

  /** How far a load has come, 0 to 1; `undefined` when none is under way, `null` when unknown.
   * @param {number | null | undefined} share @param {string} [text] */
  load(share, text) {
    this.#bar.hidden = share === undefined;
    if (share === undefined) return;
    this.#bar.style.transform = `scaleX(${share ?? 0})`;
    if (share === null) this.#bar.removeAttribute('aria-valuenow');
    else this.#bar.setAttribute('aria-valuenow', String(Math.round(share * 100)));
    this.#bar.setAttribute('aria-valuetext', text ?? '');
  }
}
