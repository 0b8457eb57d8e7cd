// Things that are compared take turns, so that a machine that drifts does so for all alike.

import { summarise } from '../../dist/bench/stats.js';
import { formatNumber, formatShare } from '../../dist/bench/table.js';

/**
 * Runs each of `things` once per repetition.
 * @param {Record<string, () => Promise<Record<string, number>>>} things by name; each gives figures by name
 * @returns results in the same order: medians and spreads by name of figure
 */
export async function eachInTurn({ repetitions, say }, things) {
  const runs = Object.entries(things).map(([name, call]) => ({ name, call, figures: [] }));
  for (let i = 0; i < repetitions; i++) {
    for (const { name, call, figures } of runs) {
      say(`${name}${repetitions > 1 ? `, ${i + 1} of ${repetitions}` : ''}`);
      figures.push(await call());
    }
  }
  return { results: runs.map(({ name, figures }) => ({ name, ...summary(figures) })) };
}

function summary(figures) {
  const names = Object.keys(figures[0] ?? {});
  return Object.fromEntries(names.map((name) => [name, summarise(figures.map((each) => each[name]))]));
}

/** A figure of one over that of another; undefined where one is missing. */
export function ratioOf(own, other, figure) {
  const [a, b] = [own?.[figure]?.median, other?.[figure]?.median];
  return a === undefined || b === undefined ? undefined : a / b;
}

/** Rows for people: tokens per second, and shares of names in `shares`. */
export function compared({ results }, figures, shares = ['kept']) {
  const cell = (of, figure) => {
    if (of === undefined) return '-';
    const noise = of.count > 1 ? ` ±${formatShare(of.spread)}` : '';
    return shares.includes(figure) ? formatShare(of.median) : `${formatNumber(of.median)}${noise}`;
  };
  const rows = results.map((each) => [each.name, ...figures.map((figure) => cell(each[figure], figure))]);
  return { table: [['', ...figures], ...rows] };
}
