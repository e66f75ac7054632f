// Choosing a model: by address, from a file, from what is kept on this device.
import { BitNet } from '../pkg/index.js';
import { announce, byId, el, formatBytes, formatMs } from './dom.js';
import { DEFAULT } from './engine.js';
import { explain } from './errors.js';

/** @typedef {import('./engine.js').Choice} Choice */

/** What was typed, as something to load: `{ choice }` or `{ error }`. @param {string} typed
 * @returns {{ choice?: Choice, error?: string }} */
export function choiceOf(typed) {
  const text = typed.trim();
  if (!text) return { error: 'Give an address: hf:owner/repo/file.gguf or https://…' };
  if (text.startsWith('hf:')) {
    const ok = /^hf:[\w.-]+\/[\w.-]+(@[\w.-]+)?(\/[^?#]+)?$/.test(text);
    return ok ? { choice: { source: text, name: lastPart(text) } }
      : { error: 'On the Hugging Face hub: hf:owner/repo or hf:owner/repo/file.gguf' };
  }
  try {
    const url = new URL(text, document.baseURI);
    const isAddress = /^(https?:|blob:)/.test(url.protocol);
    if (isAddress && (/^[a-z]+:/i.test(text) || /\.(gguf|safetensors)$/i.test(text))) {
      return { choice: { source: url.href, name: lastPart(decodeURI(url.pathname)) } };
    }
  } catch {
    // Not an address.
  }
  return { error: 'Not an address. Examples: hf:owner/repo/file.gguf, https://example.org/model.gguf' };
}

/** @param {string} path */
const lastPart = (path) => path.split('/').filter(Boolean).at(-1) ?? path;

/** JSON files of a safetensors model by their names. */
const BESIDE = {
  'config.json': 'config',
  'tokenizer.json': 'tokenizer',
  'tokenizer_config.json': 'tokenizerConfig',
  'generation_config.json': 'generationConfig',
  'chat_template.jinja': 'chatTemplate',
};

/** Files as something to load: one GGUF file, or the files of a safetensors model.
 * @param {File[]} files @returns {{ choice?: Choice, error?: string }} */
export function choiceOfFiles(files) {
  if (!files.length) return { error: 'There is no file in what was dropped.' };
  const shards = files.filter((f) => /\.safetensors$/i.test(f.name));
  if (!shards.length) {
    const gguf = files.filter((f) => /\.gguf$/i.test(f.name));
    if (gguf.length > 1) return { error: 'These are several models; choose one.' };
    const file = gguf[0] ?? files[0];
    return { choice: { source: file, name: file.name } };
  }
  /** @type {any} */
  const source = { model: shards };
  for (const [name, option] of Object.entries(BESIDE)) {
    const file = files.find((f) => f.name === name);
    if (file) source[option] = file;
  }
  const missing = ['config.json', 'tokenizer.json'].filter((name) => !files.some((f) => f.name === name));
  if (missing.length) return { error: `A safetensors model needs ${missing.join(' and ')} beside the weights; choose all its files together.` };
  return { choice: { source, name: shards[0].name } };
}

/** All files of a drop, those in folders too. @param {DataTransfer} transfer @returns {Promise<File[]>} */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const MOST = 500; // A model folder has a dozen; somebody's home folder has no end.
  /** @type {File[]} */
  const files = [];
  const queue = [...entries];
  while (queue.length && files.length < MOST) {
    const entry = queue.shift();
    if (entry.isFile) files.push(await new Promise((done, failed) => entry.file(done, failed)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!some.length) break; // It gives a hundred at a time.
        queue.push(...some);
      }
    }
  }
  return files;
}

export class ModelPicker {
  /** @param {(choice: Choice) => void} onChoice @param {(error: { title: string, detail: string }) => void} onError */
  constructor(onChoice, onError) {
    this.onChoice = onChoice;
    this.onError = onError;
    byId('source-form').addEventListener('submit', (/** @type {Event} */ event) => {
      event.preventDefault();
      const { choice, error } = choiceOf(byId('source').value);
      this.#showError(error);
      if (choice) this.#choose(choice);
    });
    byId('source').addEventListener('input', () => {
      this.#showError(undefined);
      this.#showChoices([]);
    });
    byId('use-default').addEventListener('click', () => onChoice(DEFAULT));
    byId('file').addEventListener('change', (/** @type {any} */ { target }) => {
      const files = [...target.files];
      target.value = ''; // The same file may be chosen again.
      this.#files(files);
    });
    this.#listenForDrops();
  }

