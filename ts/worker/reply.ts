import { FrugalError, isFrugalError } from '../errors.js';
import type { Reply, SentError } from './protocol.js';

/** The outcome of `step`; what it throws after an abort says no more than that it was aborted. */
export async function replyTo<T>(step: () => T | Promise<T>, signal?: AbortSignal): Promise<Reply<T>> {
  try {
    return { type: 'value', value: await step() };
  } catch (error) {
    if (signal?.aborted && error === signal.reason) return { type: 'aborted' };
    return { type: 'error', error: toSent(error) };
  }
}

/**
 * The value of a reply.
 * @throws the error of the other side, the reason of `signal` where that aborted the call
 */
export function unwrap<T>(reply: Reply<T>, signal?: AbortSignal): T {
  if (reply.type === 'value') return reply.value;
  if (reply.type === 'error') throw fromSent(reply.error);
  // Any value may be a reason, null too.
  throw signal?.aborted ? signal.reason : new DOMException('The call was aborted', 'AbortError');
}

/** What is left of anything thrown when it has crossed. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function toSent(error: unknown): SentError {
  const message = messageOf(error);
  const cause = error instanceof Error && error.cause !== undefined ? { cause: messageOf(error.cause) } : {};
  if (!isFrugalError(error)) return { message, ...cause };
  const { code, cure, data } = error;
  return { code, cure, data, message, ...cause };
}

function fromSent({ code, cure, data, message, cause }: SentError): Error {
  const why = cause === undefined ? {} : { cause: new Error(cause) };
  if (code === undefined) return new Error(message, why);
  return new FrugalError(code, message, { cure: cure ?? '', ...(data && { data }), ...why });
}
