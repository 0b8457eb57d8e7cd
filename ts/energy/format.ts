import type { Energy } from './types.js';

/** Joules in words that tell measured from modelled. */
export function formatEnergy(energy: Energy & { readonly bytesMoved?: number }, tokens: number): string {
  const cpu = `CPU ${energy.cpuSeconds.toFixed(2)} s`;
  if (energy.kind === 'counted') {
    const moved = energy.bytesMoved === undefined ? '' : `, ${(energy.bytesMoved / 1e9).toFixed(1)} GB read`;
    return `${cpu}${moved} (energy unknown)`;
  }
  const each = tokens > 0 ? ` (${(energy.joules / tokens).toFixed(2)} per token)` : '';
  const joules = `${energy.joules.toFixed(1)} J${each}`;
  if (energy.kind === 'measured') return `measured ${joules} of ${Object.keys(energy.domains).join(', ')}`;
  return `about ${joules}, modelled from ${energy.watts.idle} to ${energy.watts.busy} W, ${cpu}`;
}