  /** @param {File[]} files */
  #files(files) {
    const { choice, error } = choiceOfFiles(files);
    if (choice) this.onChoice(choice);
    else this.onError({ title: 'This cannot be loaded', detail: error ?? '' });
  }

  /** A repository with several models is shown first. @param {Choice} choice */
  async #choose(choice) {
    this.#showChoices([]);
    const { source } = choice;
    if (typeof source !== 'string' || !source.startsWith('hf:') || /\.gguf$/i.test(source)) return this.onChoice(choice);
    let models;
    try {
      models = await BitNet.hubModels(source);
    } catch {
      return this.onChoice(choice); // Perhaps it is kept here; if not, loading says what is wrong.
    }
    if (byId('source').value.trim() !== source) return; // The reader has gone on.
    if (models.length < 2) return this.onChoice(choice);
    this.#showChoices(models);
    announce(`${models.length} models; choose one`);
  }

  /** @param {import('../pkg/index.js').HubModel[]} models */
  #showChoices(models) {
    byId('choices').hidden = !models.length;
    byId('choices').replaceChildren(...models.map(({ source, name, format, bytes }) => el('li', {},
      el('button', { type: 'button', className: 'link name', textContent: name, onclick: () => {
        this.#showChoices([]);
        this.onChoice({ source, name });
      } }),
      el('span', { className: 'meta', textContent: `${formatBytes(bytes)}${format === 'GGUF' ? '' : ` · ${format}`}` }))));
  }

  /** @param {string | undefined} error */
  #showError(error) {
    byId('source-error').hidden = !error;
    byId('source-error').textContent = error ?? '';
    byId('source').setAttribute('aria-invalid', String(Boolean(error)));
    if (error) byId('source').focus();
  }

  #listenForDrops() {
    const veil = byId('drop');
    const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes('Files');
    let depth = 0; // Entering a child fires before leaving its parent.
    addEventListener('dragenter', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth++;
      veil.hidden = false;
    });
    addEventListener('dragover', (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      /** @type {DataTransfer} */ (event.dataTransfer).dropEffect = 'copy';
    });
    addEventListener('dragleave', (event) => {
      if (!hasFiles(event)) return;
      depth--;
      veil.hidden = depth > 0 ? veil.hidden : true;
    });
    addEventListener('drop', async (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth = 0;
      veil.hidden = true;
      try {
        this.#files(await filesOf(/** @type {DataTransfer} */ (event.dataTransfer)));
      } catch (error) {
        this.onError({ title: 'This cannot be read', detail: String(error) });
      }
    });
  }

  /** @param {import('./engine.js').Engine} engine */
  showFacts({ model }) {
    const rows = model ? factsOf(model.info) : [['Model', 'None is loaded']];
    byId('facts').replaceChildren(...rows.flatMap(([name, value]) =>
      [el('dt', { textContent: name }), el('dd', { textContent: value })]));
  }

  async showCached() {
    const list = byId('cached');
    let files;
    try {
      files = await BitNet.cache.list();
    } catch {
      files = []; // Without storage nothing is kept.
    }
    const rows = files.map((file) => {
      const name = lastPart(decodeURI(new URL(file.url).pathname));
      const size = file.complete ? formatBytes(file.storedBytes)
        : `${formatBytes(file.storedBytes)}${file.bytes ? ` of ${formatBytes(file.bytes)}` : ''}, unfinished`;
      const { host } = new URL(file.url);
      const where = host === location.host ? '' : ` · ${host}`;
      return el('li', {},
        el('button', { type: 'button', className: 'link name', textContent: name, title: file.url,
          onclick: () => this.onChoice(file.url === BitNet.defaultModel.url ? DEFAULT : { source: file.url, name }) }),
        el('span', { className: 'meta', textContent: size + where }),
        el('button', { type: 'button', textContent: 'Delete', ariaLabel: `Delete ${name}`, onclick: () => this.#delete(file.url, name) }));
    });
    list.replaceChildren(...(rows.length ? rows : [el('li', { className: 'none', textContent: 'Nothing yet.' })]));
  }

  /** @param {string} url @param {string} name */
  async #delete(url, name) {
    try {
      await BitNet.cache.delete(url);
      announce(`${name} was deleted`);
    } catch (error) {
      this.onError(explain(error));
    }
    await this.showCached();
    // The button that had the focus is gone.
    (byId('cached').querySelector('button') ?? byId('source')).focus();
  }
}

/** @param {import('../pkg/index.js').ModelInfo} info @returns {[string, string][]} */
export function factsOf(info) {
  const millions = (/** @type {number} */ n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} billion` : `${(n / 1e6).toFixed(1)} million`);
  const device = info.device === 'webgpu' ? 'WebGPU' : 'CPU';
  /** @type {[string, string][]} */
  const rows = [
    ['Model', info.name || 'without a name'],
    ['Weights', `${millions(info.parameters)}, ${Math.round(100 * info.ternaryParameters / info.parameters)} % ternary`],
    ['Format', `${info.format}, ${info.architecture}`],
    ['Context', `${info.contextLength} of ${info.trainedContextLength} tokens`],
    ['Runs on', [device, info.adapter, info.api].filter(Boolean).join(', ')],
    ['Loaded in', formatMs(info.loadMs)],
  ];
  if (info.fallback) rows.push(['Why the CPU', info.fallback]);
  return rows;
}
