import { join } from 'node:path';
import { expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';
import { writeBigModel } from './big-model.js';
import { runChild } from './child.js';

const LIMIT_MS = 10;
const linux = process.platform === 'linux';
if (!linux) console.log('not run, for want of /proc: the event loop beside a large model');

interface Try {
  /** The longest time that a task held the thread: processor time in milliseconds. */
  readonly held: number;
  /** The longest delay of a timer while the work ran, and just before with nothing to do, in milliseconds. */
  readonly delay: number;
  readonly idle: number;
}

type Report = Readonly<Record<'load' | 'run' | 'blocked', readonly Try[]>>;

/**
 * Processor time is the engine's own, so most tries must do; the clock runs on while other programs have the
 * processor, so for timers the best try counts, beside the best of the idle process.
 */
function summary(name: string, tries: readonly Try[]): { held: number; added: number } {
  const sorted = (of: keyof Try) => tries.map((each) => each[of]).sort((x, y) => x - y);
  const held = sorted('held')[tries.length >> 1] ?? Number.NaN;
  const added = (sorted('delay')[0] ?? Number.NaN) - (sorted('idle')[0] ?? Number.NaN);
  console.log(
    `${name}: the thread was held for ${held.toFixed(1)} ms, timers ${added.toFixed(1)} ms later than idle`,
  );
  return { held, added };
}

it.runIf(linux)(
  'a large model that loads and runs leaves the event loop free',
  { timeout: 120_000 },
  async () => {
    await withFolder(async (folder) => {
      // Large, because what is done at once for all weights shows only then.
      const { path } = await writeBigModel(join(folder, 'big.gguf'), 28);
      const report = await runChild<Report>('event-loop', { path, tries: 5 }, { limitMs: 100_000 });
      // If a loop that is really blocked were not seen, the rest would prove nothing.
      const blocked = summary('blocked for 40 ms', report.blocked);
      expect(Math.min(blocked.held, blocked.added)).toBeGreaterThan(20);
      for (const name of ['load', 'run'] as const) {
        const { held, added } = summary(name, report[name]);
        expect([name, held < LIMIT_MS, held]).toEqual([name, true, held]);
        expect([name, added < LIMIT_MS, added]).toEqual([name, true, added]);
      }
    });
  },
);
