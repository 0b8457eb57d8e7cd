/** What the tests of the engine use in a page: the package as browsers get it, and as one uses it without a worker. */
import { load as loadInPage } from '../../dist/web.js';
import {
  type Generation,
  isFrugalError,
  type LoadOptions,
  load,
  type Model,
  removeCached,
} from '../../ts/browser.js';
import { createSha256 } from '../../ts/gguf/sha256.js';
import { type Outcome, runCases } from '../conformance/suite.js';

const models = new Map<string, Model>();

async function fetchBlob(path: string): Promise<Blob> {
  return (await fetch(path)).blob();
}

/** Loads a file of the site from a Blob and keeps the model; gives what runs it. */
async function open(path: string, options: LoadOptions = {}): Promise<Model['info']['backend']> {
  const model = await load(await fetchBlob(path), options);
  models.set(path, model);
  return model.info.backend;
}

/** The same from its URL. */
async function openUrl(path: string, options: LoadOptions = {}): Promise<Model['info']['backend']> {
  const model = await load(new URL(path, location.href), options);
  models.set(path, model);
  return model.info.backend;
}

const opened = (path: string): Model => {
  const model = models.get(path);
  if (model === undefined) throw new Error(`${path} is not open`);
  return model;
};

async function close(path: string): Promise<void> {
  await opened(path).dispose();
  models.delete(path);
}

async function digest(path: string, prompt: readonly number[]): Promise<string> {
  const hash = createSha256();
  for await (const row of opened(path).score(prompt)) {
    hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
  }
  return hash.hex();
}

const complete = async (path: string, prompt: string, maxTokens: number) =>
  (await opened(path).complete(prompt, { temperature: 0, maxTokens, ignoreEnd: true })).text;

/**
 * The longest that a task of the page (if 50 ms or more) and a timer's delay took while the model writes, in milliseconds.
 * @param hold milliseconds that the page is held up meanwhile, to see that this is seen
 */
async function watch(
  path: string,
  maxTokens: number,
  hold = 0,
): Promise<{ task: number; delay: number; tokens: number }> {
  let task = 0;
  let delay = 0;
  let last = performance.now();
  const note = (entries: PerformanceEntryList) => {
    for (const { duration } of entries) task = Math.max(task, duration);
  };
  const observer = new PerformanceObserver((list) => note(list.getEntries()));
  observer.observe({ type: 'longtask' });
  const timer = setInterval(() => {
    delay = Math.max(delay, performance.now() - last);
    last = performance.now();
  }, 1);
  const writing = opened(path).complete('Once upon a time', { maxTokens, ignoreEnd: true, seed: 1 });
  setTimeout(() => {
    for (const until = performance.now() + hold; performance.now() < until; );
  }, 0);
  const { usage } = await writing;
  clearInterval(timer);
  // A task is known a turn after its end; what is known may not have been handed out yet.
  await new Promise((resolve) => setTimeout(resolve, 50));
  note(observer.takeRecords());
  observer.disconnect();
  return { task, delay, tokens: usage.completionTokens };
}

/** Pieces that come after an abort, and how the loop ended. */
async function abort(path: string): Promise<{ after: number; reason: string }> {
  const stop = new AbortController();
  const generation: Generation = opened(path).generate('Once', {
    signal: stop.signal,
    ignoreEnd: true,
    seed: 1,
  });
  for (let i = 0; i < 5; i++) await generation.next();
  const pending = generation.next();
  stop.abort(new Error('enough'));
  let after = 0;
  try {
    for (let taken = await pending; !taken.done; taken = await generation.next()) after += 1;
    return { after, reason: 'none' };
  } catch (error) {
    return { after, reason: (error as Error).message };
  }
}

/** How the load of hostile bytes ends, in the page itself: a worker for each would take longer than the load. */
async function outcome(path: string): Promise<string> {
  let model: Model;
  try {
    model = await loadInPage(await fetchBlob(path), { threads: 1 });
  } catch (error) {
    return isFrugalError(error) ? error.code : `${error}`;
  }
  try {
    await model.complete([1, 2, 3], { maxTokens: 2, ignoreEnd: true, temperature: 0 });
    return 'loaded';
  } catch (error) {
    return isFrugalError(error) ? `loaded, ${error.code}` : `${error}`;
  } finally {
    await model.dispose();
  }
}

/** How a load fails, aborted after `stopMs` where that is given; the page as it is resolves the path. */
async function refusal(
  path: string,
  stopMs?: number,
  options: LoadOptions = {},
): Promise<{ code?: string; message: string; cure?: string }> {
  const stop = new AbortController();
  if (stopMs !== undefined) setTimeout(() => stop.abort(new Error('enough')), stopMs);
  try {
    await (await load(path, { ...options, signal: stop.signal })).dispose();
    return { message: 'loaded' };
  } catch (error) {
    const { message } = error as Error;
    return isFrugalError(error) ? { code: error.code, message, cure: error.cure } : { message };
  }
}

/** What removing the file of a cached model comes to. */
const remove = (path: string): Promise<boolean | string> =>
  removeCached(path).catch((error) => (isFrugalError(error) ? error.code : `${error}`));

/** The suite that all runtimes hold, on the site's models. */
async function conform(options: LoadOptions): Promise<Record<string, Outcome>> {
  const [model, mixture] = await Promise.all(
    ['/suite/model', '/suite/mixture'].map(fetchBlob) as [Promise<Blob>, Promise<Blob>],
  );
  return runCases({ load }, { model, mixture, pinned: [], options });
}

export const calls = {
  conform,
  open,
  openUrl,
  close,
  digest,
  complete,
  watch,
  abort,
  outcome,
  refusal,
  remove,
};
export type Calls = typeof calls;
Object.assign(globalThis, { calls });
