import { type Command, Option } from 'commander';
import { QUANTIZE_TYPES, type QuantizeReport, type QuantizeType, quantize } from '../quantize/index.js';
import { formatBytes, toJson } from './numbers.js';
import { createProgress } from './progress.js';
import { interruptible, note, print } from './terminal.js';

interface QuantizeFlags {
  readonly type: QuantizeType;
  readonly json?: boolean;
}

export function addQuantize(program: Command): void {
  program
    .command('quantize')
    .description('Write a model as a GGUF file with smaller weights, and report what that changes.')
    .argument('<in>', 'a GGUF file of F32, F16 or BF16 weights, or a safetensors model: its folder or file')
    .argument('<out>', 'the GGUF file to write')
    .addOption(
      new Option('--type <type>', 'type of the matrices; Q4_K_M mixes Q4_K and Q6_K')
        .choices([...QUANTIZE_TYPES])
        .makeOptionMandatory(),
    )
    .option('--json', 'print the report as one JSON object')
    .action(run);
}

async function run(source: string, path: string, flags: QuantizeFlags): Promise<void> {
  await interruptible(async (signal) => {
    const progress = createProgress();
    const report = await quantize(source, path, {
      type: flags.type,
      signal,
      onProgress: ({ tensor, done, total }) => progress.update(`quantising: ${tensor}`, done / total),
    }).finally(() => progress.end());
    for (const text of report.notices) note(`note: ${text}`);
    await print(flags.json ? `${toJson(report)}\n` : formatReport(report));
  });
}

function formatReport({ path, fileBytes, types, total }: QuantizeReport): string {
  const rows = [
    ['type', 'tensors', 'in', 'out', 'bits/weight', 'relative error'],
    ...types.map((each) => [each.type, ...formatRow(each)]),
    ['all', ...formatRow(total)],
  ];
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  const lines = rows.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  '),
  );
  return `${lines.join('\n')}\n${path}: ${formatBytes(fileBytes)}\n`;
}

function formatRow(row: QuantizeReport['total']): string[] {
  return [
    String(row.tensors),
    formatBytes(row.bytesIn),
    formatBytes(row.bytesOut),
    row.bitsPerWeight.toFixed(2),
    row.relativeError === 0 ? '0' : `${(100 * row.relativeError).toPrecision(3)}%`,
  ];
}
