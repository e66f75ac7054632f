#!/usr/bin/env node
// Draws the kernels of a decoded token against what the device's memory gives.
//
//   bitnet bench --synthetic 2b4t --backend gpu -p 256 --json | node tests/bench/roofline.mjs > gpu.svg
//
// --copy GB_S: the copy bandwidth, where the run could not tell.
// One point a kernel: bytes of weights it reads against its time, both logarithmic. The slanted line is
// the copy bandwidth, the level one the shortest dispatch measured: no kernel can be below both.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({ options: { copy: { type: 'string' } } });
const run = JSON.parse(readFileSync(0, 'utf8'));
const kernels = run.kernels.filter((k) => k.step === 'a decoded token');
// An embedding reads one row of its table.
const reading = kernels.filter((k) => k.gb_s > 0 && !k.kernel.startsWith('embed') && !k.kernel.includes('norm.'))
  .map((k) => ({ ...k, bytes: k.gb_s * k.us * 1e3 }));
if (!reading.length) {
  console.error('no kernel times: this needs a device with timestamps');
  process.exit(1);
}
const floor = Math.min(...kernels.map((k) => k.us));
const copy = run.copy_gb_s ?? Number(options.copy ?? 0);

const [width, height, left, bottom] = [640, 400, 60, 50];
const range = (values) => [
  10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** Math.ceil(Math.log10(Math.max(...values)))];
const [x0, x1] = range(reading.map((k) => k.bytes));
const [y0, y1] = range([...reading.map((k) => k.us), floor]);
const x = (v) => left + (width - left - 40) * Math.log10(v / x0) / Math.log10(x1 / x0);
const y = (v) => height - bottom - (height - bottom - 40) * Math.log10(v / y0) / Math.log10(y1 / y0);
const text = (at, up, string, more = '') => `<text x="${at}" y="${up}" ${more}>${string}</text>`;
const line = (a, b, c, d, more) => `<line x1="${a}" y1="${b}" x2="${c}" y2="${d}" ${more}/>`;

const out = [`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
  '<rect width="100%" height="100%" fill="white"/>',
  text(left, 22, `${run.model}, ${run.adapter} (${run.api}): ${run.decode_tok_s.toFixed(0)} tok/s at context ${run.context}`)];
for (let v = x0; v <= x1; v *= 10) {
  out.push(line(x(v), y(y0), x(v), y(y1), 'stroke="#ddd"'), text(x(v), height - 30, `${v / 1e6} MB`, 'text-anchor="middle"'));
}
for (let v = y0; v <= y1; v *= 10) {
  out.push(line(x(x0), y(v), x(x1), y(v), 'stroke="#ddd"'), text(left - 6, y(v) + 4, `${v} us`, 'text-anchor="end"'));
}
out.push(line(x(x0), y(floor), x(x1), y(floor), 'stroke="#888" stroke-dasharray="4"'),
  text(x(x1), y(floor) + 14, 'a dispatch with nothing to do', 'text-anchor="end" fill="#666"'));
if (copy) {
  const us = (bytes) => bytes / copy / 1e3;
  const from = Math.max(x0, y0 * copy * 1e3);
  out.push(line(x(from), y(us(from)), x(x1), y(us(x1)), 'stroke="#c33"'),
    text(x(x1), y(us(x1)) - 6, `${copy.toFixed(0)} GB/s (copy)`, 'text-anchor="end" fill="#c33"'));
}
// Neighbours' names above and below, those on the right to the left of their points.
for (const [i, k] of reading.sort((a, b) => a.bytes - b.bytes).entries()) {
  const isRight = x(k.bytes) > width * 0.7;
  out.push(`<circle cx="${x(k.bytes)}" cy="${y(k.us)}" r="4" fill="#246"/>`,
    text(x(k.bytes) + (isRight ? -7 : 7), y(k.us) + (i % 2 ? 18 : -8), `${k.op} ${k.us.toFixed(1)} us`,
      `text-anchor="${isRight ? 'end' : 'start'}"`));
}
console.log([...out, '</svg>'].join('\n'));
