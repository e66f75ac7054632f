// The settings: what each one means, what it may be, and what it is when nobody has chosen.
// No document in here, so that it can be tested by itself.

/**
 * @typedef {object} Field
 * @property {string} label
 * @property {string} help
 * @property {'device' | 'sampling'} group  where it is shown; device settings load the model again
 * @property {any} value  when nobody has chosen; `undefined`: left to the package
 * @property {[string, string][]} [choices]  value and label
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {boolean} [integer]
 * @property {boolean} [above]  must be larger than `min`
 * @property {string} [placeholder]
 */

/** Names are those of the package's options. @type {Record<string, Field>} */
export const FIELDS = {
  device: {
    group: 'device', label: 'Runs on', value: 'auto',
    choices: [['auto', 'Automatic'], ['webgpu', 'WebGPU'], ['cpu', 'CPU']],
    help: 'Automatic takes the graphics processor if it computes correctly.',
  },
  contextLength: {
    group: 'device', label: 'Context, in tokens', value: undefined, integer: true, min: 16, max: 1_048_576, step: 1, placeholder: 'model’s',
    help: 'How much text the model can look back on. More takes more memory.',
  },
  kvCache: {
    group: 'device', label: 'Keys and values', value: 'f16',
    choices: [['f16', 'f16'], ['q8', 'q8'], ['f32', 'f32']],
    help: 'How what was read is remembered: q8 takes half the memory of f16.',
  },
  temperature: {
    group: 'sampling', label: 'Temperature', value: 0.7, min: 0, max: 5, step: 0.05,
    help: 'Higher is more surprising; 0 always takes the likeliest word.',
  },
  topK: {
    group: 'sampling', label: 'Top-k', value: 40, integer: true, min: 0, max: 100_000, step: 1,
    help: 'Chooses among this many likeliest tokens; 0 is all.',
  },
  topP: {
    group: 'sampling', label: 'Top-p', value: 1, min: 0, above: true, max: 1, step: 0.01,
    help: 'Chooses among the likeliest that share this much probability; 1 is all.',
  },
  minP: {
    group: 'sampling', label: 'Min-p', value: 0, min: 0, max: 1, step: 0.01,
    help: 'Leaves out tokens far less likely than the likeliest; 0 is off.',
  },
  repetitionPenalty: {
    group: 'sampling', label: 'Repetition penalty', value: 1, min: 0, above: true, max: 10, step: 0.01,
    help: 'Above 1 repeats less; 1 is off.',
  },
  presencePenalty: {
    group: 'sampling', label: 'Presence penalty', value: 0, min: -10, max: 10, step: 0.1,
    help: 'Taken off what has occurred already; 0 is off.',
  },
  frequencyPenalty: {
    group: 'sampling', label: 'Frequency penalty', value: 0, min: -10, max: 10, step: 0.1,
    help: 'Taken off for each time it has occurred; 0 is off.',
  },
  seed: {
    group: 'sampling', label: 'Seed', value: undefined, integer: true, min: 0, max: 4_294_967_295, step: 1, placeholder: 'random',
    help: 'The same seed tells the same story, on every device.',
  },
  maxTokens: {
    group: 'sampling', label: 'Length, in tokens', value: 200, integer: true, min: 1, max: 1_048_576, step: 1,
    help: 'Most tokens to write at a time; three make about two words.',
  },
};

/** A value for a field from what was typed or stored: `{ value }` or `{ error }`.
 * @param {string} name @param {unknown} raw @returns {{ value?: any, error?: string }} */
export function check(name, raw) {
  const field = FIELDS[name];
  if (field.choices) {
    return field.choices.some(([value]) => value === raw) ? { value: raw } : { error: `${field.label} cannot be ${raw}.` };
  }
  const text = String(raw ?? '').trim();
  if (text === '') return { value: field.value };
  const { min = -Infinity, max = Infinity, above } = field;
  const value = Number(text);
  const ok = Number.isFinite(value) && (above ? value > min : value >= min) && value <= max
    && (!field.integer || Number.isInteger(value));
  if (ok) return { value };
  const kind = field.integer ? 'a whole number' : 'a number';
  return { error: above ? `${kind} above ${min} and at most ${max}` : `${kind} from ${min} to ${max}` };
}

export const defaults = () => Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, field.value]));

/** Stored settings as far as they are valid, the defaults elsewhere. @param {Record<string, unknown>} stored */
export function restore(stored) {
  const values = defaults();
  for (const name of Object.keys(FIELDS)) {
    if (!Object.hasOwn(stored, name)) continue;
    const { value, error } = check(name, stored[name]);
    if (!error) values[name] = value;
  }
  return values;
}

/** @param {Record<string, any>} values @param {'device' | 'sampling'} group */
export function options(values, group) {
  return Object.fromEntries(Object.entries(values)
    .filter(([name, value]) => FIELDS[name].group === group && value !== undefined));
}
