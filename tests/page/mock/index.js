// Stands in for the package in demo.test.mjs, which tests the page and not the engine: the shapes of
// pkg-template/index.d.ts, made-up words, no model. `globalThis.mockLog` tells what was called.
// Sources whose address contains an error code fail with it.
const log = (globalThis.mockLog = []);
const query = new URLSearchParams(location.search);
const speed = query.get('speed') ?? 'fast';
/** With `?hold`, loads end when the test says so. */
const held = new Promise((done) => { globalThis.mockRelease = done; });
const pause = () => new Promise((done) => setTimeout(done, speed === 'slow' ? 60 : 4));
const WORDS = ('the old king had a daughter who would not laugh , and he let it be known that whoever could make her laugh '
  + 'should have her to wife . Then came a lad with a golden goose under his arm . “ Where do you go ? ” asked the girl at the inn . '
  + '“ Wherever the road does , ” he said , and went on .').split(' ');

export class BitNetError extends Error {
  constructor(code, message, { details = {} } = {}) {
    super(message);
    this.name = 'BitNetError';
    this.code = code;
    this.details = details;
  }
}

const aborted = () => new DOMException('aborted', 'AbortError');
const CODE = /(download_failed|corrupt_file|unsupported_model|tokenizer|webgpu_unavailable|device_lost|out_of_memory|context_full|quota_exceeded|storage_failed|unsupported_browser|internal)/;

class Generation {
  constructor(prompt, options) {
    this.stopped = false;
    this.tokenCount = 0;
    this.prompt = prompt;
    this.options = options;
    this.result = new Promise((done, failed) => Object.assign(this, { done, failed }));
  }

  stop() {
    this.stopped = true;
  }

  async *[Symbol.asyncIterator]() {
    const { maxTokens = 60, seed = 7 } = this.options;
    const code = CODE.exec(this.prompt)?.[1];
    if (code) {
      const error = new BitNetError(code, `made up: ${code}`);
      this.failed(error);
      throw error;
    }
    this.onPrefill?.(5, 10);
    await pause();
    let text = '';
    for (let i = 0; i < maxTokens; i++) {
      await pause();
      if (this.stopped) break;
      const word = WORDS[(i + seed) % WORDS.length];
      const piece = /^[.,?]$/.test(word) ? word : ` ${word}`;
      text += piece;
      this.tokenCount = i + 1;
      yield piece;
    }
    this.done({
      text, tokens: [], finishReason: this.stopped ? 'cancelled' : 'length', seed,
      usage: { promptTokens: 10, cachedTokens: 6, completionTokens: this.tokenCount },
      timings: { prefillMs: 12, firstTokenMs: 15, decodeMs: 100, prefillTokensPerSecond: 800, decodeTokensPerSecond: 41.5 },
    });
  }
}

export class BitNet {
  static defaultModel = { url: new URL('models/tales.gguf', import.meta.url).href, bytes: 7_100_000, sha256: '0' };
  static files = [
    { url: BitNet.defaultModel.url, bytes: 7_100_000, storedBytes: 7_100_000, complete: true, savedAt: new Date() },
    { url: 'https://example.org/models/half.gguf', bytes: 1_200_000_000, storedBytes: 500_000_000, complete: false, savedAt: new Date() },
  ];

  static cache = {
    list: async () => [...BitNet.files],
    delete: async (url) => {
      log.push(['delete', url]);
      const before = BitNet.files.length;
      BitNet.files = BitNet.files.filter((f) => url && f.url !== url);
      return before - BitNet.files.length;
    },
  };

  static async load(source, { device = 'auto', contextLength = 1024, onProgress, signal } = {}) {
    log.push(['load', source.url ?? source.name ?? (source.model ? 'safetensors' : source), device, contextLength]);
    const code = CODE.exec(source.url ?? source.name ?? String(source))?.[1];
    const total = 7_100_000;
    for (let i = 0; i <= 10; i++) {
      if (signal?.aborted) throw aborted();
      onProgress?.({ phase: 'download', loadedBytes: total * i / 10, totalBytes: total, storedBytes: 0, secondsLeft: (10 - i) / 3 });
      await pause();
      if (code && i === 3) throw new BitNetError(code, `made up: ${code}`);
    }
    if (query.has('hold')) await held;
    onProgress?.({ phase: 'prepare', loadedBytes: total, totalBytes: total, storedBytes: 0 });
    await pause();
    if (signal?.aborted) throw aborted();
    const model = new BitNet();
    model.info = {
      name: 'Tales 27M', format: 'GGUF', architecture: 'bitnet-b1.58', parameters: 27_300_000, ternaryParameters: 25_200_000,
      vocabSize: 4096, layers: 8, hiddenSize: 512, tensorTypes: {}, contextLength, trainedContextLength: 1024,
      weightBytes: 10_900_000, kvBytes: 8_400_000, hasChatTemplate: !String(source.name).includes('base'),
      device: device === 'cpu' ? 'cpu' : 'webgpu', adapter: 'made up', api: 'mock', wasmBuild: 'relaxed', loadMs: 321,
    };
    model.stats = { deviceBytes: 21_000_000, wasmBytes: 5_000_000, cachedTokens: 0 };
    return model;
  }

  generate(prompt, options = {}) {
    log.push(['generate', prompt, options]);
    return start(String(prompt), options);
  }

  chat(messages, options = {}) {
    log.push(['chat', messages, options]);
    return start(messages.at(-1).content, options);
  }

  static async hubModels(repository) {
    log.push(['hubModels', repository]);
    if (repository.includes('nothing')) throw new BitNetError('download_failed', 'made up: 404');
    const names = repository.includes('many') ? ['a-Q2_0.gguf', 'b-TQ2_0.gguf'] : ['one.gguf'];
    return names.map((name, i) => ({ source: `${repository}/${name}`, name, format: 'GGUF', bytes: (i + 1) * 1e9 }));
  }

  async profile() {
    if (this.info.device === 'cpu') return [];
    return [
      { op: 'ffn_up', kernel: 'ternary_gemv acts_i8', dispatches: 8, ms: 0.2, weightBytes: 2_000_000 },
      { op: 'attn', kernel: 'attention_decode', dispatches: 8, ms: 0.6, weightBytes: 0 },
    ];
  }

  async reset() {}

  async dispose() {
    log.push(['dispose']);
  }

  static async check({ device, onResult, signal } = {}) {
    const results = [];
    for (const kernel of ['embed', 'rms_norm', 'quantize', 'ternary_linear', 'dense_linear', 'rope', 'kv_append', 'attention']) {
      for (const variant of ['subgroup [1, 512]', 'workgroup [7, 515]']) {
        await pause();
        if (signal?.aborted) throw aborted();
        const ok = !(device === 'webgpu' && kernel === 'rope' && variant.startsWith('subgroup'));
        const result = { kernel, variant, ok, ...(ok ? {} : { error: 'element 3: expected 0.25, got 0.5' }) };
        results.push(result);
        onResult?.(result);
      }
    }
    return results;
  }
}

/** Generations start at once and are also usable without iterating. */
function start(prompt, options) {
  const generation = new Generation(prompt, options);
  if (options.ignoreEos) (async () => { for await (const _ of generation); })();
  return generation;
}
