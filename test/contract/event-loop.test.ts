import { join } from 'node:path';
import { expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';
import { writeBigModel } from './big-model.js';
import { runChild } from './child.js';

// Linux brings the time of a thread that goes on running up to date at ticks, each 4 ms on many systems.
const LIMIT_MS = 15;
const linux = process.platform === 'linux';
if (!linux) console.log('not run, for want of /proc: the event loop beside a large model');

interface Try {
  /** The longest time that a task held the thread, in milliseconds of processor time. */
  readonly held: number;
  /** The longest time of a task that waited for something, in milliseconds of the clock. */
  readonly away: number;
}

type Report = Readonly<Record<'load' | 'run' | 'blocked', readonly Try[]>>;

/** Processor time is the engine's own, so most tries must do; by the clock the best one counts, as programs are stopped. */
function summary(name: string, tries: readonly Try[]): Try {
  const sorted = (of: keyof Try) => tries.map((each) => each[of]).sort((x, y) => x - y);
  const held = sorted('held')[tries.length >> 1] ?? Number.NaN;
  const away = sorted('away')[0] ?? Number.NaN;
  console.log(`${name}: the thread was held for ${held.toFixed(1)} ms, ${away.toFixed(1)} ms in waiting`);
  return { held, away };
}

it.runIf(linux)(
  'a large model that loads and runs leaves the event loop free',
  { timeout: 420_000 },
  async () => {
    await withFolder(async (folder) => {
      // Large, because what is done at once for all weights shows only then.
      const { path } = await writeBigModel(join(folder, 'big.gguf'), 28);
      const report = await runChild<Report>('event-loop', { path, tries: 5 }, { limitMs: 400_000 });
      // If a loop that is really blocked were not seen, the rest would prove nothing.
      const blocked = summary('held for 40 ms, waiting for 40 ms', report.blocked);
      expect(Math.min(blocked.held, blocked.away)).toBeGreaterThan(20);
      for (const name of ['load', 'run'] as const) {
        const { held, away } = summary(name, report[name]);
        expect([name, held < LIMIT_MS, held]).toEqual([name, true, held]);
        expect([name, away < LIMIT_MS, away]).toEqual([name, true, away]);
      }
    });
  },
);
