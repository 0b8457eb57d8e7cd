import type { AttentionOptions } from '../attention/types.js';
import type { BackendInfo } from '../backend/types.js';
import type { EnergyMeter } from '../energy/types.js';
import { FrugalError } from '../errors.js';
import type { ModelFacts } from '../models/index.js';
import type { Tokenizer } from '../tokenizer/index.js';
import type { Identity } from './provenance.js';
import type { Scheduler } from './scheduler.js';

/** What the parts of a loaded model share. */
export interface Engine {
  readonly scheduler: Scheduler;
  readonly tokenizer: Tokenizer;
  readonly facts: ModelFacts;
  readonly backend: BackendInfo;
  /** Where the runtime can tell what a generation costs. */
  readonly meter: EnergyMeter | undefined;
  /** Which keys attention keeps, where that is not all. */
  readonly attention: AttentionOptions | undefined;
  /** For provenance records, where the model was loaded for them. */
  readonly identity: Identity | undefined;
  /** The Jinja template that the model formats chats with, where it has one. */
  readonly chatTemplate: string | undefined;
}

/**
 * @param otherwise another cure, after a comma
 * @throws FrugalError `CONTEXT_OVERFLOW` when a sequence of `tokens` tokens does not fit
 */
export function checkFits(engine: Engine, tokens: number, what: string, otherwise = ''): void {
  const { contextLength, trainedContext } = engine.facts;
  if (tokens <= contextLength) return;
  const more =
    contextLength < trainedContext ? ` or load the model with a contextLength up to ${trainedContext}` : '';
  throw new FrugalError(
    'CONTEXT_OVERFLOW',
    `${what} has ${tokens} tokens, but the context holds ${contextLength}`,
    { cure: `Shorten it${more}${otherwise}.`, data: { tokens, contextLength, trainedContext } },
  );
}
