// GGUF files of any shape with random ternary weights: what this engine and others can be timed on.
//
//   node tests/bench/gguf.mjs SHAPE FILE
//
// Tied head, byte-level vocabulary without merges: a text has as many tokens as bytes. The weights are noise, and so
// is what they write. Shapes of architecture `llama` with TQ2_0 load in llama.cpp, too.
import { closeSync, openSync, writeSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const F32 = 0, Q8_0 = 8, TQ2_0 = 35, I2_S = 36, Q1_0 = 41, Q2_0 = 42;
const ALIGN = 32;

/** Values and bytes of a block; bytes after a tensor. */
const TYPES = {
  [F32]: [1, 4, 0],
  [Q8_0]: [32, 34, 0],
  [TQ2_0]: [256, 66, 0],
  [I2_S]: [128, 32, 32],
  [Q1_0]: [128, 18, 0],
  [Q2_0]: [64, 18, 0],
};

/** size: hidden, layers, heads, kv heads, ffn, vocabulary; the type of linears and embedding. */
const llama = (...size) => ({ size, architecture: 'llama', linears: TQ2_0, embedding: Q8_0, norms: [] });
/** As published, but for the embedding: that is f16 there. */
const bitnet = (...size) => ({
  size,
  architecture: 'bitnet-b1.58',
  linears: I2_S,
  embedding: Q8_0,
  norms: [['attn_sub_norm', size[0]], ['ffn_sub_norm', size[4]]],
});
const bonsai = (type) => ({
  size: [2048, 28, 16, 8, 6144, 151669],
  architecture: 'qwen3',
  linears: type,
  embedding: type,
  norms: [['attn_q_norm', 128], ['attn_k_norm', 128]],
});
export const SHAPES = {
  small: llama(768, 12, 12, 4, 2048, 32000),
  '2b4t': llama(2560, 30, 20, 5, 6912, 128256),
  // Four layers of BitNet-2B-4T under a small head: a token's time is that of its ternary matrices.
  '2b4t-layers': llama(2560, 4, 20, 5, 6912, 4096),
  '2b4t-i2_s': bitnet(2560, 30, 20, 5, 6912, 128256),
  '2b4t-i2_s-layers': bitnet(2560, 4, 20, 5, 6912, 4096),
  'bonsai-1.7b': bonsai(Q1_0),
  'ternary-bonsai-1.7b': bonsai(Q2_0),
};

/** Bytes that do not repeat: xorshift32. */
function noise(bytes) {
  const words = new Uint32Array(Math.ceil(bytes / 4));
  let x = 0x9e3779b9;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, bytes);
}

/** f16 bits of a power of two. */
const half = (exponent) => (exponent + 15) << 10;

const bytesOf = (type, k, n = 1) => {
  const [values, bytes, tail] = TYPES[type];
  return (n * k / values) * bytes + tail;
};

/** A scale of 1/√K, or 1.2 times it where a third is zero, keeps the size of what passes through. */
function scaled(data, k, block, at) {
  const d = half(-Math.round(Math.log2(k) / 2));
  for (; at < data.length; at += block) {
    data[at] = d & 255;
    data[at + 1] = d >> 8;
  }
  return data;
}

/** Codes 0 to 2: the fourth does not occur in such files. */
function withoutThrees(data) {
  for (let i = 0; i < data.length; i++) data[i] &= ~((data[i] >> 1) & 0x55);
  return data;
}

const MAKE = {
  [F32]: (n, k) => new Uint8Array(new Float32Array(n * k).fill(1).buffer),
  [TQ2_0]: (n, k) => scaled(withoutThrees(noise(bytesOf(TQ2_0, k, n))), k, 66, 64),
  [Q1_0]: (n, k) => scaled(noise(bytesOf(Q1_0, k, n)), k, 18, 0),
  [Q2_0]: (n, k) => scaled(withoutThrees(noise(bytesOf(Q2_0, k, n))), k, 18, 0),
  [I2_S]: (n, k) => {
    const data = withoutThrees(noise(bytesOf(I2_S, k, n)));
    new DataView(data.buffer).setFloat32(n * k / 4, 1 / Math.sqrt(k), true);
    return data;
  },
  [Q8_0]: (n, k) => {
    const data = noise(bytesOf(Q8_0, k, n));
    for (let at = 0; at < data.length; at += 34) {
      const row = Math.floor(at / 34 / (k / 32));
      // Halves of characters are never the likeliest: not everybody can hand them out.
      const d = row > 126 && row < 256 ? 0 : half(-7);
      data[at] = d & 255;
      data[at + 1] = d >> 8;
    }
    return data;
  },
};

