// The errors of this package: one class, told apart by a stable `code`.

/** @typedef {import('../index.js').ErrorCode} ErrorCode */

/** An error with a stable `code`. The message is for people and may change; the code does not. */
export class BitNetError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   * @param {{ cause?: unknown, details?: Record<string, unknown> }} [more]
   */
  constructor(code, message, { cause, details } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'BitNetError';
    this.code = code;
    /** Facts behind the message, such as `status` and `url` of a failed download. */
    this.details = details ?? {};
  }
}

/**
 * Any thrown value as a BitNetError; aborts (and other reasons given to `AbortController.abort`)
 * stay what they are.
 * @param {unknown} error
 * @param {ErrorCode} [code] for values that carry none
 */
export function toError(error, code = 'internal') {
  if (error instanceof BitNetError || isAbort(error)) return error;
  const e = /** @type {any} */ (error);
  if (typeof e?.code === 'string' && typeof e?.message === 'string' && e.name === 'BitNetError') {
    return new BitNetError(e.code, e.message, { details: e.details, cause: e.cause });
  }
  if (e instanceof RangeError && /memory|allocation/i.test(e.message)) code = 'out_of_memory';
  return new BitNetError(code, String(e?.message ?? e), { cause: error });
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && (error.name === 'AbortError' || error.name === 'TimeoutError');
}

/** Throws the signal's reason (an AbortError unless the caller gave another) once it is aborted.
 * @param {AbortSignal | undefined} signal */
export function throwIfAborted(signal) {
  if (signal?.aborted) throw signal.reason;
}

/** @param {string} message */
export const invalid = (message) => new BitNetError('invalid_argument', message);

/** What crosses a worker boundary: structured cloning drops the fields of an Error subclass.
 * @param {unknown} error */
export function packError(error) {
  const e = /** @type {any} */ (toError(error));
  return { name: e.name, code: e.code, message: e.message, details: e.details, stack: e.stack };
}

/** @param {any} packed */
export function unpackError(packed) {
  if (packed.name !== 'BitNetError') return new DOMException(packed.message, packed.name);
  return new BitNetError(packed.code, packed.message, { details: packed.details });
}
