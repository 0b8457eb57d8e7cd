import { FrugalError } from '../errors.js';
import { type Fields, isObject } from './fields.js';

/** The error for a part of tokenizer.json that no GGUF file of a supported kind can express. */
export function unsupportedTokenizer(found: string, supported: string): FrugalError {
  return new FrugalError(
    'TOKENIZER_UNSUPPORTED',
    `tokenizer.json: ${found} is not supported; supported is ${supported}`,
    {
      cure: 'Convert a model whose tokeniser is supported, or use a GGUF file of this one.',
      data: { found, supported },
    },
  );
}

type Step = Record<string, unknown>;

/** A component and those it is made of, in order. */
function stepsOf(component: unknown, list: string): Step[] {
  if (!isObject(component)) return [];
  const inner = component[list];
  return component.type === 'Sequence' && Array.isArray(inner) ? inner.filter(isObject) : [component];
}

const GPT4_HEAD = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const GPT4_TAIL = '| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const CASED =
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|' +
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|' +
  '\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

/** `tokenizer.ggml.pre` by the expression that cuts words, and whether whole words skip the merges. */
const BY_EXPRESSION: readonly { expression: string; ignoreMerges: boolean; pre: string }[] = [
  { expression: `${GPT4_HEAD}\\p{N}{1,3}${GPT4_TAIL}`, ignoreMerges: true, pre: 'llama-bpe' },
  { expression: `${GPT4_HEAD}\\p{N}{1,3}${GPT4_TAIL}`, ignoreMerges: false, pre: 'smaug-bpe' },
  { expression: `${GPT4_HEAD}\\p{N}${GPT4_TAIL}`, ignoreMerges: false, pre: 'qwen2' },
  { expression: CASED, ignoreMerges: true, pre: 'tekken' },
];

/**
 * The name of the way in which a byte-level vocabulary cuts a text into words.
 * @throws FrugalError `TOKENIZER_UNSUPPORTED` for one that has no name here
 */
export function byteLevelPre(tokenizer: Fields, model: Fields): string {
  const steps = stepsOf(tokenizer.raw('pre_tokenizer'), 'pretokenizers');
  const bytes = steps.at(-1);
  const shown = (JSON.stringify(steps) ?? '').slice(0, 400);
  const supported = 'byte-level BPE cut as by GPT-2, StarCoder, Llama 3, Qwen 2 or Tekken';
  const unknown = unsupportedTokenizer(`the pre_tokenizer ${shown}`, supported);
  if (bytes?.type !== 'ByteLevel' || bytes.add_prefix_space === true) throw unknown;
  checkNormalizer(tokenizer);
  const splits = steps.slice(0, -1);
  const ignoreMerges = model.boolean('ignore_merges') ?? false;
  if (bytes.use_regex !== false) {
    if (splits.length === 0 && !ignoreMerges) return 'gpt-2';
    const [digits] = splits;
    const single = splits.length === 1 && digits?.type === 'Digits' && digits.individual_digits === true;
    if (single && !ignoreMerges) return 'starcoder';
    throw unknown;
  }
  const [split] = splits;
  const pattern = isObject(split?.pattern) ? split.pattern.Regex : undefined;
  const isolated = split?.behavior === 'Isolated' || (split?.behavior === 'Removed' && split.invert === true);
  const found = BY_EXPRESSION.find(
    (each) => each.expression === pattern && each.ignoreMerges === ignoreMerges,
  );
  if (splits.length !== 1 || split?.type !== 'Split' || !isolated || found === undefined) throw unknown;
  return found.pre;
}

/** A normal form (NFC) is what GGUF files cannot say; texts are almost always in it. */
function checkNormalizer(tokenizer: Fields): void {
  for (const step of stepsOf(tokenizer.raw('normalizer'), 'normalizers')) {
    if (step.type !== 'NFC')
      throw unsupportedTokenizer(`the normalizer ${String(step.type).slice(0, 40)}`, 'NFC or none');
  }
}

/**
 * Whether a SentencePiece style vocabulary puts a space before a text.
 * @throws FrugalError `TOKENIZER_UNSUPPORTED` for a normalizer or pre-tokeniser that does something else
 */
export function spacePrefix(tokenizer: Fields): boolean {
  let prefix = false;
  const normalizers = stepsOf(tokenizer.raw('normalizer'), 'normalizers');
  for (const step of normalizers) {
    const pattern = isObject(step.pattern) ? step.pattern.String : undefined;
    const isReplace = step.type === 'Replace' && pattern === ' ' && step.content === '▁';
    const isPrepend = step.type === 'Prepend' && step.prepend === '▁';
    if (!isReplace && !isPrepend)
      throw unsupportedTokenizer(
        `the normalizer ${JSON.stringify(step).slice(0, 200)}`,
        'SentencePiece spaces',
      );
    prefix ||= isPrepend;
  }
  const steps = stepsOf(tokenizer.raw('pre_tokenizer'), 'pretokenizers');
  for (const step of steps) {
    if (step.type !== 'Metaspace')
      throw unsupportedTokenizer(`the pre_tokenizer ${JSON.stringify(step).slice(0, 200)}`, 'Metaspace');
    const scheme = step.prepend_scheme ?? (step.add_prefix_space === false ? 'never' : 'always');
    prefix ||= scheme !== 'never';
  }
  return prefix;
}
