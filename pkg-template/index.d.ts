/**
 * Ternary (1.58-bit) and 1-bit language models where the user is: WebGPU with a SIMD CPU fall-back, in
 * the browser and in Node.
 *
 * ```js
 * import { BitNet } from 'bitnet-rust';
 *
 * const model = await BitNet.load();                       // the small story-teller of this package
 * for await (const piece of model.generate('Once upon a time')) {
 *   document.body.append(piece);
 * }
 * ```
 * @packageDocumentation
 */

/**
 * What kind of error it is. These names are stable; messages are for people and may change.
 *
 * | code | meaning |
 * |---|---|
 * | `invalid_argument` | an option, prompt or source that cannot be; the message says which |
 * | `download_failed` | the network or the server; `details.status` and `details.url` where known |
 * | `corrupt_file` | the file is damaged, or its content does not have the expected hash |
 * | `unsupported_model` | a model of a kind that this version does not know |
 * | `tokenizer` | no usable tokenizer or chat template in the model |
 * | `webgpu_unavailable` | `device: 'webgpu'` was asked for and there is no usable adapter |
 * | `device_lost` | the GPU is gone (driver reset), or a worker of the CPU path; load the model again |
 * | `out_of_memory` | the device or WebAssembly could not allocate |
 * | `context_full` | the prompt is longer than the context |
 * | `quota_exceeded` | the browser grants no more storage (only with `cache: 'required'`, else a warning) |
 * | `storage_failed` | the browser's storage failed in another way (likewise) |
 * | `cache_busy` | the file to delete from the cache is being downloaded right now |
 * | `unsupported_browser` | no WebAssembly SIMD |
 * | `internal` | a bug of this package; load the model again to go on |
 *
 * A call that you abort rejects with its signal's reason: an `AbortError` unless you gave another.
 */
export type ErrorCode =
  | 'invalid_argument' | 'download_failed' | 'corrupt_file' | 'unsupported_model' | 'tokenizer'
  | 'webgpu_unavailable' | 'device_lost' | 'out_of_memory' | 'context_full' | 'quota_exceeded'
  | 'storage_failed' | 'cache_busy' | 'unsupported_browser' | 'internal';

/** Every error of this package but aborts. */
export class BitNetError extends Error {
  constructor(code: ErrorCode, message: string, more?: { cause?: unknown; details?: Record<string, unknown> });
  /** What kind of error it is. */
  readonly code: ErrorCode;
  /** Facts behind the message, such as `status` and `url` of a failed download. */
  readonly details: Record<string, unknown>;
}

/** One file:
 * - a URL, absolute or relative to the page;
 * - `'hf:owner/repo/file.gguf'` on the Hugging Face hub, or `'hf:owner/repo@revision/file.gguf'`;
 * - a `File` or `Blob`, read piece by piece where it lies;
 * - an `ArrayBuffer` or a typed array over a whole one: **it is moved into the worker** and empty
 *   afterwards; pass `buffer.slice(0)` to keep it;
 * - a `ReadableStream` of bytes;
 * - in Node: a path. */
export type FileSource = string | URL | Blob | ArrayBuffer | ArrayBufferView | ReadableStream<Uint8Array>;

/** A model in safetensors: the weights (shards in any order) and the JSON files beside them. */
export interface SafetensorsSource {
  model: FileSource | FileSource[];
  /** `config.json` */
  config: FileSource;
  /** `tokenizer.json` */
  tokenizer: FileSource;
  /** `tokenizer_config.json`: special tokens, chat template */
  tokenizerConfig?: FileSource;
  /** `generation_config.json`: tokens that end a text */
  generationConfig?: FileSource;
  /** `chat_template.jinja` */
  chatTemplate?: FileSource;
}

/** A file whose content is known beforehand. */
export interface PinnedSource {
  url: string;
  bytes: number;
  /** SHA-256, hexadecimal. */
  sha256: string;
}

/** Where a model comes from. `'hf:owner/repo'` without a file takes the repository's one GGUF file,
 * or else its safetensors model. */
export type ModelSource = FileSource | SafetensorsSource | PinnedSource;

