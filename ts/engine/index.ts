import { type LoadOptions, loadWith } from './load.js';
import type { Model } from './model.js';
import { runtime } from './runtime.js';
import type { ModelSource } from './source.js';

/**
 * Loads a GGUF model.
 * @param source a path, a URL, a Blob, or a `ByteSource`; closed when the load ends
 * @throws FrugalError any code under "The file" and "The model", `INVALID_ARGUMENT`, `OUT_OF_MEMORY`,
 * `BACKEND_UNAVAILABLE`; on abort the signal's reason
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadWith(runtime, source, options);
}

export type { Chat, ChatOptions, SendOptions } from './chat.js';
export type { EmbedOptions } from './embed.js';
export type { ExpertUsage, LayerRouting } from './experts.js';
export type { Completion, FinishReason, Generation, Usage, UsageEnergy } from './generation.js';
export type { LoadEvent, LoadOptions, LoadPhase } from './load.js';
export type { Model, ModelInfo, Prompt, TokenizeOptions } from './model.js';
export type { GenerateOptions, SamplingOptions } from './options.js';
export type { Provenance, ProvenanceSettings } from './provenance.js';
export { replay, type Verdict } from './replay.js';
export type { ScoreOptions, Session, SessionOptions } from './session.js';
export type { ModelSource } from './source.js';
export type { Efficiency, ThreadChoice } from './threads.js';
