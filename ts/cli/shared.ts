import { readFile } from 'node:fs/promises';
import { type Command, Option } from 'commander';
import { type AttentionOptions, POLICIES } from '../attention/index.js';
import type { Watts } from '../energy/types.js';
import { type ContextOptions, type LoadOptions, load, type Model } from '../engine/index.js';
import { CHUNK_RANGE, CONTEXT_RANGE, ISAS, KV_CACHES, THREADS_RANGE } from '../engine/load.js';
import { SAMPLING_DEFAULTS, SAMPLING_RANGES, type SamplingOptions } from '../engine/options.js';
import { runtime } from '../engine/runtime.js';
import { openSource } from '../engine/source.js';
import { EFFICIENCIES, type Efficiency } from '../engine/threads.js';
import { CONTEXT_RANGES } from '../engine/window.js';
import { FrugalError } from '../errors.js';
import { type GgufModel, openGguf } from '../gguf/index.js';
import type { Isa } from '../index.js';
import type { KvCacheType } from '../plan/types.js';
import {
  collectHeaders,
  collectText,
  numberParser,
  parseAttention,
  parseBytes,
  parseSeed,
  parseWatts,
} from './numbers.js';
import { createProgress } from './progress.js';
import { note, usageError } from './terminal.js';

/** The options of every command that runs a model. */
export interface LoadFlags {
  readonly threads?: number | 'auto';
  readonly efficiency?: Efficiency;
  readonly backend?: 'native' | 'wasm';
  readonly isa?: Isa;
  readonly chunk?: number;
  readonly ctx?: number;
  readonly kvCache?: KvCacheType;
  readonly expertMemory?: number;
  readonly watts?: Watts;
  readonly attention?: AttentionOptions;
  readonly header?: Readonly<Record<string, string>>;
}

/** How a command loads its model. */
export interface ModelSettings extends LoadFlags {
  readonly chatTemplate?: string;
  readonly provenance?: boolean;
}

export function addLoadFlags(command: Command): Command {
  return addPlanFlags(addComputingFlags(addThreadFlags(command)));
}

export function addThreadFlags(command: Command): Command {
  return command
    .option('-t, --threads <count>', 'threads to compute with, or auto (default: auto)', parseThreads)
    .addOption(
      new Option('--efficiency <goal>', 'what auto looks for (default: balanced)').choices([...EFFICIENCIES]),
    );
}

/** What changes how fast results come and in how much memory, but not what they are. */
export function addComputingFlags(command: Command): Command {
  return addHeaderFlag(command)
    .addOption(new Option('--backend <name>', 'what computes').choices(['native', 'wasm']))
    .addOption(new Option('--isa <name>', 'instruction set (default: the fastest here)').choices([...ISAS]))
    .option('--chunk <tokens>', 'prompt tokens per step', numberParser(CHUNK_RANGE))
    .option(
      '--expert-memory <size>',
      'memory for experts, such as 6GiB; the others stay in the file',
      parseBytes,
    )
    .option('--watts <idle,busy>', 'what the machine takes, for energy where it has no counters', parseWatts);
}

/** What results depend on. */
export function addPlanFlags(command: Command): Command {
  return command
    .option('--ctx <tokens>', 'context length', numberParser(CONTEXT_RANGE))
    .addOption(kvCacheOption())
    .option(
      '--attention <policy>',
      `what attention keeps of the keys: ${POLICIES.join(', ')}, or the option as JSON (default: dense)`,
      parseAttention,
    );
}

/** For models at an address. */
export function addHeaderFlag(command: Command): Command {
  return command.option(
    '--header <text>',
    'sent with each request for a URL, such as "Authorization: Bearer ..."; may be given several times',
    collectHeaders,
  );
}

export function kvCacheOption(): Option {
  return new Option(
    '--kv-cache <type>',
    'what keys and values are cached as; q8_0 takes half the memory (default: f16)',
  ).choices([...KV_CACHES]);
}

function parseThreads(text: string): number | 'auto' {
  return text === 'auto' ? text : numberParser(THREADS_RANGE)(text);
}

export interface SamplingFlags {
  readonly temp?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  readonly frequencyPenalty?: number;
  readonly presencePenalty?: number;
  readonly penaltyWindow?: number;
  readonly seed?: bigint;
  readonly stop?: readonly string[];
}

export function addSamplingFlags(command: Command): Command {
  const number = (flag: string, text: string, name: keyof typeof SAMPLING_RANGES) =>
    command.option(
      flag,
      `${text} (default: ${SAMPLING_DEFAULTS[name]})`,
      numberParser(SAMPLING_RANGES[name]),
    );
  number('--temp <number>', 'temperature; 0 always takes the most likely token', 'temperature');
  number('--top-k <count>', 'draw from the k most likely tokens; 0: all', 'topK');
  number('--top-p <share>', 'draw from the most likely tokens that make up this probability; 1: all', 'topP');
  number('--min-p <share>', 'leave out tokens less likely than this share of the likeliest; 0: none', 'minP');
  number(
    '--repeat-penalty <number>',
    'divides the logits of tokens seen before; 1: off',
    'repetitionPenalty',
  );
  number('--frequency-penalty <number>', 'taken off per time a token was seen', 'frequencyPenalty');
  number('--presence-penalty <number>', 'taken off if a token was seen at all', 'presencePenalty');
  number('--penalty-window <tokens>', 'tokens that the penalties look back; -1: all', 'penaltyWindow');
  return command
    .option('--seed <number>', 'repeats a run (default: random, and reported)', parseSeed)
    .option('--stop <text>', 'end before this text; may be given several times', collectText);
}

