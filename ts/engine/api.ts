// The types of the engine's own part of the public API.

export type { WasmVariant } from '../backend/wasm/variant.js';
export type { KvCacheType } from '../plan/types.js';
export type { Chat, ChatOptions, SendOptions } from './chat.js';
export type { EmbedOptions } from './embed.js';
export type { ExpertUsage, LayerRouting } from './experts.js';
export type { Completion, FinishReason, Generation, Usage, UsageEnergy } from './generation.js';
export type { LoadEvent, LoadOptions, LoadPhase } from './load.js';
export type { Model, ModelInfo, Prompt, TokenizeOptions } from './model.js';
export type { GenerateOptions, SamplingOptions } from './options.js';
export type { Provenance, ProvenanceSettings } from './provenance.js';
export type { ScoreOptions, Session, SessionOptions } from './session.js';
export type { ModelSource } from './source.js';
export type { Efficiency, ThreadChoice } from './threads.js';
export type { ContextOptions, ContextUsage } from './window.js';
