import { engineOf, type Model } from './model.js';
import { checkProvenance, hashTokens, type Provenance, recordedOptions } from './provenance.js';

/** What a record and a run of it differ in; nothing, where the record is confirmed. */
export interface Verdict {
  readonly confirmed: boolean;
  readonly differs?: 'model' | 'plan' | 'prompt' | 'output';
  /** In a sentence, what was found. */
  readonly detail: string;
}

/**
 * Makes a recorded text again and compares. Any backend, instruction set and number of threads will do.
 * @param model loaded with `provenance: true` and the record's `contextLength`, `kvCache` and `attention`
 * @throws FrugalError `RECORD_INVALID`, and as `generate` does
 */
export async function replay(model: Model, record: unknown, signal?: AbortSignal): Promise<Verdict> {
  const checked = checkProvenance(record);
  const altered = findAlteration(model, checked);
  if (altered) return altered;
  const { output, prompt } = checked;
  const options = { ...recordedOptions(checked), ...(signal && { signal }) };
  const { text, tokens, finishReason } = await model.complete(prompt.tokens, options);
  const cancelled = output.finishReason === 'cancelled';
  const same = cancelled ? text.startsWith(output.text) : text === output.text;
  if (same && hashTokens(tokens) === hashTokens(output.tokens)) {
    if (!cancelled && finishReason !== output.finishReason)
      return refuse('output', `the output ended by ${finishReason}, the record says ${output.finishReason}`);
    const detail = `the same ${tokens.length} tokens, made by ${engineOf(model).backend.kind} ${engineOf(model).backend.isa}`;
    return { confirmed: true, detail };
  }
  const first = output.tokens.findIndex((token, i) => token !== tokens[i]);
  const at = first === -1 ? Math.min(tokens.length, output.tokens.length) : first;
  return refuse('output', `the output is not what this prompt gives: it differs from token ${at} on`);
}

/** What can be seen without computing. */
function findAlteration(model: Model, { model: of, prompt, output }: Provenance): Verdict | undefined {
  const { identity, facts } = engineOf(model);
  if (identity === undefined) return refuse('model', 'the model was loaded without provenance: true');
  if (identity.sha256.join() !== of.sha256.join()) {
    const [got, wanted] = [identity.sha256, of.sha256].map((list) =>
      list.map((h) => h.slice(0, 12)).join(', '),
    );
    return refuse('model', `the model is another file: SHA-256 ${got}..., the record has ${wanted}...`);
  }
  for (const field of ['name', 'architecture'] as const) {
    if (facts[field] !== of[field])
      return refuse('model', `the model's ${field} is ${facts[field]}, the record says ${of[field]}`);
  }
  if (identity.planSha256 !== of.planSha256)
    return refuse(
      'plan',
      'the plan differs: another version of frugal, context length, type of cache or attention',
    );
  if (hashTokens(prompt.tokens) !== prompt.sha256)
    return refuse('prompt', 'the prompt was altered: its tokens do not have the hash of the record');
  if (hashTokens(output.tokens, output.text) !== output.sha256)
    return refuse('output', 'the output was altered: its tokens and text do not have the hash of the record');
  return undefined;
}

function refuse(differs: Verdict['differs'], detail: string): Verdict {
  return { confirmed: false, ...(differs && { differs }), detail };
}