/** How far a load has come. */
export interface Progress {
  /** `wait`: another tab is downloading this file · `download` · `read`: from the cache or a local
   * file · `measure`: which kernels are fastest on this GPU, once · `prepare`: kernels are compiled · `ready` */
  phase: 'measure' | 'wait' | 'download' | 'read' | 'prepare' | 'ready';
  /** Bytes taken in, of all files. */
  loadedBytes: number;
  /** Bytes of all files, once known. */
  totalBytes?: number;
  /** Of the loaded bytes, those that needed no network. */
  storedBytes: number;
  /** At the speed of the last seconds. */
  secondsLeft?: number;
}

export interface LoadOptions {
  /** `'auto'` (default): WebGPU if there is an adapter that computes correctly and takes this model, else the
   * CPU; `info.fallback` says why. */
  device?: 'auto' | 'webgpu' | 'cpu';
  /** Part of the adapter's name, where there are several. */
  adapter?: string;
  /** What the GPU kernels use of what the adapter has: `'all'`, `'none'`, or names joined by `+`, such as
   * `'subgroups+dot4'`; what the device does not have is left out, and `info.kernels` says what is used. Default: what
   * is fastest and computes right, measured at the first load (a second or two) and remembered in the cache for this
   * adapter, browser and version. Where nothing is kept (`cache: false`), and on software adapters and very slow
   * ones: all, but no subgroups of less than 8 invocations. */
  kernels?: 'all' | 'none' | (string & {});
  /** Tokens that prompt and answer may take together. Default: the model's, at most 4096. */
  contextLength?: number;
  /** Storage of keys and values. Default `'f16'`. */
  kvCache?: 'f16' | 'q8' | 'f32';
  /** Threads of the CPU path, 1 to 64: workers that each hold rows of the weights (none is held twice).
   * They need no special headers, but are quicker on a cross-origin isolated page. Default: 1 for
   * models below 64 MB, which gain nothing; else one less than the machine has, at most 4. */
  threads?: number;
  /** How activations are rounded. Default: the rule of the file's format. */
  activations?: 'per-token' | 'block' | 'f32';
  /** Layout of I2_S weights, which files do not name. Default: told by looking at the data. */
  i2s?: 'group128' | 'group64' | 'rows4';
  /** Keep downloads for the next time. `true` (default); `false`; `'reload'`: download again and keep;
   * `'required'`: reject when there is no room (else that is a warning). */
  cache?: boolean | 'reload' | 'required';
  /** SHA-256 (hexadecimal) that the file must have. Hashes that the host tells are checked anyway. */
  sha256?: string;
  /** Headers for downloads, such as `authorization` for private repositories. */
  headers?: Record<string, string>;
  /** Another hub than https://huggingface.co. */
  hub?: string;
  /** Fine-tuning of downloads. */
  download?: { partBytes?: number; parallel?: number; retries?: number; backoffMs?: number; stallMs?: number };
  /** `true` (default): in a worker of its own · `false`: in this thread (in your own worker, or
   * where blocking does no harm) · your own `Worker` that imports `bitnet-rust/worker`. */
  worker?: boolean | Worker;
  /** Told about every phase, and about ten times a second in between. */
  onProgress?: (progress: Progress) => void;
  /** Told when something was given up that the model can do without. Default: `console.warn`. */
  onWarning?: (warning: BitNetError) => void;
  /** Stops the load. What was downloaded stays in the cache and is gone on with next time. */
  signal?: AbortSignal;
}

