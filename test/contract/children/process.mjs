// What the programs in this folder share: they run the built package in a process of their own.
import { readdirSync, readFileSync } from 'node:fs';

/** The arguments that `runChild` was given. */
export const args = JSON.parse(process.argv[2]);

/** `VmRSS` (resident now), `VmHWM` (its peak) and the like, in bytes. */
export function status(field) {
  const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(readFileSync('/proc/self/status', 'latin1'));
  return Number(line[1]) * 1024;
}

export const threads = () => readdirSync('/proc/self/task').length;

/** Open file descriptors; the one that lists them is not among them. */
export const descriptors = () => readdirSync('/proc/self/fd').length - 1;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The process at rest: garbage collected, and threads that were told to end have ended. */
export async function settle() {
  for (let i = 0; i < 3; i += 1) {
    globalThis.gc();
    await sleep(20);
  }
}

export function report(result) {
  console.log(JSON.stringify(result));
}
