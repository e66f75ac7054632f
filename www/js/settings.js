// The settings as form fields.
import { byId, el } from './dom.js';
import { FIELDS, check, defaults, options, restore } from './fields.js';
import { readSettings, writeSettings } from './store.js';

export class Settings {
  /** @type {Record<string, any>} */
  values = restore(readSettings());
  /** @type {Record<string, any>} */
  #inputs = {};

  /** @param {() => void} onDevice  called when the model must be loaded again */
  constructor(onDevice) {
    this.onDevice = onDevice;
    for (const [name, field] of Object.entries(FIELDS)) byId(`${field.group}-fields`).append(this.#row(name, field));
    byId('reset-settings').addEventListener('click', () => this.reset());
  }

  /** Options for `BitNet.load`. */
  get load() {
    return options(this.values, 'device');
  }

  /** Options for `generate` and `chat`. */
  get sampling() {
    return options(this.values, 'sampling');
  }

  /** @param {string} name @param {import('./fields.js').Field} field */
  #row(name, field) {
    const id = `field-${name}`;
    const input = field.choices
      ? el('select', { id }, ...field.choices.map(([value, label]) => el('option', { value, textContent: label })))
      // Not type=number: that hides from us what was typed when it is no number.
      : el('input', { id, type: 'text', inputMode: field.integer ? 'numeric' : 'decimal', autocomplete: 'off', placeholder: field.placeholder });
    input.setAttribute('aria-describedby', `${id}-help ${id}-error`);
    const error = el('p', { className: 'error', id: `${id}-error`, hidden: true });
    this.#inputs[name] = input;
    this.#show(name);
    input.addEventListener('change', () => this.#change(name, error));
    if (!field.choices) input.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.#step(event, name, error));
    return el('div', { className: field.choices ? 'field wide' : 'field' },
      el('label', { htmlFor: id, textContent: field.label }), input,
      el('p', { className: 'help', id: `${id}-help`, textContent: field.help }), error);
  }

  /** @param {string} name */
  #show(name) {
    this.#inputs[name].value = this.values[name] ?? '';
  }

  /** @param {string} name @param {any} error */
  #change(name, error) {
    const input = this.#inputs[name];
    const result = check(name, input.value);
    error.hidden = !result.error;
    error.textContent = result.error ? `Needs to be ${result.error}; ${this.values[name] ?? 'the default'} is used.` : '';
    input.setAttribute('aria-invalid', String(Boolean(result.error)));
    if (result.error || Object.is(result.value, this.values[name])) return;
    this.values[name] = result.value;
    this.#show(name);
    writeSettings(this.values);
    if (FIELDS[name].group === 'device') this.onDevice();
  }

  /** Up and down arrows, as in a number field. @param {KeyboardEvent} event @param {string} name @param {any} error */
  #step(event, name, error) {
    const sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const { step = 1, integer } = FIELDS[name];
    const now = Number(this.#inputs[name].value || NaN);
    if (!sign || !Number.isFinite(now)) return;
    event.preventDefault();
    const next = String(Number((now + sign * step).toFixed(integer ? 0 : 4)));
    if (check(name, next).error) return;
    this.#inputs[name].value = next;
    this.#change(name, error);
  }

  reset() {
    const before = JSON.stringify(this.load);
    this.values = defaults();
    writeSettings(this.values);
    for (const name of Object.keys(FIELDS)) {
      this.#show(name);
      this.#inputs[name].removeAttribute('aria-invalid');
      byId(`field-${name}-error`).hidden = true;
    }
    if (JSON.stringify(this.load) !== before) this.onDevice();
  }

  /** Sets one value from elsewhere on the page. @param {string} name @param {any} value */
  set(name, value) {
    this.values[name] = value;
    this.#show(name);
    writeSettings(this.values);
  }
}