export interface GenerateOptions {
  /** Most tokens to write. Default: until the text ends or the context is full. */
  maxTokens?: number;
  /** 0: always the likeliest token. Default 0.7. */
  temperature?: number;
  /** Draw among the so many likeliest tokens; 0: all. Default 40. */
  topK?: number;
  /** Draw among the likeliest tokens that together have this probability. Default 1. */
  topP?: number;
  /** Leave out tokens with less than this share of the likeliest one's probability. Default 0. */
  minP?: number;
  /** Above 1: less repetition. Default 1. */
  repetitionPenalty?: number;
  /** Taken off the logits of tokens that occur already. Default 0. */
  presencePenalty?: number;
  /** Taken off the logits of tokens, for each time they occur already. Default 0. */
  frequencyPenalty?: number;
  /** How many of the last tokens the penalties look at. Default 64. */
  penaltyWindow?: number;
  /** The same seed gives the same text, on every device. Default: random, told by the result. */
  seed?: number;
  /** Strings that end the text; they are not part of it. */
  stop?: string | string[];
  /** Write on past the model's own end of text. Default `false`. */
  ignoreEos?: boolean;
  /** For each token its log-probability and those of this many likeliest alternatives. */
  logprobs?: number;
  /** Stops the generation: iteration and `result` reject with its reason. */
  signal?: AbortSignal;
}

export interface Message {
  /** Usually `system`, `user` or `assistant`; the model's template decides. */
  role: string;
  content: string;
}

/** A token and the natural logarithm of its probability. */
export interface Logprob {
  id: number;
  /** The token's text; half a character becomes �. */
  token: string;
  logprob: number;
}

export interface Usage {
  promptTokens: number;
  /** Of them, found in the KV cache from the turn before. */
  cachedTokens: number;
  completionTokens: number;
}

export interface Timings {
  /** Running the prompt, without its cached tokens. */
  prefillMs: number;
  /** From the start to the first token. */
  firstTokenMs: number;
  /** The tokens after the first. */
  decodeMs: number;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
}

export interface GenerateResult {
  text: string;
  tokens: number[];
  /** `eos`: the model ended it · `stop`: a stop string · `length`: `maxTokens` · `context_full` ·
   * `cancelled`: `stop()`, or the loop was left */
  finishReason: 'eos' | 'stop' | 'length' | 'context_full' | 'cancelled';
  usage: Usage;
  timings: Timings;
  /** What to pass as `seed` to get this text again. */
  seed: number;
  /** For each token itself, then the alternatives, likeliest first (if asked for). */
  logprobs?: Logprob[][];
}

/** A text under way. Iterate over its pieces, or wait for its `result`, or both. */
export class Generation implements AsyncIterable<string> {
  private constructor();
  /** New text as it comes. Leaving the loop ends the generation. */
  [Symbol.asyncIterator](): AsyncGenerator<string, void, void>;
  /** How it ended. Rejects when it failed or its signal was aborted. */
  readonly result: Promise<GenerateResult>;
  /** The whole text. */
  text(): Promise<string>;
  /** Ends it after the step under way. Iteration stops without an error, and `result` has what there is
   * by then, with its figures. */
  stop(): void;
  /** Tokens written so far. A piece may hold several of them. */
  readonly tokenCount: number;
  /** Set this to be told while the prompt is run. */
  onPrefill?: (doneTokens: number, totalTokens: number) => void;
}

/** Facts about a loaded model. */
export interface ModelInfo {
  name: string;
  format: 'GGUF' | 'safetensors';
  architecture: string;
  parameters: number;
  ternaryParameters: number;
  vocabSize: number;
  layers: number;
  hiddenSize: number;
  /** Tensors of each type in the file. */
  tensorTypes: Record<string, { count: number; bytes: number }>;
  /** Tokens that prompt and answer may take together. */
  contextLength: number;
  /** Tokens that the model was made for. */
  trainedContextLength: number;
  /** Bytes of the weights on the device. */
  weightBytes: number;
  /** Bytes of the KV cache. */
  kvBytes: number;
  /** Whether the model brings a chat template; else a plain one is used. */
  hasChatTemplate: boolean;
  /** Where it runs. */
  device: 'webgpu' | 'cpu';
  /** Name of the GPU or processor, as far as the browser tells. */
  adapter: string;
  /** Graphics API or instruction set in use. */
  api: string;
  /** What the kernels use of the GPU: `'none'`, or names such as `'dot4'`. */
  kernels?: string;
  /** Threads, on the CPU. */
  threads?: number;
  /** With `device: 'auto'`, why it is not WebGPU. */
  fallback?: string;
  /** Which build of the WebAssembly is in use. */
  wasmBuild: 'relaxed' | 'simd128';
  /** From the call to `load` until the model was ready, in the worker. */
  loadMs: number;
}

