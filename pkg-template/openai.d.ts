/**
 * OpenAI's chat completions over local models: the shapes of the `openai` package, without a server.
 *
 * ```js
 * import { BitNet } from 'bitnet-rust';
 * import { createOpenAI } from 'bitnet-rust/openai';
 *
 * const openai = createOpenAI(await BitNet.load());
 * const stream = await openai.chat.completions.create({
 *   messages: [{ role: 'user', content: 'Tell me a story about a fox.' }],
 *   stream: true,
 * });
 * for await (const chunk of stream) console.log(chunk.choices[0]?.delta.content);
 * ```
 * @packageDocumentation
 */
import type { BitNet } from './index.js';

/** An error in OpenAI's shape. */
export class OpenAIError extends Error {
  constructor(status: number, message: string, more?: {
    type?: string; param?: string | null; code?: string | null; cause?: unknown;
  });
  /** The HTTP status that a server would have answered. */
  readonly status: number;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
  /** The body that a server would have sent. */
  readonly error: { message: string; type: string; param: string | null; code: string | null };
}

export interface ChatMessageParam {
  role: 'system' | 'developer' | 'user' | 'assistant' | (string & {});
  content: string | { type: 'text'; text: string }[];
}

export interface ChatCompletionParams {
  messages: ChatMessageParam[];
  /** Name of one of the models; may be left out when there is one. */
  model?: string;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  max_tokens?: number | null;
  max_completion_tokens?: number | null;
  /** Default 1, as OpenAI's. */
  temperature?: number | null;
  top_p?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  logprobs?: boolean | null;
  top_logprobs?: number | null;
  n?: 1 | null;
  response_format?: { type: 'text' };
  user?: string;
  /** Not OpenAI's. */
  top_k?: number;
  /** Not OpenAI's. */
  min_p?: number;
  /** Not OpenAI's. */
  repetition_penalty?: number;
}

export interface CompletionUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: number[];
}

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  system_fingerprint: null;
  choices: {
    index: number;
    message: { role: 'assistant'; content: string; refusal: null };
    logprobs: { content: (TokenLogprob & { top_logprobs: TokenLogprob[] })[]; refusal: null } | null;
    finish_reason: 'stop' | 'length';
  }[];
  usage: CompletionUsage;
}

export interface ChatCompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  system_fingerprint: null;
  choices: {
    index: number;
    delta: { role?: 'assistant'; content?: string };
    logprobs: null;
    finish_reason: 'stop' | 'length' | null;
  }[];
  /** With `include_usage`: in the last chunk. */
  usage?: CompletionUsage | null;
}

export interface OpenAI {
  chat: {
    completions: {
      create(params: ChatCompletionParams & { stream: true }, options?: { signal?: AbortSignal }): Promise<AsyncIterable<ChatCompletionChunk>>;
      create(params: ChatCompletionParams & { stream?: false | null }, options?: { signal?: AbortSignal }): Promise<ChatCompletion>;
      create(params: ChatCompletionParams, options?: { signal?: AbortSignal }): Promise<ChatCompletion | AsyncIterable<ChatCompletionChunk>>;
    };
  };
  models: {
    list(): Promise<{ object: 'list'; data: { id: string; object: 'model'; created: number; owned_by: string }[] }>;
  };
}

/** A client for one model, or for several by name. */
export function createOpenAI(models: BitNet | Record<string, BitNet>): OpenAI;
