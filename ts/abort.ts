const waiting = new WeakMap<AbortSignal, Set<{ readonly run: () => void }>>();

/**
 * Calls `run` once when the signal is aborted, unless the function given back is called before; not for one that is aborted
 * already. Calls that share a signal share its one listener: runtimes take more than ten for a leak.
 */
export function onAbort(signal: AbortSignal | undefined, run: () => void): () => void {
  if (signal === undefined || signal.aborted) return () => {};
  const calls = waiting.get(signal) ?? listen(signal);
  const call = { run };
  calls.add(call);
  return () => {
    calls.delete(call);
    if (calls.size === 0 && waiting.get(signal) === calls) stopListening(signal);
  };
}

function listen(signal: AbortSignal) {
  const calls = new Set<{ readonly run: () => void }>();
  waiting.set(signal, calls);
  signal.addEventListener('abort', callAll, { once: true });
  return calls;
}

function callAll({ target }: Event): void {
  const signal = target as AbortSignal;
  const calls = waiting.get(signal);
  stopListening(signal);
  for (const { run } of calls ?? []) run();
}

function stopListening(signal: AbortSignal): void {
  waiting.delete(signal);
  signal.removeEventListener('abort', callAll);
}

/** The result, unless the signal is aborted before. */
export function settled<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    const release = onAbort(signal, () => reject(signal.reason));
    promise.then(resolve, reject).finally(release);
  });
}