/** The characters that byte-level vocabularies write for the 256 bytes (GPT-2). */
function byteTokens() {
  let next = 256;
  return Array.from({ length: 256 }, (_, b) =>
    String.fromCodePoint((b > 32 && b < 127) || (b > 160 && b !== 173) ? b : next++));
}

export function write(shape, path) {
  const { size: [hidden, layers, heads, kvHeads, ffn, vocab], architecture, linears, embedding, norms } = SHAPES[shape];
  const kv = (hidden / heads) * kvHeads;
  const tensors = [['token_embd.weight', embedding, hidden, vocab], ['output_norm.weight', F32, hidden]];
  for (let l = 0; l < layers; l++) {
    const add = (name, type, ...dims) => tensors.push([`blk.${l}.${name}.weight`, type, ...dims]);
    for (const [name, length] of [['attn_norm', hidden], ['ffn_norm', hidden], ...norms]) add(name, F32, length);
    add('attn_q', linears, hidden, hidden);
    add('attn_k', linears, hidden, kv);
    add('attn_v', linears, hidden, kv);
    add('attn_output', linears, hidden, hidden);
    add('ffn_gate', linears, hidden, ffn);
    add('ffn_up', linears, hidden, ffn);
    add('ffn_down', linears, ffn, hidden);
  }
  const tokens = byteTokens();
  while (tokens.length < vocab) tokens.push(`<${tokens.length}>`);

  const parts = [];
  const bytes = (array) => parts.push(Buffer.from(array.buffer));
  const u32 = (v) => bytes(Uint32Array.of(v));
  const u64 = (v) => bytes(BigUint64Array.of(BigInt(v)));
  const text = (s) => {
    const utf8 = Buffer.from(s);
    u64(utf8.length);
    parts.push(utf8);
  };
  const meta = [];
  const key = (name, type, put) => meta.push(() => { text(name); u32(type); put(); });
  const number = (name, v) => key(name, 4, () => u32(v));
  const float = (name, v) => key(name, 6, () => bytes(Float32Array.of(v)));
  const string = (name, v) => key(name, 8, () => text(v));
  const list = (name, type, all, put) => key(name, 9, () => { u32(type); u64(all.length); all.forEach(put); });
  string('general.architecture', architecture);
  string('general.name', `synthetic ${shape}`);
  number(`${architecture}.context_length`, 4096);
  number(`${architecture}.embedding_length`, hidden);
  number(`${architecture}.block_count`, layers);
  number(`${architecture}.feed_forward_length`, ffn);
  number(`${architecture}.attention.head_count`, heads);
  number(`${architecture}.attention.head_count_kv`, kvHeads);
  number(`${architecture}.rope.dimension_count`, hidden / heads);
  number(`${architecture}.vocab_size`, vocab);
  float(`${architecture}.attention.layer_norm_rms_epsilon`, 1e-5);
  float(`${architecture}.rope.freq_base`, 10000);
  string('tokenizer.ggml.model', 'gpt2');
  string('tokenizer.ggml.pre', 'gpt-2');
  list('tokenizer.ggml.tokens', 8, tokens, text);
  list('tokenizer.ggml.token_type', 5, tokens, (_, i) => u32(i >= vocab - 2 ? 3 : 1));
  list('tokenizer.ggml.merges', 8, [], text);
  number('tokenizer.ggml.bos_token_id', vocab - 2);
  number('tokenizer.ggml.eos_token_id', vocab - 1);
  u32(0x46554747);
  u32(3);
  u64(tensors.length);
  u64(meta.length);
  meta.forEach((put) => put());

  const padded = (n) => Math.ceil(n / ALIGN) * ALIGN;
  let offset = 0;
  for (const [name, type, ...dims] of tensors) {
    text(name);
    u32(dims.length);
    dims.forEach(u64);
    u32(type);
    u64(offset);
    offset += padded(bytesOf(type, ...dims));
  }
  const file = openSync(path, 'w');
  const header = Buffer.concat(parts);
  writeSync(file, header);
  writeSync(file, Buffer.alloc(padded(header.length) - header.length));
  for (const [, type, k, n = 1] of tensors) {
    const data = MAKE[type](n, k);
    for (let at = 0; at < data.length;) at += writeSync(file, data, at);
    writeSync(file, Buffer.alloc(padded(data.length) - data.length));
  }
  closeSync(file);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [shape, path] = process.argv.slice(2);
  if (!SHAPES[shape] || !path) {
    console.error(`usage: node gguf.mjs ${Object.keys(SHAPES).join('|')} FILE`);
    process.exit(2);
  }
  write(shape, path);
}
