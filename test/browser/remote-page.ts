/** Runs the calls of `engine-page.ts` that `remote.ts` hands out, for browsers that nothing else steers from outside. */
import { type Calls, calls } from './engine-page.js';

for (;;) {
  const order = await (await fetch('/next')).json();
  const call = calls[order.name as keyof Calls] as (...args: unknown[]) => unknown;
  let answer: { value: unknown } | { error: string };
  try {
    answer = { value: await call(...order.args) };
  } catch (error) {
    answer = { error: error instanceof Error ? `${error.message}\n${error.stack}` : `${error}` };
  }
  await fetch('/answer', { method: 'POST', body: JSON.stringify(answer) });
}
