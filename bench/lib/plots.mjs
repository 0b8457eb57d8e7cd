// Plots as SVG, made here rather than in the page: nothing to run, and it opens from disk.

import * as Plot from '@observablehq/plot';
import { parseHTML } from 'linkedom';

const { document } = parseHTML('<!doctype html><html><body></body></html>');
/** Narrow, so that letters can be read where a phone shrinks it. */
const WIDTH = 480;
const COLORS = { type: 'categorical', scheme: 'observable10', legend: true };

function svg(options) {
  const node = Plot.plot({
    document,
    width: WIDTH,
    marginLeft: 48,
    marginRight: 16,
    marginBottom: 44,
    style: { fontSize: '13px', background: 'transparent', color: 'currentColor' },
    grid: true,
    ...options,
  });
  return node.outerHTML;
}

const best = (results) => {
  const names = new Map();
  for (const each of results) {
    const known = names.get(each.name);
    if (each.kind === 'native' && (!known || each.ms < known.ms)) names.set(each.name, each);
  }
  return [...names.values()];
};

const kindOf = (name) => name.split(' ')[0];

/** Speed of each kernel over operations per byte, under what memory and arithmetic allow. */
export function roofline({ results, peaks }) {
  const [limits] = Object.values(peaks);
  const dots = best(results)
    .filter(({ ops, cached }) => ops > 0 && !cached)
    .map(({ name, ms, ops, bytes }) => ({ name, kernel: kindOf(name), x: ops / bytes, y: ops / ms / 1e6 }));
  const xs = dots.map(({ x }) => x);
  const [low, high] = [Math.min(...xs) / 2, Math.max(...xs) * 2];
  const roof = (peak, limit) => {
    const at = (x) => ({ limit, x, y: Math.min(peak, x * limits.readBytesPerSecond) / 1e9 });
    return [low, peak / limits.readBytesPerSecond, high].map(at);
  };
  const lines = [
    ...roof(limits.int8OpsPerSecond, 'int8 and memory'),
    ...roof(limits.floatOpsPerSecond, 'f32 and memory'),
  ];
  return svg({
    height: 420,
    x: { type: 'log', label: 'operations per byte of weights or cache' },
    y: { type: 'log', label: 'Gop/s' },
    color: COLORS,
    marks: [
      Plot.line(lines, { x: 'x', y: 'y', z: 'limit', strokeDasharray: '4 3', strokeWidth: 1.5 }),
      Plot.text(
        lines.filter(({ x }) => x === high),
        { x: 'x', y: 'y', text: 'limit', textAnchor: 'end', dy: -8 },
      ),
      Plot.dot(dots, { x: 'x', y: 'y', fill: 'kernel', r: 3.5, title: 'name' }),
    ],
  });
}

/** Bars of engines, a plot under the name of each file; `what` is prefill or decode. */
export function againstPeers(reports, what) {
  return reports
    .map(({ model, results }) => `<h3>${nameOf(model)}</h3>${engineBars(results, what)}`)
    .join('\n');
}

function engineBars(results, what) {
  const bars = results.map((each) => ({
    engine:
      results.filter(({ name }) => name === each.name).length > 1
        ? `${each.name}, ${each.setting}`
        : each.name,
    ours: each.name.startsWith('frugal'),
    speed: each[what].median,
  }));
  return svg({
    height: 60 + bars.length * 24,
    marginLeft: 190,
    marginRight: 40,
    marginTop: 8,
    x: { label: `${what}, tokens/s`, ticks: 4 },
    y: { label: null, domain: bars.map(({ engine }) => engine) },
    marks: [
      Plot.barX(bars, { x: 'speed', y: 'engine', fill: ({ ours }) => (ours ? '#4269d0' : '#9c9c9c') }),
      Plot.text(bars, {
        ...{ x: 'speed', y: 'engine', dx: 4, textAnchor: 'start' },
        text: ({ speed }) => (speed < 10 ? speed.toFixed(1) : speed.toFixed(0)),
      }),
      Plot.ruleX([0]),
    ],
  });
}

const nameOf = (path) =>
  path
    .split('/')
    .at(-1)
    .replace(/\.gguf$/, '');

/** Lines: { x, y, series } of each. */
function lines(points, { x, y, log = false }) {
  const xs = [...new Set(points.map((point) => point.x))];
  return svg({
    height: 300,
    x: { label: x, ticks: xs.length <= 6 ? xs : 5, tickFormat: ',d', ...(log && { type: 'log', base: 2 }) },
    y: { label: y, zero: true },
    color: COLORS,
    marks: [
      Plot.line(points, { x: 'x', y: 'y', stroke: 'series', sort: 'x' }),
      Plot.dot(points, { x: 'x', y: 'y', fill: 'series', r: 3.5 }),
      Plot.ruleY([0]),
    ],
  });
}

const label = ({ model, settings }) =>
  `${nameOf(model.file)}${settings.attention ? `, ${settings.attention}` : ''}`;

export function overContext(models) {
  const points = models.flatMap((each) => {
    const row = each.rows.at(-1);
    return [{ series: label(each), x: each.settings.depth, y: row.decode.median }];
  });
  return lines(points, { x: 'tokens in the cache', y: 'decode, tokens/s' });
}

export function overThreads(models) {
  const points = models
    .filter(({ settings }) => settings.depth === 0)
    .flatMap((each) =>
      each.rows.map(({ threads, prefill }) => ({
        series: label(each),
        x: threads,
        y: prefill.median / each.rows[0].prefill.median,
      })),
    );
  return lines(points, { x: 'threads', y: 'prefill, against one thread' });
}

export function overBatch({ results }) {
  const points = best(results).flatMap(({ name, ms, ops }) => {
    const [, type, batch] = /^matmul (\S+) 2048x8192 batch (\d+)$/.exec(name) ?? [];
    return type ? [{ series: type, x: Number(batch), y: ops / ms / 1e6 }] : [];
  });
  return lines(points, { x: 'tokens in a step', y: 'Gop/s', log: true });
}

/** Joules where they are known, else CPU time: never in one plot. */
export function energy(models, kind) {
  const bars = models
    .filter(({ settings }) => settings.depth === 0)
    .flatMap((each) =>
      each.rows
        .filter((row) => (row.energy?.kind ?? 'counted') === kind)
        .map((row) => ({
          what: `${label(each)}, ${row.threads} thr.`,
          y: kind === 'counted' ? row.cpuSecondsPerToken.median * 1000 : row.energy.joulesPerToken,
        })),
    );
  if (bars.length === 0) return undefined;
  const units = {
    measured: 'joules per generated token, measured',
    modelled: 'joules per generated token, modelled from given watts',
    counted: 'CPU milliseconds per generated token',
  };
  return svg({
    height: 60 + bars.length * 26,
    marginLeft: 190,
    x: { label: units[kind], ticks: 4 },
    y: { label: null },
    marks: [Plot.barX(bars, { x: 'y', y: 'what', fill: '#4269d0' }), Plot.ruleX([0])],
  });
}
