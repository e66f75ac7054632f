// The bench page: prefill and decode speed for each device and prompt length.
import { BitNet } from '../pkg/index.js';
import { byId, download, el, formatBytes } from './dom.js';
import { DEFAULT } from './engine.js';
import { explain, isAbort } from './errors.js';
import { choiceOf } from './model-picker.js';
import { linePlot } from './plot.js';

const LENGTHS = [16, 64, 128, 256, 512, 1024, 2048];
/** Enough to be a steady speed, few enough that a slow device gets through. */
const NEW_TOKENS = 32;
const NAMES = { webgpu: 'WebGPU', cpu: 'CPU' };

/** @typedef {{ device: 'webgpu' | 'cpu', promptTokens: number, prefillTokensPerSecond: number,
 *   firstTokenMs: number, decodeTokensPerSecond: number, spread: number, runs: object[] }} Row */

/** @type {AbortController | undefined} */
let running;
/** @type {any} */
let report;

/** @param {import('./engine.js').Choice} choice @param {('webgpu' | 'cpu')[]} devices @param {number} runs */
async function measure(choice, devices, runs) {
  const stop = (running = new AbortController());
  report = {
    startedAt: new Date().toISOString(), userAgent: navigator.userAgent,
    hardwareConcurrency: navigator.hardwareConcurrency, crossOriginIsolated,
    model: choice.name, newTokens: NEW_TOKENS, devices: [], rows: [], kernels: [],
  };
  setBusy(true);
  show();
  const failures = [];
  try {
    for (const device of devices) {
      try {
        await measureDevice(choice, device, runs, stop.signal);
      } catch (error) {
        if (isAbort(error)) throw error;
        // The other device can still be measured.
        const { title, detail } = explain(error);
        failures.push(`${NAMES[device]}: ${title} (${detail})`);
      }
    }
    byId('status').textContent = failures.length ? '' : 'Done.';
  } catch (error) {
    byId('status').textContent = 'Stopped.';
  } finally {
    running = undefined;
    setBusy(false);
    showError(failures.join(' · '));
  }
}

/** @param {import('./engine.js').Choice} choice @param {'webgpu' | 'cpu'} device @param {number} runs
 * @param {AbortSignal} signal */
async function measureDevice(choice, device, runs, signal) {
  say(`${NAMES[device]}: loading`);
  const model = await BitNet.load(choice.source, { device, signal });
  try {
    const { adapter, api, loadMs, weightBytes, contextLength, wasmBuild, name, vocabSize } = model.info;
    report.model = name || report.model;
    report.devices.push({ device, adapter, api, loadMs, weightBytes, contextLength, wasmBuild,
      deviceBytes: model.stats.deviceBytes, wasmBytes: model.stats.wasmBytes });
    show();
    const once = async (/** @type {number} */ length) => {
      await model.reset(); // Else the prompt would be found in the KV cache.
      const options = { maxTokens: NEW_TOKENS, temperature: 0, ignoreEos: true, signal };
      return (await model.generate(ids(length, vocabSize), options).result).timings;
    };
    const lengths = LENGTHS.filter((n) => n + NEW_TOKENS <= contextLength);
    await once(lengths[0]); // The first run pays for compiling.
    for (const length of lengths) {
      const timings = [];
      for (let run = 1; run <= runs; run++) {
        say(`${NAMES[device]}: ${length} tokens, run ${run} of ${runs}`);
        timings.push(await once(length));
      }
      report.rows.push(row(device, length, timings));
      show();
    }
    if (device === 'webgpu') {
      say(`${NAMES[device]}: kernel by kernel`);
      report.kernels = await model.profile({ signal });
      show();
    }
  } finally {
    await model.dispose();
  }
}

/** The same ids for everybody; speed does not depend on which. @param {number} length @param {number} vocabSize */
function ids(length, vocabSize) {
  let state = 1;
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return 4 + state % (vocabSize - 4); // The first few are often special tokens.
  });
}

