// OpenAI's chat completions over a local model: same shapes, no server.
import { BitNet, BitNetError } from './index.js';

/** An error in OpenAI's shape. */
export class OpenAIError extends Error {
  /** @param {number} status @param {string} message
   * @param {{ type?: string, param?: string | null, code?: string | null, cause?: unknown }} [more] */
  constructor(status, message, { type = 'invalid_request_error', param = null, code = null, cause } = {}) {
    super(message, { cause });
    this.name = 'OpenAIError';
    this.status = status;
    this.type = type;
    this.param = param;
    this.code = code;
    this.error = { message, type, param, code };
  }
}

/** HTTP status and type that OpenAI's servers give for the same kind of trouble. */
const KINDS = /** @type {Record<string, [number, string]>} */ ({
  invalid_argument: [400, 'invalid_request_error'],
  context_full: [400, 'invalid_request_error'],
  tokenizer: [400, 'invalid_request_error'],
});

/** @param {unknown} error */
function toOpenAI(error) {
  if (!(error instanceof BitNetError)) return error;
  const [status, type] = KINDS[error.code] ?? [500, 'server_error'];
  const code = error.code === 'context_full' ? 'context_length_exceeded' : error.code;
  return new OpenAIError(status, error.message, { type, code, cause: error });
}

/** @param {string} param @param {string} message @returns {never} */
function refuse(param, message) {
  throw new OpenAIError(400, message, { param });
}

/** Parameters that change nothing here. */
const IGNORED = ['user', 'store', 'metadata', 'service_tier', 'parallel_tool_calls', 'safety_identifier', 'prompt_cache_key'];
/** Parameters under our own names. */
const RENAMED = /** @type {const} */ ({
  temperature: 'temperature', top_p: 'topP', seed: 'seed', stop: 'stop',
  presence_penalty: 'presencePenalty', frequency_penalty: 'frequencyPenalty',
  max_tokens: 'maxTokens', max_completion_tokens: 'maxTokens',
  // Not OpenAI's, but what local servers understand.
  top_k: 'topK', min_p: 'minP', repetition_penalty: 'repetitionPenalty',
});

/** @param {any} body */
function toOptions(body) {
  /** @type {any} */
  const options = { temperature: 1, topK: 0 }; // OpenAI's defaults: the plain distribution.
  for (const [name, value] of Object.entries(body)) {
    if (value === undefined || value === null || IGNORED.includes(name)) continue;
    if (name in RENAMED) {
      options[RENAMED[/** @type {keyof typeof RENAMED} */ (name)]] = value;
    } else if (name === 'n') {
      if (value !== 1) refuse(name, 'only n = 1 is supported');
    } else if (name === 'logprobs') {
      if (value) options.logprobs = body.top_logprobs ?? 0;
    } else if (name === 'response_format') {
      if (/** @type {any} */ (value).type !== 'text') refuse(name, 'only the response format "text" is supported');
    } else if (name === 'tools' || name === 'functions') {
      if (/** @type {any} */ (value).length) refuse(name, 'tools are not supported');
    } else if (!['model', 'messages', 'stream', 'stream_options', 'top_logprobs', 'tool_choice', 'logit_bias', 'modalities'].includes(name)) {
      refuse(name, `Unrecognized request argument supplied: ${name}`);
    }
  }
  if (body.top_logprobs && !body.logprobs) refuse('top_logprobs', 'top_logprobs needs logprobs: true');
  if (body.logit_bias && Object.keys(body.logit_bias).length) refuse('logit_bias', 'logit_bias is not supported');
  return options;
}

/** @param {any} messages */
function toMessages(messages) {
  if (!Array.isArray(messages) || !messages.length) refuse('messages', 'messages must be a non-empty array');
  return messages.map((message, i) => {
    const at = `messages[${i}]`;
    const { role, content } = message ?? {};
    if (typeof role !== 'string') refuse(`${at}.role`, `${at}.role must be a string`);
    if (typeof content === 'string') return { role, content };
    const isText = Array.isArray(content) && content.every((p) => p?.type === 'text' && typeof p.text === 'string');
    if (!isText) refuse(`${at}.content`, `${at}.content must be text`);
    return { role, content: content.map((/** @type {any} */ p) => p.text).join('') };
  });
}

/** @param {string} reason */
const finishReason = (reason) => (['eos', 'stop', 'cancelled'].includes(reason) ? 'stop' : 'length');

/** @param {any} usage */
const toUsage = ({ promptTokens, completionTokens, cachedTokens }) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});

/** @param {any[] | undefined} logprobs */
function toLogprobs(logprobs) {
  const one = (/** @type {any} */ { token, logprob }) =>
    ({ token, logprob, bytes: Array.from(new TextEncoder().encode(token)) });
  return logprobs && { content: logprobs.map(([token, ...top]) => ({ ...one(token), top_logprobs: top.map(one) })), refusal: null };
}

/** @param {any} models  a loaded model, or models by name */
export function createOpenAI(models) {
  /** @type {Record<string, BitNet>} */
  const byName = models instanceof BitNet ? { [models.info.name]: models } : { ...models };
  const only = models instanceof BitNet ? models : undefined;

  /** @param {any} body @param {{ signal?: AbortSignal }} [options] */
  async function create(body, { signal } = {}) {
    const options = toOptions(body);
    const messages = toMessages(body.messages);
    const model = byName[body.model] ?? only;
    if (!model) {
      throw new OpenAIError(404, `The model '${body.model}' does not exist`, { param: 'model', code: 'model_not_found' });
    }
    const head = {
      id: `chatcmpl-${crypto.randomUUID()}`,
      created: Math.floor(Date.now() / 1000),
      model: body.model ?? model.info.name,
      system_fingerprint: null,
    };
    let generation;
    try {
      generation = model.chat(messages, { ...options, signal });
      if (body.stream) return stream(head, generation, body.stream_options?.include_usage);
      const result = await generation.result;
      return {
        ...head,
        object: 'chat.completion',
        choices: [{
          index: 0,
          message: { role: 'assistant', content: result.text, refusal: null },
          logprobs: toLogprobs(result.logprobs) ?? null,
          finish_reason: finishReason(result.finishReason),
        }],
        usage: toUsage(result.usage),
      };
    } catch (error) {
      throw toOpenAI(error);
    }
  }

  return {
    chat: { completions: { create } },
    models: {
      list: async () => ({
        object: 'list',
        data: Object.keys(byName).map((id) => ({ id, object: 'model', created: 0, owned_by: 'local' })),
      }),
    },
  };
}

/** @param {any} head @param {import('./index.js').Generation} generation @param {boolean} [withUsage] */
async function* stream(head, generation, withUsage) {
  const chunk = (/** @type {any} */ delta, /** @type {string | null} */ reason = null) => ({
    ...head,
    object: 'chat.completion.chunk',
    choices: [{ index: 0, delta, logprobs: null, finish_reason: reason }],
    ...(withUsage ? { usage: null } : {}),
  });
  try {
    yield chunk({ role: 'assistant', content: '' });
    for await (const content of generation) yield chunk({ content });
    const result = await generation.result;
    yield chunk({}, finishReason(result.finishReason));
    if (withUsage) yield { ...chunk({}), choices: [], usage: toUsage(result.usage) };
  } catch (error) {
    throw toOpenAI(error);
  }
}
