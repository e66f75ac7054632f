// Line plots as inline SVG: drawn for the width there is, coloured by the style sheet, redrawn when
// the width changes. Lines differ in dash and marker too, not only in colour.
import { svg } from './dom.js';

/**
 * @typedef {object} Series
 * @property {string} name
 * @property {[number, number][]} points
 *
 * @typedef {object} Plot
 * @property {string} title  read out by screen readers
 * @property {Series[]} series
 * @property {string} x  label of the axis
 * @property {string} y
 * @property {number} [height]
 * @property {boolean} [markers]
 * @property {number[]} [xTicks]
 */

/** @type {WeakMap<Element, Plot>} */
const shown = new WeakMap();
const resized = typeof ResizeObserver === 'undefined' ? undefined : new ResizeObserver((entries) => {
  for (const { target } of entries) draw(/** @type {HTMLElement} */ (target));
});

/** Draws `plot` into `host`, in place of what was there. @param {HTMLElement} host @param {Plot} plot */
export function linePlot(host, plot) {
  const isNew = !shown.has(host);
  shown.set(host, plot);
  draw(host);
  if (isNew) resized?.observe(host);
}

/** Round numbers from 0 to at least `max`, about `count` of them. @param {number} max */
export function ticks(max, count = 4) {
  if (!(max > 0)) return [0, 1];
  const rough = max / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const n = Math.ceil(max / step - 1e-9);
  return Array.from({ length: n + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

/** @param {HTMLElement} host */
function draw(host) {
  const plot = shown.get(host);
  const width = Math.round(host.clientWidth);
  if (!plot || width === 0) return; // Not visible; the observer calls again when it is.
  const { series, height = 180, title } = plot;
  const all = series.flatMap((s) => s.points);
  const yTicks = ticks(Math.max(...all.map(([, y]) => y), 0));
  const xTicks = plot.xTicks ?? ticks(Math.max(...all.map(([x]) => x), 0));
  const [xMax, yMax] = [xTicks.at(-1), yTicks.at(-1)];
  const left = 12 + 7 * Math.max(...yTicks.map((t) => compact.format(t).length));
  const [right, top, bottom] = [14, 26, 40];
  const X = (/** @type {number} */ x) => left + x / xMax * (width - left - right);
  const Y = (/** @type {number} */ y) => height - bottom - y / yMax * (height - top - bottom);
  const text = (/** @type {string} */ content, x, y, anchor = 'middle', kind = 'tick') =>
    svg('text', { x, y, 'text-anchor': anchor, class: kind }, content);

  const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, class: 'plot', role: 'img' },
    svg('title', {}, title));
  for (const t of yTicks) {
    root.append(svg('path', { d: `M${left} ${Y(t)}H${width - right}`, class: t === 0 ? 'axis' : 'grid' }),
      text(compact.format(t), left - 8, Y(t) + 4, 'end'));
  }
  for (const t of xTicks) root.append(text(compact.format(t), X(t), height - bottom + 18));
  root.append(text(plot.y, 0, 13, 'start', 'label'), text(plot.x, width - right, height - 5, 'end', 'label'));
  series.forEach(({ points }, i) => {
    if (!points.length) return;
    const d = points.map(([x, y], n) => `${n ? 'L' : 'M'}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join('');
    root.append(svg('path', { d, class: `line series-${i + 1}` }));
    if (plot.markers) for (const [x, y] of points) root.append(marker(i, X(x), Y(y)));
  });
  const legend = series.filter((s) => s.points.length);
  if (legend.length > 1) legend.forEach((s, i) => {
    const x = width - right - (legend.length - i) * 92;
    root.append(svg('path', { d: `M${x} 9h20`, class: `line series-${series.indexOf(s) + 1}` }),
      marker(series.indexOf(s), x + 10, 9), text(s.name, x + 27, 13, 'start', 'label'));
  });
  host.replaceChildren(root);
}

/** @param {number} i @param {number} x @param {number} y */
function marker(i, x, y) {
  const kind = `dot series-${i + 1}`;
  return i === 0 ? svg('circle', { cx: x, cy: y, r: 3.5, class: kind })
    : svg('rect', { x: x - 3.2, y: y - 3.2, width: 6.4, height: 6.4, class: kind });
}