/** @param {'webgpu' | 'cpu'} device @param {number} promptTokens @param {any[]} runs @returns {Row} */
function row(device, promptTokens, runs) {
  const of = (/** @type {string} */ name) => runs.map((t) => t[name]).sort((a, b) => a - b);
  const median = (/** @type {number[]} */ list) => list[Math.floor((list.length - 1) / 2)];
  const decode = of('decodeTokensPerSecond');
  return {
    device, promptTokens, runs,
    prefillTokensPerSecond: median(of('prefillTokensPerSecond')),
    firstTokenMs: median(of('firstTokenMs')),
    decodeTokensPerSecond: median(decode),
    spread: (decode[decode.length - 1] - decode[0]) / median(decode),
  };
}

function show() {
  const { rows, devices, kernels } = report;
  const line = (/** @type {keyof Row} */ value) => ['webgpu', 'cpu'].map((device) => ({
    name: NAMES[device], points: rows.filter((r) => r.device === device).map((r) => [r.promptTokens, r[value]]),
  }));
  const xTicks = [0, ...new Set(rows.map((r) => r.promptTokens).filter((n) => n >= Math.max(...rows.map((r) => r.promptTokens)) / 4))].sort((a, b) => a - b);
  for (const [host, value, what] of [['decode-plot', 'decodeTokensPerSecond', 'written'], ['prefill-plot', 'prefillTokensPerSecond', 'read']]) {
    linePlot(byId(host), {
      title: `Tokens ${what} in a second, by the length of the prompt; the figures are in the table below`,
      series: line(/** @type {any} */ (value)), x: 'tokens in the prompt', y: 'tokens a second',
      height: 250, markers: true, xTicks: rows.length ? xTicks : undefined,
    });
  }
  fill('rows', rows.map((/** @type {Row} */ r) => [NAMES[r.device], r.promptTokens, r.prefillTokensPerSecond.toFixed(1),
    r.firstTokenMs.toFixed(0), r.decodeTokensPerSecond.toFixed(1), `${(r.spread * 100).toFixed(0)} %`]));
  byId('kernel-section').hidden = kernels.length === 0;
  const total = kernels.reduce((/** @type {number} */ sum, /** @type {any} */ k) => sum + k.ms, 0) || 1;
  fill('kernels', [...kernels].sort((a, b) => b.ms - a.ms).map(({ op, kernel, dispatches, ms, weightBytes }) => [op, kernel,
    dispatches, ms.toFixed(3), `${(100 * ms / total).toFixed(0)} %`, weightBytes && ms ? (weightBytes / ms / 1e6).toFixed(1) : '–']));
  fill('loads', devices.map((d) => [NAMES[d.device], d.adapter || '–', d.api || '–', d.loadMs.toFixed(0),
    formatBytes(d.weightBytes), formatBytes(d.deviceBytes), formatBytes(d.wasmBytes)]));
  byId('download').disabled = rows.length === 0;
}

/** @param {string} id @param {(string | number)[][]} rows */
function fill(id, rows) {
  byId(id).tBodies[0].replaceChildren(...rows.map(([first, ...rest]) => el('tr', {},
    el('th', { scope: 'row', textContent: first }), ...rest.map((cell) => el('td', { textContent: cell })))));
}

/** @param {string} text */
const say = (text) => { byId('status').textContent = text; };

/** @param {string} text */
function showError(text) {
  byId('model-error').hidden = !text;
  byId('model-error').textContent = text;
}

/** @param {boolean} isBusy */
function setBusy(isBusy) {
  byId('start').hidden = isBusy;
  byId('stop').hidden = !isBusy;
  for (const input of byId('controls').querySelectorAll('input, select')) input.disabled = isBusy;
}

byId('controls').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  if (running) return;
  const typed = byId('model').value.trim();
  const { choice, error } = typed ? choiceOf(typed) : { choice: DEFAULT };
  const devices = [...document.querySelectorAll('input[name="device"]:checked')].map((input) => /** @type {any} */ (input).value);
  showError(error ?? (devices.length ? '' : 'Choose a device.'));
  if (choice && devices.length) measure(choice, devices, Number(byId('runs').value));
});
byId('stop').addEventListener('click', () => running?.abort());
byId('download').addEventListener('click', () => download('bitnet-bench.json', report));
if (!/** @type {any} */ (navigator).gpu) {
  const webgpu = /** @type {any} */ (document.querySelector('input[value="webgpu"]'));
  webgpu.checked = false;
  webgpu.disabled = true;
  webgpu.parentElement.title = 'This browser has no WebGPU';
}
report = { rows: [], devices: [], kernels: [] };
show();
