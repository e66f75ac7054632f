// GGUF files of any shape with random ternary weights: what this engine and others can be timed on.
//
//   node tests/bench/gguf.mjs SHAPE FILE
//
// Architecture `llama`, linears TQ2_0, embedding (tied head) Q8_0, byte-level vocabulary without
// merges: a text has as many tokens as bytes. The weights are noise, and so is what they write.
import { closeSync, openSync, writeSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

/** hidden, layers, heads, kv heads, ffn, vocabulary. */
export const SHAPES = {
  small: [768, 12, 12, 4, 2048, 32000],
  '2b4t': [2560, 30, 20, 5, 6912, 128256],
  // Four layers of BitNet-2B-4T under a small head: a token's time is that of its ternary matrices.
  '2b4t-layers': [2560, 4, 20, 5, 6912, 4096],
};

const F32 = 0, Q8_0 = 8, TQ2_0 = 35;
const ALIGN = 32;

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

function ternary(n, k) {
  const data = noise((n * k / 256) * 66);
  // A third of the values 1/√K keeps the size of what passes through.
  const d = half(-Math.round(Math.log2(k) / 2));
  for (let at = 0; at < data.length; at += 66) {
    // Codes 0 to 2: the fourth does not occur in such files.
    for (let i = 0; i < 64; i++) data[at + i] &= ~((data[at + i] >> 1) & 0x55);
    data[at + 64] = d & 255;
    data[at + 65] = d >> 8;
  }
  return data;
}

function q8(n, k) {
  const data = noise((n * k / 32) * 34);
  for (let at = 0; at < data.length; at += 34) {
    const row = Math.floor(at / 34 / (k / 32));
    // Halves of characters are never the likeliest: not everybody can hand them out.
    const d = row > 126 && row < 256 ? 0 : half(-7);
    data[at] = d & 255;
    data[at + 1] = d >> 8;
  }
  return data;
}

/** The characters that byte-level vocabularies write for the 256 bytes (GPT-2). */
function byteTokens() {
  let next = 256;
  return Array.from({ length: 256 }, (_, b) =>
    String.fromCodePoint((b > 32 && b < 127) || (b > 160 && b !== 173) ? b : next++));
}

export function write(shape, path) {
  const [hidden, layers, heads, kvHeads, ffn, vocab] = SHAPES[shape];
  const kv = (hidden / heads) * kvHeads;
  const tensors = [['token_embd.weight', Q8_0, hidden, vocab], ['output_norm.weight', F32, hidden]];
  for (let l = 0; l < layers; l++) {
    const add = (name, type, ...dims) => tensors.push([`blk.${l}.${name}.weight`, type, ...dims]);
    add('attn_norm', F32, hidden);
    add('attn_q', TQ2_0, hidden, hidden);
    add('attn_k', TQ2_0, hidden, kv);
    add('attn_v', TQ2_0, hidden, kv);
    add('attn_output', TQ2_0, hidden, hidden);
    add('ffn_norm', F32, hidden);
    add('ffn_gate', TQ2_0, hidden, ffn);
    add('ffn_up', TQ2_0, hidden, ffn);
    add('ffn_down', TQ2_0, ffn, hidden);
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
  string('general.architecture', 'llama');
  string('general.name', `synthetic ${shape}`);
  number('general.file_type', 37);
  number('llama.context_length', 4096);
  number('llama.embedding_length', hidden);
  number('llama.block_count', layers);
  number('llama.feed_forward_length', ffn);
  number('llama.attention.head_count', heads);
  number('llama.attention.head_count_kv', kvHeads);
  number('llama.rope.dimension_count', hidden / heads);
  number('llama.vocab_size', vocab);
  float('llama.attention.layer_norm_rms_epsilon', 1e-5);
  float('llama.rope.freq_base', 10000);
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

  const size = (type, k, n = 1) => (type === F32 ? 4 * k * n : type === Q8_0 ? (n * k / 32) * 34 : (n * k / 256) * 66);
  const padded = (n) => Math.ceil(n / ALIGN) * ALIGN;
  let offset = 0;
  for (const [name, type, ...dims] of tensors) {
    text(name);
    u32(dims.length);
    dims.forEach(u64);
    u32(type);
    u64(offset);
    offset += padded(size(type, ...dims));
  }
  const file = openSync(path, 'w');
  const header = Buffer.concat(parts);
  writeSync(file, header);
  writeSync(file, Buffer.alloc(padded(header.length) - header.length));
  let ternaryBytes = 0;
  for (const [, type, k, n] of tensors) {
    const data = type === F32 ? new Uint8Array(new Float32Array(k).fill(1).buffer) : (type === Q8_0 ? q8 : ternary)(n, k);
    for (let at = 0; at < data.length;) at += writeSync(file, data, at);
    writeSync(file, Buffer.alloc(padded(data.length) - data.length));
    if (type === TQ2_0) ternaryBytes += n * k / 4;
  }
  closeSync(file);
  return { ternaryBytes };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [shape, path] = process.argv.slice(2);
  if (!SHAPES[shape] || !path) {
    console.error(`usage: node gguf.mjs ${Object.keys(SHAPES).join('|')} FILE`);
    process.exit(2);
  }
  write(shape, path);
}
