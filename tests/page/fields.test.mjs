// The rules of the settings and of what counts as a model's address, without a browser.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FIELDS, check, defaults, options, restore } from '../../www/js/fields.js';
import { ticks } from '../../www/js/plot.js';
import { formatBytes, formatSeconds } from '../../www/js/dom.js';

test('every field takes its own default, and its limits', () => {
  for (const [name, field] of Object.entries(FIELDS)) {
    assert.deepEqual(check(name, field.value ?? ''), { value: field.value }, name);
    if (field.choices) {
      assert.ok(check(name, 'nonsense').error);
      continue;
    }
    assert.equal(check(name, String(field.max)).value, field.max, name);
    assert.equal(check(name, String(field.min)).error === undefined, !field.above, name);
    for (const bad of ['x', '1e999', 'NaN', '-Infinity', String(field.max + 1), String(field.min - 1)]) assert.ok(check(name, bad).error, `${name} ${bad}`);
    assert.equal(check(name, '0.5').error === undefined, !field.integer && field.max >= 0.5 && field.min <= 0.5, name);
  }
});

test('stored settings: what is valid is taken, the rest is default', () => {
  assert.deepEqual(restore({}), defaults());
  const values = restore({ temperature: 1.5, topK: -3, device: 'toaster', seed: {}, __proto__: { minP: 1 }, unknown: 1, maxTokens: '33' });
  assert.deepEqual(values, { ...defaults(), temperature: 1.5, maxTokens: 33 });
  assert.deepEqual(options(values, 'device'), { device: 'auto', kvCache: 'f16' });
  assert.equal('seed' in options(values, 'sampling'), false, 'left to the package');
});

test('numbers for people', () => {
  assert.deepEqual([0, 999, 1000, 7_100_000, 999_600_000, 5e12].map(formatBytes), ['0 bytes', '999 bytes', '1.0 kB', '7.1 MB', '1.0 GB', '5000 GB']);
  assert.deepEqual([0.2, 1, 89, 90, 3600].map(formatSeconds), ['a moment', '1 s', '89 s', '2 min', '60 min']);
  assert.deepEqual(ticks(41.5), [0, 20, 40, 60]);
  assert.deepEqual(ticks(0), [0, 1]);
  assert.deepEqual(ticks(0.3), [0, 0.1, 0.2, 0.3]);
  for (let max = 1e-6; max < 1e9; max *= 1.7) {
    const all = ticks(max);
    assert.ok(all.at(-1) >= max * (1 - 1e-9) && all.length <= 6 && all.at(-2) < max, String(max));
  }
});
