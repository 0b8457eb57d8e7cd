import type { Command } from 'commander';
import { type BenchRow, benchModel, type ModelBench } from '../bench/model.js';
import type { Samples } from '../bench/stats.js';
import { formatNumber, formatShare, formatTable } from '../bench/table.js';
import { inRange } from '../engine/check.js';
import { THREADS_RANGE } from '../engine/load.js';
import { formatBytes, numberParser, toJson } from './numbers.js';
import { createProgress } from './progress.js';
import { addComputingFlags, addPlanFlags, type LoadFlags, loadOptions } from './shared.js';
import { interruptible, print, usageError } from './terminal.js';

interface BenchFlags extends Omit<LoadFlags, 'threads' | 'efficiency'> {
  readonly prompt: number;
  readonly generate: number;
  readonly depth: number;
  readonly threads?: readonly number[];
  readonly repetitions: number;
  readonly json?: boolean;
}

const COUNT = { min: 0, max: 1 << 20, integer: true };

export function addBench(program: Command): void {
  const command = program
    .command('bench')
    .description(
      'Measure a model: prefill, decode, time to the first token, load, memory, CPU time and bytes per token; ' +
        'the limits of the machine are measured in between. Medians of repetitions that take turns.',
    )
    .argument('<model>', 'a GGUF file or its http(s) address')
    .option('-p, --prompt <tokens>', 'tokens of the prompt', numberParser(COUNT), 512)
    .option('-n, --generate <tokens>', 'tokens to generate', numberParser(COUNT), 128)
    .option('-d, --depth <tokens>', 'tokens in the cache before', numberParser(COUNT), 0)
    .option('-r, --repetitions <count>', 'times', numberParser({ min: 1, max: 1000, integer: true }), 3)
    .option(
      '-t, --threads <counts>',
      'numbers of threads to compute with, such as 1,2 (default: all cores)',
      parseThreads,
    );
  addPlanFlags(addComputingFlags(command)).option('--json', 'print one JSON object').action(bench);
}

function parseThreads(text: string): readonly number[] {
  const counts = text.split(',').map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  if (counts.every((count) => inRange(count, THREADS_RANGE))) return counts;
  throw usageError('-t takes numbers of threads from 1 to 1024, as in 1,2');
}

async function bench(path: string, flags: BenchFlags): Promise<void> {
  await interruptible(async (signal) => {
    const { prompt, generate, depth, repetitions, threads, json, ...load } = flags;
    if (prompt === 0 && generate === 0) throw usageError('-p and -n are both 0: nothing to measure');
    const { availableParallelism } = await import('node:os');
    const progress = createProgress();
    const result = await benchModel(
      path,
      { prompt, generate, depth, repetitions, threads: threads ?? [availableParallelism()] },
      { ...loadOptions(load), signal },
      progress.update,
    ).finally(() => progress.end());
    await print(json ? `${toJson(result)}\n` : formatBench(result));
  });
}

function formatBench({ machine, model, backend, settings, ...of }: ModelBench): string {
  const { rows, memory } = of;
  const peaks = rows.map(({ threads, peaks: at }) => {
    if (!at) return 'the limits of the machine were not measured: the native addon is missing';
    const rates = [at.readBytesPerSecond, at.int8OpsPerSecond, at.floatOpsPerSecond].map(
      (rate) => rate / 1e9,
    );
    const [read = 0, int8 = 0, float = 0] = rates;
    return `limits, ${threads} thread${threads === 1 ? '' : 's'}: read ${read.toFixed(1)} GB/s, int8 ${int8.toFixed(0)} Gop/s, f32 ${float.toFixed(0)} Gop/s`;
  });
  const lines = [
    `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}; Node ${machine.node}; frugal ${machine.frugal}; load ${machine.load.toFixed(1)}`,
    `${model.file}: ${model.name}, ${formatNumber(model.parameters / 1e9)} G parameters, ${model.types}, ${formatBytes(model.weightBytes)}`,
    `${backend.kind} ${backend.isa}, chunk ${settings.chunk}, depth ${settings.depth}, cache ${settings.kvCache}, ${settings.repetitions} repetitions`,
    ...peaks,
    `load ${withSpread(of.loadMs)} ms, with the first token of a prompt of 16 ${withSpread(of.loadToFirstTokenMs)} ms`,
    `memory: weights ${formatBytes(memory.packedBytes)}, caches ${formatBytes(memory.kvBytes)}, peak of the process ${formatBytes(memory.peakBytes)}`,
    '',
  ];
  return `${lines.join('\n')}\n${formatTable([headOf(settings, model.arithmetic), ...rows.map(cellsOf)])}`;
}

function headOf({ prompt, generate }: ModelBench['settings'], arithmetic: string): string[] {
  return [
    'threads',
    `prefill ${prompt} tok/s`,
    `of ${arithmetic} peak`,
    `decode ${generate} tok/s`,
    'of bandwidth',
    'streamed tok/s',
    'first token ms',
    'CPU ms/token',
    'CPU/wall/thread',
    'MB/token',
    'J/token',
  ];
}

function cellsOf(row: BenchRow): string[] {
  return [
    String(row.threads),
    withSpread(row.prefill),
    formatShare(row.computeShare),
    withSpread(row.decode),
    formatShare(row.bandwidthShare),
    row.stream ? withSpread(row.stream) : '-',
    row.firstTokenMs ? withSpread(row.firstTokenMs) : '-',
    formatNumber(row.cpuSecondsPerToken.median * 1000),
    formatShare(row.cpuShare),
    formatNumber(row.bytesPerToken / 1e6),
    formatJoules(row.energy),
  ];
}

/** A modelled figure never looks like a measured one. */
function formatJoules(energy: BenchRow['energy']): string {
  if (energy?.joulesPerToken === undefined) return 'unknown';
  const joules = formatNumber(energy.joulesPerToken);
  return energy.kind === 'measured' ? `${joules} measured` : `about ${joules} modelled`;
}

function withSpread({ median, spread, count }: Samples): string {
  const noise = count > 1 ? ` ±${(spread * 100).toFixed(0)}%` : '';
  return count === 0 ? '-' : `${formatNumber(median)}${noise}`;
}
