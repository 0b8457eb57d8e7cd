import { extname } from 'node:path';
import type { Command } from 'commander';
import { type AttentionOptions, POLICIES } from '../attention/index.js';
import { CONTEXT_RANGE } from '../engine/load.js';
import { isFrugalError } from '../errors.js';
import { GGML_TYPES, type GgufMetadata, type GgufModel, StringArray } from '../gguf/index.js';
import { buildPlan, type ModelFacts } from '../models/index.js';
import type { KvCacheType } from '../plan/types.js';
import { drawAttention, formatDrawn } from './attention.js';
import { formatBytes, numberParser, parseAttention, toJson } from './numbers.js';
import { formatRouting, readRouting } from './routing.js';
import {
  addHeaderFlag,
  addPromptFlags,
  kvCacheOption,
  type LoadFlags,
  openModel,
  type PromptFlags,
} from './shared.js';
import { interruptible, print, usageError } from './terminal.js';

interface InspectFlags extends PromptFlags, Pick<LoadFlags, 'ctx' | 'kvCache' | 'header'> {
  readonly routing?: string;
  readonly attention?: string;
  readonly policy?: AttentionOptions;
  readonly json?: boolean;
}

/** A metadata value as shown: arrays give their kind, length and first elements. */
type Shown =
  | unknown
  | { readonly array: string; readonly length: number; readonly first: readonly unknown[] };

interface Report {
  readonly file: string;
  readonly version: number;
  readonly bytes: number;
  readonly architecture: string | null;
  readonly parameters: number;
  readonly weightBytes: number;
  /** Bytes of all experts, which the option expertMemory may keep in the file; null when the architecture is not known. */
  readonly expertBytes: number | null;
  /** Weight bytes read to decode one token; null when the architecture is not known. */
  readonly bytesPerToken: number | null;
  /** Memory for one sequence that fills the context; null when the architecture is not known. */
  readonly memory: {
    contextLength: number;
    kvCache: KvCacheType;
    weightBytes: number;
    kvBytes: number;
    totalBytes: number;
  } | null;
  /** What a user should know, such as why the model does not run. */
  readonly notes: readonly string[];
  readonly metadata: Readonly<Record<string, Shown>>;
  readonly tensors: ReadonlyArray<{
    name: string;
    type: string;
    shape: readonly number[];
    bytes: number;
    offset: number;
    part: number;
  }>;
}

/** Names of pictures that would not be what they say. */
const OTHER_PICTURES = /\.(png|jpe?g|gif|webp|avif|bmp|tiff?|pdf|svgz|mp4|webm)$/i;
const SHOWN_ELEMENTS = 8;
const SHOWN_CHARACTERS = 200;

export function addInspect(program: Command): void {
  const command = program
    .command('inspect')
    .description('Show the metadata and tensors of any GGUF file, and the memory that the model needs.')
    .argument('<model>', 'a GGUF file or its http(s) address')
    .option('--ctx <tokens>', 'context length to give the memory for', numberParser(CONTEXT_RANGE))
    .addOption(kvCacheOption())
    .option('--routing <text>', 'run the text and show which experts its tokens are routed to')
    .option('--attention <file>', 'run a text and draw, as SVG, which keys each layer and head keeps')
    .option(
      '--policy <policy>',
      `with --attention: ${POLICIES.join(', ')}, or the option as JSON (default: auto)`,
      parseAttention,
    );
  addHeaderFlag(addPromptFlags(command, 'with --attention, '))
    .option('--json', 'print one JSON object')
    .action(inspect);
}

async function inspect(path: string, flags: InspectFlags): Promise<void> {
  const { attention, policy, prompt, file } = flags;
  if (attention === undefined && (policy ?? prompt ?? file) !== undefined)
    throw usageError('--policy, -p and -f go with --attention');
  if (attention !== undefined && OTHER_PICTURES.test(attention))
    throw usageError(`--attention draws SVG, not ${extname(attention)}: give a file that ends in .svg`);
  if (attention !== undefined && flags.routing !== undefined)
    throw usageError('give either --attention or --routing, not both');
  await interruptible(async (signal) => {
    const gguf = await openModel(path, flags, signal);
    try {
      const report = createReport(path, gguf, flags);
      if (attention !== undefined) {
        const drawn = await drawAttention(path, { ...flags, attention }, signal);
        await print(flags.json ? `${toJson({ ...report, attention: drawn })}\n` : formatDrawn(drawn));
      } else if (flags.routing === undefined) {
        await print(flags.json ? `${toJson(report)}\n` : formatReport(report));
      } else {
        const routing = await readRouting(path, flags.routing, flags, signal);
        await print(flags.json ? `${toJson({ ...report, routing })}\n` : formatRouting(routing));
      }
    } finally {
      await gguf.close();
    }
  });
}

