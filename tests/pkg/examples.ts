// Uses of the package as its users write them; `tsc --noEmit` checks them against the declarations.
import { BitNet, BitNetError, type GenerateResult, type Message, type Progress } from 'bitnet-rust';
import { createOpenAI, OpenAIError } from 'bitnet-rust/openai';

export async function story(): Promise<string> {
  const model = await BitNet.load();
  let text = '';
  for await (const piece of model.generate('Once upon a time', { maxTokens: 100 })) text += piece;
  await model.dispose();
  return text;
}

export async function everySource(file: File, buffer: ArrayBuffer, stream: ReadableStream<Uint8Array>) {
  const controller = new AbortController();
  await BitNet.load('models/own.gguf', { device: 'webgpu', contextLength: 2048, kvCache: 'q8', signal: controller.signal });
  await BitNet.load(new URL('https://example.com/model.gguf'), { cache: 'required', sha256: '00'.repeat(32) });
  await BitNet.load('hf:owner/repo/model.gguf', { headers: { authorization: 'Bearer …' } });
  await BitNet.load(file, { worker: false });
  await BitNet.load(buffer);
  await BitNet.load(stream);
  await BitNet.load({ model: ['a.safetensors', 'b.safetensors'], config: 'config.json', tokenizer: 'tokenizer.json' });
  await BitNet.load(BitNet.defaultModel, {
    onProgress: ({ phase, loadedBytes, totalBytes, secondsLeft }: Progress) =>
      console.log(phase, loadedBytes, totalBytes ?? '?', secondsLeft?.toFixed(0)),
    onWarning: (warning) => console.warn(warning.code),
  });
}

export async function chat(model: BitNet): Promise<GenerateResult> {
  const messages: Message[] = [{ role: 'user', content: 'Tell me a story about a fox.' }];
  const answer = model.chat(messages, { temperature: 0.7, topK: 40, seed: 7, stop: ['\n\n\n'], logprobs: 2 });
  answer.onPrefill = (done, total) => console.log(`${done} of ${total}`);
  const result = await answer.result;
  const { decodeTokensPerSecond } = result.timings;
  console.log(result.finishReason, result.usage.cachedTokens, decodeTokensPerSecond, result.logprobs?.[0]?.[0]?.token);
  return result;
}

export async function errors(): Promise<string> {
  try {
    await BitNet.load('missing.gguf');
  } catch (error) {
    if (error instanceof BitNetError) {
      // @ts-expect-error: the codes are a closed list
      if (error.code === 'no_such_code') return '';
      return error.code === 'download_failed' ? `status ${String(error.details.status)}` : error.code;
    }
    throw error;
  }
  // @ts-expect-error: there is no such option
  await BitNet.load(undefined, { gpu: true });
  // @ts-expect-error: models are loaded, not constructed
  return String(new BitNet());
}

export async function numbers(model: BitNet): Promise<number> {
  const ids: number[] = await model.tokenize('Once upon a time', { addBos: true });
  const logits: Float32Array = await model.logits(ids);
  const text: string = await model.detokenize(ids, { skipSpecial: true });
  return logits.length / model.info.vocabSize + text.length + model.stats.deviceBytes;
}

export async function cache(): Promise<number> {
  for (const { url, complete, storedBytes } of await BitNet.cache.list()) console.log(url, complete, storedBytes);
  await BitNet.cache.delete('https://example.com/model.gguf');
  return BitNet.cache.delete();
}

export async function hub(): Promise<number> {
  const models = await BitNet.hubModels('hf:owner/repo', { headers: { authorization: 'Bearer …' } });
  const smallest = [...models].sort((a, b) => a.bytes - b.bytes)[0];
  const model = await BitNet.load(smallest?.source);
  const times = await model.profile({ promptTokens: 128 });
  return times.reduce((sum, { ms }) => sum + ms, 0);
}

export async function check(): Promise<boolean> {
  const results = await BitNet.check({ device: 'webgpu', onResult: ({ kernel, variant, ok }) => console.log(kernel, variant, ok) });
  return results.every((result) => result.ok);
}

export async function openai(model: BitNet): Promise<string> {
  const client = createOpenAI({ tales: model });
  const whole = await client.chat.completions.create({ model: 'tales', messages: [{ role: 'user', content: 'Hi' }] });
  const stream = await client.chat.completions.create({
    messages: [{ role: 'user', content: [{ type: 'text', text: 'Hi' }] }], stream: true, stream_options: { include_usage: true },
  });
  let text = whole.choices[0]?.message.content ?? '';
  try {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
  } catch (error) {
    if (error instanceof OpenAIError) return `${error.status} ${error.error.message}`;
  }
  return text;
}
