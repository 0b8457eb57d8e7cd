// npm run bench:report [-- FILE.json ...] [--out report.html] [--results bench/RESULTS.md]
//
// One page with plots, and tables in Markdown, from what `frugal bench --json`, `npm run bench -- --json`,
// `npm run bench:peers -- --json` and `npm run bench:scenarios -- --json` wrote: the files given, else all in .cache/bench.
// Where there are none, the embedded model and a few kernels are measured first.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { setUp } from '../scripts/lib/setup.mjs';
import { ROOT, SetupError, say } from '../scripts/lib/steps.mjs';
import { run } from './lib/child.mjs';
import { CACHE } from './lib/files.mjs';
import { ownOf, stateOf, TARGETS } from './lib/targets.mjs';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string', default: join(CACHE, 'report.html') },
    results: { type: 'string' },
  },
});

await setUp();
const { formatNumber, formatShare, markdownTable } = await import('../dist/bench/table.js');
const { againstPeers, energy, overBatch, overContext, overThreads, roofline } = await import(
  './lib/plots.mjs'
);
mkdirSync(CACHE, { recursive: true });

function findFiles() {
  if (positionals.length > 0) return positionals.map((path) => resolve(path));
  return readdirSync(CACHE)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => join(CACHE, name));
}

/** For each of the two; they take half a minute where nothing else runs. */
const LIMIT_MS = 280_000;

async function measure() {
  const model = join(ROOT, 'models', 'stories-moe-q8_0.gguf');
  const main = join(ROOT, 'dist', 'cli', 'main.js');
  say('measuring the embedded model');
  const sizes = ['-p', 128, '-n', 64, '-t', '1,2'];
  const text = await run(process.execPath, [main, 'bench', model, ...sizes, '--json'], { limitMs: LIMIT_MS });
  writeFileSync(join(CACHE, 'stories-moe-q8_0.json'), text);
  say('measuring kernels');
  const kernels = ['--filter', 'Q4_0', '--json', join(CACHE, 'kernels.json')];
  await run(process.execPath, [join(ROOT, 'bench', 'micro.mjs'), ...kernels], { limitMs: LIMIT_MS });
}

let files = findFiles();
if (files.length === 0) {
  say(`nothing in ${CACHE}: measuring a little first`);
  try {
    await measure();
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    // A report of what there is, is better than none.
    say(`not all could be measured: ${error.message}`);
  }
  files = findFiles();
}
if (files.length === 0) process.exit(1);
const documents = files.map((path) => ({ path, ...JSON.parse(readFileSync(path, 'utf8')) }));
const models = documents.filter(({ rows }) => rows);
const peers = mergePeers(documents.filter(({ missing }) => missing));
// Of a scenario that was run more than once, the latest.
const scenarios = new Map(documents.flatMap((each) => each.scenarios ?? []).map((each) => [each.name, each]));
const kernels = documents.find(({ results, peaks }) => results && peaks);
/** Runs on the same file as one: engines may have been measured apart, the latest counts. */
function mergePeers(reports) {
  const merged = new Map();
  for (const report of reports) {
    const { results = [], missing = [], ...known } = merged.get(report.model) ?? {};
    const again = ({ name, setting }) =>
      report.results.some((each) => each.name === name && each.setting === setting);
    merged.set(report.model, {
      ...known,
      ...report,
      results: [...results.filter((each) => !again(each)), ...report.results],
      missing: [...missing, ...report.missing],
    });
  }
  return [...merged.values()];
}

const nameOf = (path) => basename(path).replace(/\.(json|gguf)$/, '');
const data = {
  model: (name) =>
    models.find(
      (each) =>
        nameOf(each.model.file) === name && each.settings.depth === 0 && each.backend.kind === 'native',
    ),
  peers: (name) => peers.find((each) => nameOf(each.model) === name),
  scenario: (name) => scenarios.get(name)?.values,
};
const machine = documents[0].machine;
const states = TARGETS.map((each) => {
  const { state, text } = stateOf(each, data);
  return { topic: each.topic, target: each.text, got: text, state };
});

const withSpread = ({ median, spread, count }) =>
  count === 0 ? '-' : `${formatNumber(median)}${count > 1 ? ` ±${(spread * 100).toFixed(0)}%` : ''}`;

function energyText({ energy: of, cpuSecondsPerToken }) {
  if (of?.joulesPerToken === undefined) return `CPU ${formatNumber(cpuSecondsPerToken.median * 1000)} ms`;
  return `${of.kind === 'measured' ? '' : 'about '}${formatNumber(of.joulesPerToken)} J ${of.kind}`;
}

