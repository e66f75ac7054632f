// The figures of the panel: speed and memory over time, and what the last text took.
import { byId, el, formatBytes, formatMs, formatRate } from './dom.js';
import { linePlot } from './plot.js';

/** Samples kept; older ones go. */
const MOST = 600;

export class Figures {
  #started = performance.now();
  /** @type {[number, number][]} */
  #speed = [];
  /** @type {[number, number][]} */
  #memory = [];
  /** @type {import('../pkg/index.js').GenerateResult | undefined} */
  #last;
  #speedHost = el('div');
  #memoryHost = el('div');
  #table = el('dl', { className: 'facts' });
  #bar = el('div', { className: 'memory' });

  constructor() {
    byId('figures').append(this.#speedHost, this.#memoryHost, this.#bar, this.#table);
  }

  /** A model was loaded: other figures now. */
  begin() {
    this.#started = performance.now();
    this.#speed = [];
    this.#memory = [];
    this.#last = undefined;
  }

  /** @param {import('../pkg/index.js').BitNet | undefined} model @param {number} [rate] tokens a second, while writing */
  sample(model, rate) {
    if (!model) return;
    const at = (performance.now() - this.#started) / 1000;
    if (rate !== undefined) keep(this.#speed, [at, rate]);
    keep(this.#memory, [at, segments(model).reduce((sum, [, bytes]) => sum + bytes, 0) / 1e6]);
  }

  /** @param {import('../pkg/index.js').GenerateResult} result */
  finished(result) {
    this.#last = result;
  }

  /** @param {import('../pkg/index.js').BitNet | undefined} model */
  show(model) {
    byId('figures').hidden = !model;
    if (!model) return;
    linePlot(this.#speedHost, {
      title: `Speed while writing, in tokens a second; now ${formatRate(this.#speed.at(-1)?.[1] ?? 0)}`,
      series: [{ name: 'speed', points: this.#speed }], x: 'seconds', y: 'tokens a second', height: 150,
    });
    linePlot(this.#memoryHost, {
      title: `Memory of the model, in megabytes; now ${Math.round(this.#memory.at(-1)?.[1] ?? 0)}`,
      series: [{ name: 'memory', points: this.#memory }], x: 'seconds', y: 'megabytes', height: 130,
    });
    const parts = segments(model);
    const total = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
    const bar = el('div', { className: 'bar', ariaHidden: 'true' });
    for (const [, bytes] of parts) {
      const part = el('span');
      part.style.flex = String(bytes / total);
      bar.append(part);
    }
    this.#bar.replaceChildren(el('p', { textContent: `Memory: ${formatBytes(total)}` }), bar,
      el('ul', {}, ...parts.map(([name, bytes]) => el('li', { textContent: `${name} ${formatBytes(bytes)}` }))));
    this.#table.replaceChildren(...(this.#last ? rows(this.#last) : [])
      .flatMap(([name, value]) => [el('dt', { textContent: name }), el('dd', { textContent: value })]));
  }
}

/** @param {[number, number][]} list @param {[number, number]} point */
function keep(list, point) {
  list.push(point);
  if (list.length > MOST) list.shift();
}

/** What takes memory: on the CPU everything lies in WebAssembly, else most lies on the device.
 * @param {import('../pkg/index.js').BitNet} model @returns {[string, number][]} */
function segments({ info, stats }) {
  const rest = Math.max(0, stats.deviceBytes - info.weightBytes - info.kvBytes);
  const engine = info.device === 'cpu' ? Math.max(0, stats.wasmBytes - stats.deviceBytes) : stats.wasmBytes;
  return [['weights', info.weightBytes], ['keys and values', info.kvBytes], ['buffers', rest], ['WebAssembly', engine]];
}

/** @param {import('../pkg/index.js').GenerateResult} result @returns {[string, string][]} */
function rows({ usage, timings, seed }) {
  return [
    ['Prompt', `${usage.promptTokens} tokens, ${usage.cachedTokens} of them remembered`],
    ['Reading it', `${formatMs(timings.prefillMs)}, ${formatRate(timings.prefillTokensPerSecond)} tokens a second`],
    ['First token', `after ${formatMs(timings.firstTokenMs)}`],
    ['Writing', `${usage.completionTokens} tokens, ${formatRate(timings.decodeTokensPerSecond)} a second`],
    ['Seed', String(seed)],
  ];
}

/** The line below a text. @param {import('../pkg/index.js').GenerateResult} result */
export function summary({ usage, timings, finishReason }) {
  const parts = [...(finishReason === 'cancelled' ? ['stopped'] : []), `${usage.completionTokens} tokens`];
  if (timings.decodeTokensPerSecond > 0) parts.push(`${formatRate(timings.decodeTokensPerSecond)} tok/s`);
  if (usage.completionTokens) parts.push(`first after ${formatMs(timings.firstTokenMs)}`);
  if (usage.cachedTokens > 0) parts.push(`${usage.cachedTokens} of ${usage.promptTokens} remembered`);
  if (finishReason === 'context_full') parts.push('the page is full');
  return parts.join(' · ');
}