function createReport(path: string, gguf: GgufModel, flags: InspectFlags): Report {
  const tensors = [...gguf.tensors.values()];
  const { facts, notes } = readFacts(gguf, flags);
  const weightBytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  return {
    file: path,
    version: gguf.version,
    bytes: gguf.parts.reduce((sum, part) => sum + part.size, 0),
    architecture: readArchitecture(gguf.metadata),
    parameters: tensors.reduce((sum, tensor) => sum + tensor.elements, 0),
    weightBytes,
    expertBytes: facts?.expertBytes ?? null,
    bytesPerToken: facts?.bytesPerToken ?? null,
    memory: facts ? memoryOf(facts) : null,
    notes,
    metadata: Object.fromEntries([...gguf.metadata.keys()].map((key) => [key, show(gguf.metadata, key)])),
    tensors: tensors.map(({ name, type, shape, bytes, offset, part }) => ({
      name,
      type,
      shape,
      bytes,
      offset,
      part,
    })),
  };
}

function memoryOf(facts: ModelFacts): Report['memory'] {
  const kvBytes = facts.kvBytesPerToken * facts.contextLength;
  return {
    contextLength: facts.contextLength,
    kvCache: facts.kvCache,
    weightBytes: facts.weightBytes,
    kvBytes,
    totalBytes: facts.weightBytes + kvBytes,
  };
}

/** What the model's plan tells. A file that cannot run is still a file to look at. */
function readFacts(
  gguf: GgufModel,
  { ctx, kvCache }: InspectFlags,
): { facts: ModelFacts | undefined; notes: readonly string[] } {
  try {
    const { facts } = buildPlan(gguf, {
      tensorTypes: Object.keys(GGML_TYPES),
      ...(ctx === undefined ? {} : { contextLength: ctx }),
      ...(kvCache === undefined ? {} : { kvCache }),
    });
    return { facts, notes: facts.notes };
  } catch (error) {
    if (!isFrugalError(error)) throw error;
    return {
      facts: undefined,
      notes: [`this version does not run the file: ${error.code}: ${error.message}`],
    };
  }
}

function readArchitecture(metadata: GgufMetadata): string | null {
  const value = metadata.get('general.architecture');
  return value?.kind === 'string' ? metadata.string('general.architecture') : null;
}

function show(metadata: GgufMetadata, key: string): Shown {
  const found = metadata.get(key);
  if (found === undefined) return null;
  if (found.kind === 'string') return metadata.string(key);
  if (!found.kind.startsWith('array[')) return found.value;
  const first: unknown[] = [];
  const { value } = found;
  const length = value instanceof StringArray || ArrayBuffer.isView(value) ? value.length : 0;
  for (let i = 0; i < Math.min(length, SHOWN_ELEMENTS); i++) {
    first.push(value instanceof StringArray ? value.at(i) : ArrayBuffer.isView(value) ? value[i] : undefined);
  }
  return { array: found.kind.slice('array['.length, -1), length, first };
}

function formatReport(report: Report): string {
  const lines = [
    `${report.file}: GGUF version ${report.version}, ${formatBytes(report.bytes)}`,
    `architecture: ${report.architecture ?? 'not given'}`,
    `parameters: ${report.parameters.toLocaleString('en')}`,
    `weights: ${formatBytes(report.weightBytes)}`,
  ];
  if (report.expertBytes) lines.push(`of which experts: ${formatBytes(report.expertBytes)}`);
  if (report.bytesPerToken !== null) lines.push(`read per token: ${formatBytes(report.bytesPerToken)}`);
  if (report.memory) {
    const { contextLength, kvCache, kvBytes, totalBytes } = report.memory;
    lines.push(
      `memory for a context of ${contextLength}: ${formatBytes(totalBytes)}, of which ${formatBytes(kvBytes)} key/value cache as ${kvCache}`,
    );
  }
  lines.push(...report.notes.map((note) => `note: ${note}`));
  lines.push('', `metadata (${Object.keys(report.metadata).length}):`);
  for (const [key, value] of Object.entries(report.metadata)) lines.push(`  ${key} = ${formatValue(value)}`);
  lines.push('', `tensors (${report.tensors.length}):`);
  for (const tensor of report.tensors) {
    lines.push(
      `  ${tensor.name}  ${tensor.type}  [${tensor.shape.join(', ')}]  ${formatBytes(tensor.bytes)}`,
    );
  }
  return `${lines.join('\n')}\n`;
}

function formatValue(value: Shown): string {
  if (typeof value === 'object' && value !== null && 'array' in value && 'first' in value) {
    const { array, length, first } = value as { array: string; length: number; first: readonly unknown[] };
    const more = length > first.length ? ', ...' : '';
    return `${array}[${length}] ${first.map(formatValue).join(', ')}${more}`;
  }
  if (typeof value !== 'string') return String(value);
  const text = JSON.stringify(value);
  return text.length > SHOWN_CHARACTERS
    ? `${text.slice(0, SHOWN_CHARACTERS)}... (${value.length} characters)`
    : text;
}