function modelTable() {
  const head = [
    ...['model', 'threads', 'depth', 'prefill tok/s', 'of peak', 'decode tok/s', 'of bandwidth'],
    ...['streamed tok/s', 'first token ms', 'load ms', 'per token'],
  ];
  const rows = models.flatMap((each) =>
    each.rows.map((row) => [
      `${nameOf(each.model.file)} (${each.backend.kind} ${each.backend.isa})`,
      String(row.threads),
      String(each.settings.depth),
      withSpread(row.prefill),
      formatShare(row.computeShare),
      withSpread(row.decode),
      formatShare(row.bandwidthShare),
      row.stream ? withSpread(row.stream) : '-',
      row.firstTokenMs ? withSpread(row.firstTokenMs) : '-',
      withSpread(each.loadMs),
      energyText(row),
    ]),
  );
  return [head, ...rows];
}

function limitsTable() {
  const rows = models.flatMap((each) =>
    each.rows
      .filter(({ peaks }) => peaks)
      .map(({ threads, peaks }) => [
        nameOf(each.model.file),
        String(threads),
        formatNumber(peaks.readBytesPerSecond / 1e9),
        formatNumber(peaks.int8OpsPerSecond / 1e9),
        formatNumber(peaks.floatOpsPerSecond / 1e9),
        each.machine.load.toFixed(1),
      ]),
  );
  return [['in the run of', 'threads', 'read GB/s', 'int8 Gop/s', 'f32 Gop/s', 'load before'], ...rows];
}

function peerTable() {
  const head = [
    'model',
    'engine',
    'setting',
    'tokens',
    'prefill tok/s',
    'frugal is',
    'decode tok/s',
    'frugal is',
  ];
  const rows = peers.flatMap(({ model, results }) => {
    const ratio = (of, what) => {
      const mine = ownOf(results, of)?.[what].median;
      return mine ? `${(mine / of[what].median).toFixed(2)}x` : '-';
    };
    return results.map((each) => [
      nameOf(model),
      `${each.name} ${each.version}`,
      each.setting,
      `${each.prompt}/${each.generate}`,
      withSpread(each.prefill),
      ratio(each, 'prefill'),
      withSpread(each.decode),
      ratio(each, 'decode'),
    ]);
  });
  return [head, ...rows];
}

function kernelTable() {
  const head = ['kernel', 'on', 'median µs', 'rate', 'of peak'];
  const rows = kernels.results
    .filter(({ isa }) => isa !== 'scalar')
    .map(({ name, target, ms, spread, bytes, ops, unit, share }) => [
      name,
      target,
      `${formatNumber(ms * 1000)} ±${(spread * 100).toFixed(0)}%`,
      unit === 'bytes' ? `${formatNumber(bytes / ms / 1e6)} GB/s` : `${formatNumber(ops / ms / 1e6)} Gop/s`,
      formatShare(share),
    ]);
  return [head, ...rows];
}

const describe = ({ text, note }) => `${text[0].toUpperCase()}${text.slice(1)}.${note ? ` ${note}` : ''}`;

const targetTable = () => [
  ['state', 'measured', 'target', 'of'],
  ...states.map(({ topic, target, got, state }) => [state, got, target, topic]),
];

const SET = `${machine.cpu}, ${machine.cores} cores, ${(machine.memoryBytes / 2 ** 30).toFixed(0)} GiB; ${machine.system}; Node ${machine.node}; frugal ${machine.frugal}; ${machine.date.slice(0, 10)}`;
const EXPLAIN =
  'Medians of repetitions that took turns, ± half the distance between the quartiles. Shares are of limits measured in the same run: decode of the read bandwidth (bytes of weights, keys and values per token times tokens per second), prefill of the peak of its arithmetic (int8 or f32).';

function markdown() {
  const count = (state) => states.filter((each) => each.state === state).length;
  const parts = [
    '# Results\n\nMade by `npm run bench:report -- --results bench/RESULTS.md`; not edited by hand.',
    `${SET}.`,
    EXPLAIN,
    `## Targets\n\n${count('met')} met, ${count('missed')} missed, ${count('not measured here')} not measured in these runs.`,
    markdownTable(
      targetTable().map(([state, ...rest]) => [state === 'missed' ? '**missed**' : state, ...rest]),
    ),
    '## Models\n\n`npx frugal bench MODEL -p 512 -n 64 -t 1,2 --json`; models of real shapes with random weights from `node bench/models.mjs`.',
    markdownTable(modelTable()),
    '### Limits of the machine',
    markdownTable(limitsTable()),
  ];
  if (peers.length > 0) {
    parts.push(
      '## Other engines\n\n`npm run bench:peers -- --model MODEL --json FILE`: the same file, threads and length of prompt; in browsers, where others are slow, a shorter one.',
    );
    parts.push(markdownTable(peerTable()));
    const said = new Set(peers.flatMap(({ missing, notes }) => [...missing, ...notes]));
    if (said.size > 0) parts.push([...said].map((text) => `- ${text}`).join('\n'));
  }
  if (scenarios.size > 0)
    parts.push(
      '## Scenarios\n\n`npm run bench:scenarios -- --json FILE`; tokens per second, medians of runs that took turns. Models are slices, but for WebAssembly and for sequences that decode together: so many times fewer layers and words than the real shape, in its proportions.',
      ...[...scenarios.values()].flatMap(({ name, table, ...of }) => [
        `### ${name}\n\n${describe(of)}`,
        markdownTable(table),
      ]),
    );
  if (kernels)
    parts.push(
      '## Kernels\n\n`npm run bench -- --json FILE`; what stays in caches may exceed the limit of memory.',
      markdownTable(kernelTable()),
    );
  return `${parts.map((part) => part.trimEnd()).join('\n\n')}\n`;
}

