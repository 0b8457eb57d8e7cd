import { createEncodeText } from './library.js';
import { createPartition } from './partition.js';
import type { EncodeFlags, VocabularyData, VocabularyFacts } from './types.js';
import { buildVocabulary } from './vocabulary.js';

/** A built vocabulary. Building and encoding hold the thread for as long as they take. */
export interface Core {
  readonly facts: VocabularyFacts;
  /** Throws soon after `unwanted` has become true, which it asks again and again. */
  encode(text: string, flags: EncodeFlags, unwanted?: () => boolean): Uint32Array<ArrayBuffer>;
}

/** @throws FrugalError `TOKENIZER_INVALID` */
export function buildCore(data: VocabularyData): Core {
  const vocabulary = buildVocabulary(data);
  const partition = createPartition(vocabulary);
  const encodeText = createEncodeText(vocabulary);
  const { facts } = vocabulary;
  return {
    facts,
    encode(text, { addSpecial, parseSpecial }, unwanted = () => false) {
      const ids: number[] = [];
      if (addSpecial && facts.addBos && facts.bos !== undefined) ids.push(facts.bos);
      // Half of a surrogate pair is no character: it is encoded as UTF-8 would write it.
      const wellFormed = text.replace(/\p{Surrogate}/gu, '\uFFFD');
      let atStart = true;
      for (const piece of partition(wellFormed, parseSpecial)) {
        if (typeof piece === 'number') ids.push(piece);
        else {
          const words = atStart && data.addSpacePrefix ? ` ${piece}` : piece;
          for (const id of encodeText(words, unwanted)) ids.push(id);
        }
        atStart = typeof piece === 'number';
      }
      if (addSpecial && facts.addEos && facts.eos !== undefined) ids.push(facts.eos);
      return Uint32Array.from(ids);
    },
  };
}
