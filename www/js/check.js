// The check page: every kernel against its plain twin, in this browser.
import { BitNet } from '../pkg/index.js';
import { byId, download, el } from './dom.js';
import { explain, isAbort } from './errors.js';

const body = byId('rows').tBodies[0];
/** @type {AbortController | undefined} */
let running;
/** @type {any} */
let report;

async function run() {
  const device = byId('device').value;
  const stop = (running = new AbortController());
  const started = performance.now();
  report = { device, userAgent: navigator.userAgent, startedAt: new Date().toISOString(), results: [] };
  body.replaceChildren();
  byId('rows').hidden = false;
  byId('error').hidden = true;
  byId('status').className = 'status';
  setBusy(true);
  // Rows come faster than a reader can read: they are put on the page once a frame.
  /** @type {Node[]} */
  let waiting = [];
  const flush = () => {
    if (!waiting.length) return;
    body.append(...waiting);
    waiting = [];
    byId('status').textContent = `${report.results.length} checked`;
  };
  try {
    const all = await BitNet.check({
      device, signal: stop.signal,
      onResult: (result) => {
        report.results.push(result);
        waiting.push(row(result));
        if (waiting.length === 1) requestAnimationFrame(flush);
      },
    });
    report.results = all;
    report.ms = Math.round(performance.now() - started);
    const failed = all.filter((r) => !r.ok).length;
    body.replaceChildren(...[...all].sort((a, b) => Number(a.ok) - Number(b.ok)).map(row));
    waiting = [];
    byId('status').textContent = failed ? `${failed} of ${all.length} are wrong here. The CPU is used in place of such a device.`
      : `All ${all.length} are right.`;
    byId('status').classList.add(failed ? 'bad' : 'good');
  } catch (error) {
    flush();
    if (isAbort(error)) byId('status').textContent = `Stopped after ${report.results.length}.`;
    else {
      const { title, advice, detail } = explain(error);
      byId('error').hidden = false;
      byId('error').textContent = `${title}. ${advice} (${detail})`;
      byId('status').textContent = '';
    }
  } finally {
    running = undefined;
    setBusy(false);
    byId('download').disabled = report.results.length === 0;
  }
}

/** @param {import('../pkg/index.js').KernelCheck} result */
function row({ kernel, variant, ok, error }) {
  return el('tr', {},
    el('th', { scope: 'row', textContent: kernel }),
    el('td', {}, el('span', { className: 'variant', textContent: variant })),
    el('td', {}, el('span', { className: ok ? 'pass' : 'fail', textContent: ok ? 'right' : error ?? 'wrong' })));
}

/** @param {boolean} isBusy */
function setBusy(isBusy) {
  byId('start').hidden = isBusy;
  byId('stop').hidden = !isBusy;
  byId('device').disabled = isBusy;
  if (isBusy) byId('status').textContent = 'Starting';
}

byId('controls').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  if (!running) run();
});
byId('stop').addEventListener('click', () => running?.abort());
byId('download').addEventListener('click', () => download(`bitnet-check-${report.device}.json`, report));
if (!/** @type {any} */ (navigator).gpu) byId('device').value = 'cpu';