const escapeHtml = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

/** Words are on the left, as the first column is; figures on the right. */
function htmlTable([head, ...rows], classOf = () => '') {
  const isFigure = (cell) => /^(-$|[-+]?\d)/.test(cell);
  const words = head.map((_, i) => i === 0 || !rows.every((row) => isFigure(row[i])));
  const line = (cells, tag) =>
    cells
      .map((cell, i) => `<${tag}${words[i] ? ' class="words"' : ''}>${escapeHtml(cell)}</${tag}>`)
      .join('');
  const body = rows.map((row) => `<tr class="${classOf(row)}">${line(row, 'td')}</tr>`).join('\n');
  return `<div class="scroll"><table><thead><tr>${line(head, 'th')}</tr></thead><tbody>${body}</tbody></table></div>`;
}

const STYLE = `
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { margin: 0.5rem 0; } h2 { margin-top: 2.5rem; } p { max-width: 46rem; }
h3 { margin: 1rem 0 0; font-size: 1rem; }
figure { margin: 1rem 0; } figure figure { margin: 0; } svg { width: 100%; max-width: 36rem; height: auto; } svg[width='15'] { width: 15px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; } .words { text-align: left; }
:is(th, td):first-child { position: sticky; left: 0; background: Canvas; padding-left: 0; }
.targets td:nth-child(3) { white-space: normal; min-width: 12rem; }
tr.met td:first-child { color: #2a9d4a; } tr.missed td:first-child { color: #d6402b; font-weight: 600; }
@media (max-width: 40rem) {
  td:first-child { white-space: normal; min-width: 6.5rem; }
  .targets :is(table, tbody) { display: block; } .targets thead { display: none; }
  .targets tr { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); padding: 0.3rem 0; }
  .targets td { border: 0; padding: 0.1rem 0; } .targets td:nth-child(3) { grid-column: 1 / -1; } .targets td:nth-child(4) { display: none; }
}
summary { cursor: pointer; }`;

function section(title, text, content) {
  return content ? `<section><h2>${title}</h2><p>${text}</p><figure>${content}</figure></section>` : '';
}

function page() {
  const atDepth = new Set(models.map(({ settings }) => settings.depth)).size > 1;
  const parts = [
    section(
      'Targets',
      'Those that are missed are shown like the others.',
      `<div class="targets">${htmlTable(targetTable(), (row) => row[0].split(' ')[0])}</div>`,
    ),
    section(
      'Roofline',
      'Each dot is a kernel; the dashed lines are what memory and arithmetic allow. What stays in caches may be above.',
      kernels && roofline(kernels),
    ),
    section(
      'Against other engines: prefill',
      'The same file, threads and length of prompt; in browsers, where others are slow, a shorter one.',
      peers.length > 0 && againstPeers(peers, 'prefill'),
    ),
    section(
      'Against other engines: decode',
      'As text streamed through the public API where there is one.',
      peers.length > 0 && againstPeers(peers, 'decode'),
    ),
    section(
      'Over context length',
      'Generated tokens per second with so many tokens in the cache.',
      atDepth && overContext(models),
    ),
    section(
      'Over threads',
      'Prefill against one thread of the same run.',
      models.length > 0 && overThreads(models),
    ),
    section(
      'Over batch',
      'Fused matrix products, 2048 x 8192, by tokens in a step.',
      kernels && overBatch(kernels),
    ),
    section('Energy: measured', 'Counters of the hardware, the whole machine.', energy(models, 'measured')),
    section('Energy: modelled', 'From watts that were given, not measured.', energy(models, 'modelled')),
    section(
      'CPU time',
      'This machine has no energy counters, and no watts were given.',
      energy(models, 'counted'),
    ),
    section('Models', EXPLAIN, models.length > 0 && htmlTable(modelTable())),
    peers.length > 0
      ? section('Other engines', 'Default and best settings of each.', htmlTable(peerTable()))
      : '',
    ...[...scenarios.values()].map(({ name, table, ...of }) =>
      section(`Scenario: ${name}`, describe(of), htmlTable(table)),
    ),
    kernels
      ? `<section><h2>Kernels</h2><details><summary>All ${kernels.results.length} figures</summary>${htmlTable(kernelTable())}</details></section>`
      : '',
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>frugal: benchmarks</title>
<style>${STYLE}</style>
</head>
<body>
<h1>frugal: benchmarks</h1>
<p>${escapeHtml(SET)}</p>
${parts.join('\n')}
</body>
</html>
`;
}

writeFileSync(flags.out, page());
say(`${flags.out}: ${files.length} files`);
if (flags.results) {
  writeFileSync(flags.results, markdown());
  say(flags.results);
}
