// Calls into a worker, over any message port.
//
//   → { id, op, args }            a call                ← { id, value } | { id, error }
//   → { id, abort: reason }       give that call up     ← { id, event }   while it runs
//   → { id, stop: true }          end it early, with what it has
//
// Bulk data is transferred, not copied. An aborted call settles at once on the calling side; the
// worker stops at its next step.
import { packError, unpackError, BitNetError } from './errors.js';

/**
 * Something that takes calls: the engine itself, or a worker that holds one.
 * @typedef {object} Endpoint
 * @property {(op: string, args: object, io?: CallIO) => Promise<any>} call
 * @property {() => void} close
 * @property {boolean} [inPlace]  runs in this thread
 *
 * @typedef {object} CallIO
 * @property {(event: any) => void} [onEvent]
 * @property {AbortSignal} [signal]  the call rejects with its reason
 * @property {AbortSignal} [stop]  the call ends early and resolves
 * @property {Transferable[]} [transfer]
 */

/** Answers the calls that arrive at `port` with the methods of `target`.
 * @param {any} port @param {Record<string, Function>} target */
export function serve(port, target) {
  /** @type {Map<number, { abort: AbortController, stop: AbortController }>} */
  const running = new Map();
  port.addEventListener('message', async (/** @type {MessageEvent} */ message) => {
    const { id, op, args, abort, stop } = message.data ?? {};
    if (typeof id !== 'number') return;
    if (!op) {
      if (stop) running.get(id)?.stop.abort();
      else running.get(id)?.abort.abort(abort ? unpackError(abort) : undefined);
      return;
    }
    const call = { abort: new AbortController(), stop: new AbortController() };
    running.set(id, call);
    try {
      const onEvent = (/** @type {any} */ event) => port.postMessage({ id, event });
      const value = await target[op](args, { onEvent, signal: call.abort.signal, stop: call.stop.signal });
      const transfer = ArrayBuffer.isView(value) ? [value.buffer] : [];
      port.postMessage({ id, value }, transfer);
    } catch (error) {
      port.postMessage({ id, error: packError(error) });
    } finally {
      running.delete(id);
    }
  });
  port.start?.();
}

/** An endpoint in this thread.
 * @param {Record<string, Function>} target @returns {Endpoint} */
export function local(target) {
  return {
    call: async (op, args, io = {}) => target[op](args, io),
    close() {},
  };
}

/** An endpoint behind `worker`.
 * @param {any} worker  a Worker or anything with its message events
 * @param {() => void} [terminate] @returns {Endpoint} */
export function remote(worker, terminate = () => worker.terminate?.()) {
  let next = 1;
  /** @type {BitNetError | undefined} */
  let dead;
  /** @type {Map<number, { resolve: Function, reject: Function, onEvent?: Function }>} */
  const calls = new Map();

  const fail = (/** @type {BitNetError} */ error) => {
    dead ??= error;
    for (const call of calls.values()) call.reject(dead);
    calls.clear();
  };
  worker.addEventListener('message', (/** @type {MessageEvent} */ { data }) => {
    const call = calls.get(data?.id);
    if (!call) return; // Aborted: nobody waits any more.
    if ('event' in data) return call.onEvent?.(data.event);
    calls.delete(data.id);
    if (data.error) call.reject(unpackError(data.error));
    else call.resolve(data.value);
  });
  // The worker's script could not be loaded, or threw outside a call.
  worker.addEventListener('error', (/** @type {any} */ event) => {
    event.preventDefault?.();
    const why = event.message ?? event.error?.message ?? 'its script could not be loaded';
    fail(new BitNetError('internal', `the worker failed: ${why}`));
  });
  worker.addEventListener('messageerror', () => {
    fail(new BitNetError('internal', 'a message of the worker could not be read'));
  });

  return {
    call(op, args, { onEvent, signal, stop, transfer = [] } = {}) {
      return new Promise((resolve, reject) => {
        if (dead) return reject(dead);
        if (signal?.aborted) return reject(signal.reason);
        const id = next++;
        const onAbort = () => {
          calls.delete(id);
          worker.postMessage({ id, abort: packError(signal?.reason) });
          done(reject)(signal?.reason);
        };
        const onStop = () => worker.postMessage({ id, stop: true });
        const done = (/** @type {Function} */ settle) => (/** @type {any} */ value) => {
          signal?.removeEventListener('abort', onAbort);
          stop?.removeEventListener('abort', onStop);
          settle(value);
        };
        calls.set(id, { resolve: done(resolve), reject: done(reject), onEvent });
        signal?.addEventListener('abort', onAbort, { once: true });
        stop?.addEventListener('abort', onStop, { once: true });
        try {
          worker.postMessage({ id, op, args }, transfer);
          if (stop?.aborted) onStop();
        } catch (error) {
          calls.delete(id);
          done(reject)(new BitNetError('invalid_argument', `cannot be sent to a worker: ${/** @type {any} */ (error).message}`, { cause: error }));
        }
      });
    },
    close() {
      fail(new BitNetError('invalid_argument', 'the model has been disposed of'));
      terminate();
    },
  };
}