/** Figures of the moment: as of the last finished generation. */
export interface Stats extends Partial<Timings> {
  /** Weights, KV cache and buffers on the device. */
  deviceBytes: number;
  /** Size of the WebAssembly memory. */
  wasmBytes: number;
  /** Tokens in the KV cache. */
  cachedTokens: number;
}

/** A model on the Hugging Face hub. */
export interface HubModel {
  /** What `BitNet.load` takes. */
  source: string;
  /** Last part of the file's or the folder's name. */
  name: string;
  format: 'GGUF' | 'safetensors';
  /** Length of the file, or of all shards together. */
  bytes: number;
  sha256?: string;
}

/** A file in the cache. */
export interface CachedFile {
  url: string;
  /** Length of the whole file, if known. */
  bytes?: number;
  /** Bytes that are there. */
  storedBytes: number;
  /** `false`: a download that was cut and can go on. */
  complete: boolean;
  sha256?: string;
  savedAt: Date;
}

/** One kernel against its plain twin. */
export interface KernelCheck {
  kernel: string;
  /** Which variant, and of what shape. */
  variant: string;
  ok: boolean;
  /** What is wrong, if it is not. */
  error?: string;
}

/** Time of an operation, all layers together, in one step. */
export interface KernelTime {
  /** The operation. */
  op: string;
  /** The kernel's variant. */
  kernel: string;
  dispatches: number;
  ms: number;
  /** Weights that were read. */
  weightBytes: number;
}

/** A loaded model. Several can live side by side, each in a worker of its own. Calls to one model run
 * one after the other. */
export class BitNet {
  private constructor();

  /** Loads a model. Without a source: the small story-teller that comes with this package. */
  static load(source?: ModelSource, options?: LoadOptions): Promise<BitNet>;

  /** The story-teller that comes with this package. */
  static readonly defaultModel: PinnedSource;

  /** Downloads that were kept, whole or in part. */
  static readonly cache: {
    list(): Promise<CachedFile[]>;
    /** Deletes one file, or all; says how many went. */
    delete(url?: string | URL): Promise<number>;
  };

  /** What there is to load in `hf:owner/repo[@revision][/folder]`: its GGUF files, and its safetensors model. */
  static hubModels(repository: string, options?: {
    hub?: string;
    headers?: Record<string, string>;
    signal?: AbortSignal;
  }): Promise<HubModel[]>;

  /** Runs each kernel of a device against its plain twin; `onResult` hears of each as it is done. */
  static check(options?: {
    device?: 'auto' | 'webgpu' | 'cpu';
    onResult?: (result: KernelCheck) => void;
    signal?: AbortSignal;
    worker?: boolean | Worker;
  }): Promise<KernelCheck[]>;

  readonly info: ModelInfo;
  /** Figures of the last generation. */
  readonly stats: Stats;

  /** Continues a text (or token ids). */
  generate(prompt: string | number[], options?: GenerateOptions): Generation;
  /** Answers a conversation in the model's own chat template. What the KV cache still holds of the
   * turns before is not computed again. */
  chat(messages: Message[], options?: GenerateOptions): Generation;
  /** Token ids of a text. Names of special tokens in it become those tokens. */
  tokenize(text: string, options?: { addBos?: boolean }): Promise<number[]>;
  /** Text of token ids. */
  detokenize(ids: number[], options?: { skipSpecial?: boolean }): Promise<string>;
  /** The logits of every position, `[ids.length, vocabSize]` row after row. */
  logits(ids: number[], options?: { signal?: AbortSignal }): Promise<Float32Array>;
  /** Where the time of a step goes, by the GPU's own clock, as the mean of `runs`: of one token, or of a prompt
   * of so many. Empty on the CPU and where the browser has no timestamps. Forgets the KV cache. */
  profile(options?: { promptTokens?: number; runs?: number; signal?: AbortSignal }): Promise<KernelTime[]>;
  /** Forgets the KV cache. */
  reset(): Promise<void>;
  /** Frees everything; later calls reject. */
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}
