import type { Command } from 'commander';
import { checkProvenance } from '../engine/provenance.js';
import { replay } from '../engine/replay.js';
import { FrugalError } from '../errors.js';
import { toJson } from './numbers.js';
import { addComputingFlags, addThreadFlags, type LoadFlags, readText, withModel } from './shared.js';
import { interruptible, print } from './terminal.js';

interface ReplayFlags extends Omit<LoadFlags, 'ctx' | 'kvCache' | 'attention'> {
  readonly model?: string;
  readonly json?: boolean;
}

export function addReplay(program: Command): void {
  const command = program
    .command('replay')
    .description('Make a text again from its provenance record, and compare. Exit code 1 where they differ.')
    .argument('<record>', 'a file that frugal run --provenance wrote')
    .option('-m, --model <path>', 'the model (default: where the record says it was)');
  // What the text depends on is the record's.
  addComputingFlags(addThreadFlags(command)).option('--json', 'print one JSON object').action(check);
}

async function check(path: string, { model: given, json, ...flags }: ReplayFlags): Promise<void> {
  const record = checkProvenance(parse(path, await readText(path)));
  const { contextLength, kvCache = 'f16', attention, source } = record.model;
  const loading = { ctx: contextLength, kvCache, ...(attention && { attention }) };
  const settings = { ...flags, ...loading, provenance: true };
  await interruptible((signal) =>
    withModel(given ?? source, settings, signal, async (model) => {
      const verdict = await replay(model, record, signal);
      const word = verdict.confirmed ? 'confirmed' : 'refused';
      await print(json ? `${toJson(verdict)}\n` : `${word}: ${verdict.detail}\n`);
      if (!verdict.confirmed) process.exitCode = 1;
    }),
  );
}

function parse(path: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FrugalError('RECORD_INVALID', `${path} is not JSON`, {
      cure: 'Give a file that frugal run --provenance wrote.',
      data: { path },
      cause,
    });
  }
}
