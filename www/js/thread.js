// The thread between the text and the text field. It fills while a model loads, and while text is
// written each token pulls it up as high as the writing is fast.
import { byId, svg } from './dom.js';

/** Time that the speed is taken over: long enough to be calm, short enough to be live. A GPU brings
 * tokens in bursts, so it must hold several of those. */
const WINDOW_MS = 1000;
const HEIGHT = 34;

export class Thread {
  /** How many tokens there were when. @type {{ at: number, count: number }[]} */
  #marks = [];
  #svg = byId('thread-plot');
  #line = svg('path', { class: 'line' });
  #area = svg('path', { class: 'area' });
  #bar = byId('load-bar');
  /** The speed at each mark, by tokens. @type {[number, number][]} */
  #rates = [];
  /** Tokens a second, over the last ones. */
  rate = 0;

  constructor() {
    this.#svg.append(this.#area, this.#line);
  }

  /** Begins a text. */
  begin() {
    this.#marks = [];
    this.#rates = [];
    this.rate = 0;
    this.draw();
  }

  /** There are `count` tokens now. @param {number} count */
  mark(count) {
    const at = performance.now();
    this.#marks.push({ at, count });
    while (this.#marks.length > 2 && at - this.#marks[1].at > WINDOW_MS) this.#marks.shift();
    const [first] = this.#marks;
    // From the first token on: the time before it was the prompt's.
    if (at === first.at) return;
    this.rate = (count - first.count) / (at - first.at) * 1000;
    if (this.#marks.length > 2) this.#rates.push([count, this.rate]);
  }

  draw() {
    const rates = this.#rates;
    const width = 1000;
    this.#svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    if (rates.length < 2) {
      this.#line.setAttribute('d', '');
      this.#area.setAttribute('d', '');
      return;
    }
    const top = Math.max(...rates.map(([, rate]) => rate)) * 1.15;
    const [[first], [last]] = [rates[0], rates[rates.length - 1]];
    const step = width / Math.max(last - first, 160);
    const points = rates.map(([count, rate]) =>
      `${((count - first) * step).toFixed(1)} ${(HEIGHT - 1 - rate / top * (HEIGHT - 4)).toFixed(1)}`);
    this.#line.setAttribute('d', `M${points.join('L')}`);
    this.#area.setAttribute('d', `M0 ${HEIGHT}L${points.join('L')}L${((last - first) * step).toFixed(1)} ${HEIGHT}Z`);
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
