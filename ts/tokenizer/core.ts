import { createEncodeText } from './library.js';
import { createPartition } from './partition.js';
import type { EncodeFlags, VocabularyData, VocabularyFacts } from './types.js';
import { buildVocabulary } from './vocabulary.js';

/** A built vocabulary. Building and encoding hold the thread for as long as they take. */
export interface Core {
  readonly facts: VocabularyFacts;
  /** Throws soon after `unwanted` has become true, which it asks again and again. */
  encode(text: string, flags: EncodeFlags, unwanted: () => boolean): Uint32Array<ArrayBuffer>;
  /** The same, pausing after each of a long text's slices. */
  encodeSlices(
    text: string,
    flags: EncodeFlags,
    unwanted?: () => boolean,
  ): Generator<void, Uint32Array<ArrayBuffer>, void>;
}

/** @throws FrugalError `TOKENIZER_INVALID` */
export function buildCore(data: VocabularyData): Core {
  const vocabulary = buildVocabulary(data);
  const partition = createPartition(vocabulary);
  const encodeText = createEncodeText(vocabulary);
  const { facts } = vocabulary;
  const encodeSlices: Core['encodeSlices'] = function* (
    text,
    { addSpecial, parseSpecial },
    unwanted = () => false,
  ) {
    const ids: number[] = [];
    if (addSpecial && facts.addBos && facts.bos !== undefined) ids.push(facts.bos);
    // Half of a surrogate pair is no character: it is encoded as UTF-8 would write it.
    const wellFormed = text.replace(/\p{Surrogate}/gu, '\uFFFD');
    let atStart = true;
    for (const piece of partition(wellFormed, parseSpecial)) {
      if (typeof piece === 'number') ids.push(piece);
      else {
        const words = atStart && data.addSpacePrefix ? ` ${piece}` : piece;
        for (const slice of encodeText(words, unwanted)) {
          for (const id of slice) ids.push(id);
          yield;
        }
      }
      atStart = typeof piece === 'number';
    }
    if (addSpecial && facts.addEos && facts.eos !== undefined) ids.push(facts.eos);
    return Uint32Array.from(ids);
  };
  return {
    facts,
    encodeSlices,
    encode(text, flags, unwanted) {
      const steps = encodeSlices(text, flags, unwanted);
      let step = steps.next();
      while (!step.done) step = steps.next();
      return step.value;
    },
  };
}
