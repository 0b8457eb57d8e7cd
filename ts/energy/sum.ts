import type { Energy } from './types.js';

/**
 * The whole of several stretches that one meter measured; undefined of none. Where the energy of one is not known, that of
 * the whole is not.
 * @throws RangeError of measured and modelled ones
 */
export function sumEnergies(energies: readonly Energy[]): Energy | undefined {
  return energies.reduce<Energy | undefined>((sum, each) => (sum ? add(sum, each) : each), undefined);
}

function add(a: Energy, b: Energy): Energy {
  const cost = { seconds: a.seconds + b.seconds, cpuSeconds: a.cpuSeconds + b.cpuSeconds };
  if (a.kind === 'measured' && b.kind === 'measured') {
    const domains = Object.fromEntries(
      Object.entries(a.domains).map(([name, joules]) => [name, joules + (b.domains[name] ?? 0)]),
    );
    return { ...a, ...cost, joules: a.joules + b.joules, domains };
  }
  if (a.kind === 'modelled' && b.kind === 'modelled') return { ...a, ...cost, joules: a.joules + b.joules };
  if (a.kind === 'counted') return { ...a, ...cost };
  if (b.kind === 'counted') return { ...b, ...cost };
  throw new RangeError('measured and modelled energy are not added');
}
