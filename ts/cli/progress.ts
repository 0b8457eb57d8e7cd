export interface Progress {
  /** @param done share of the work, 0 to 1 */
  update(what: string, done: number): void;
  /** Clears the line. */
  end(): void;
}

const QUIET_MS = 2000;
const REDRAW_MS = 100;
const SPARSE_MS = 5000;

/**
 * Progress on stderr for work of more than two seconds: one line that is rewritten on a terminal,
 * otherwise a line every few seconds.
 */
export function createProgress(): Progress {
  const terminal = process.stderr.isTTY;
  let next = performance.now() + QUIET_MS;
  let drawn = false;
  return {
    update(what, done) {
      const now = performance.now();
      if (now < next) return;
      next = now + (terminal ? REDRAW_MS : SPARSE_MS);
      drawn = true;
      const text = `${what} ${Math.floor(done * 100)}%`;
      process.stderr.write(terminal ? `\r\x1b[K${text}` : `${text}\n`);
    },
    end() {
      if (drawn && terminal) process.stderr.write('\r\x1b[K');
      drawn = false;
    },
  };
}