export function samplingOptions(flags: SamplingFlags): SamplingOptions & { stop?: readonly string[] } {
  const named = {
    temperature: flags.temp,
    topK: flags.topK,
    topP: flags.topP,
    minP: flags.minP,
    repetitionPenalty: flags.repeatPenalty,
    frequencyPenalty: flags.frequencyPenalty,
    presencePenalty: flags.presencePenalty,
    penaltyWindow: flags.penaltyWindow,
    seed: flags.seed,
    stop: flags.stop,
  };
  return Object.fromEntries(Object.entries(named).filter(([, value]) => value !== undefined));
}

export interface ContextFlags {
  readonly window?: number;
  readonly sinks?: number;
}

export function addContextFlags(command: Command): Command {
  return command
    .option(
      '--window <tokens>',
      'go on without end in constant memory: the last tokens that stay',
      numberParser(CONTEXT_RANGES.window),
    )
    .option(
      '--sinks <tokens>',
      'with --window, the first tokens that stay (default: 4)',
      numberParser(CONTEXT_RANGES.sinks),
    );
}

export function contextOptions({ window, sinks }: ContextFlags): { context?: ContextOptions } {
  if (window !== undefined) return { context: { window, ...(sinks === undefined ? {} : { sinks }) } };
  if (sinks !== undefined) throw usageError('--sinks goes with --window');
  return {};
}

export interface PromptFlags {
  readonly prompt?: string;
  readonly file?: string;
}

/** @param when what the text goes with, where a command does not always take one */
export function addPromptFlags(command: Command, when = ''): Command {
  return command
    .option('-p, --prompt <text>', `${when}the text`)
    .option('-f, --file <path>', `${when}a file with the text; - reads standard input`);
}

/** The text of -p or -f, or undefined when neither is given. */
export async function readPrompt(flags: PromptFlags): Promise<string | undefined> {
  if (flags.prompt !== undefined && flags.file !== undefined)
    throw usageError('give either -p or -f, not both');
  return flags.file === undefined ? flags.prompt : readText(flags.file);
}

export async function requirePrompt(flags: PromptFlags): Promise<string> {
  const text = await readPrompt(flags);
  if (text === undefined) throw usageError('give a text with -p or -f');
  return text;
}

/** A text file, or standard input for `-`. */
export async function readText(path: string): Promise<string> {
  try {
    if (path !== '-') return await readFile(path, 'utf8');
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(Buffer.from(chunk));
    return Buffer.concat(chunks).toString('utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FrugalError('SOURCE_READ', `${path} cannot be read: ${reason}`, {
      cure: 'Give the path of a text file that exists and may be read.',
      data: { path },
      cause,
    });
  }
}

export function loadOptions(flags: LoadFlags): LoadOptions {
  return {
    ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    ...(flags.efficiency === undefined ? {} : { efficiency: flags.efficiency }),
    ...(flags.backend === undefined ? {} : { backend: flags.backend }),
    ...(flags.isa === undefined ? {} : { isa: flags.isa }),
    ...(flags.chunk === undefined ? {} : { chunk: flags.chunk }),
    ...(flags.ctx === undefined ? {} : { contextLength: flags.ctx }),
    ...(flags.kvCache === undefined ? {} : { kvCache: flags.kvCache }),
    ...(flags.expertMemory === undefined ? {} : { expertMemory: flags.expertMemory }),
    ...(flags.watts === undefined ? {} : { watts: flags.watts }),
    ...(flags.attention === undefined ? {} : { attention: flags.attention }),
    ...(flags.header === undefined ? {} : { headers: flags.header }),
  };
}

/** The header of a model at a path or an address. */
export async function openModel(
  path: string,
  { header }: Pick<LoadFlags, 'header'>,
  signal: AbortSignal,
): Promise<GgufModel> {
  const source = await openSource(runtime, path, {
    cache: false,
    ...(header && { headers: header }),
    signal,
  });
  return openGguf(source, { signal });
}

/** Loads a model, with progress and notes on stderr, and disposes it when `body` is done. */
export async function withModel<T>(
  path: string,
  flags: ModelSettings,
  signal: AbortSignal,
  body: (model: Model) => Promise<T>,
): Promise<T> {
  const progress = createProgress();
  const model = await load(path, {
    ...loadOptions(flags),
    ...(flags.provenance === undefined ? {} : { provenance: flags.provenance }),
    ...(flags.chatTemplate === undefined ? {} : { chatTemplate: flags.chatTemplate }),
    signal,
    onProgress: ({ phase, loaded, total }) =>
      progress.update(`loading: ${phase}`, total > 0 ? loaded / total : 1),
  }).finally(() => progress.end());
  try {
    for (const text of model.info.notes) note(`note: ${text}`);
    return await body(model);
  } finally {
    await model.dispose();
  }
}
