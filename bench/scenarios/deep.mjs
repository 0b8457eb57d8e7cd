// Tokens after 32,768 others, all keys against a budget of 2,048.

import { openDecoder, withModel } from '../lib/models.mjs';
import { compared, eachInTurn, ratioOf } from '../lib/turns.mjs';

const DEPTH = 32768;
const STEPS = 24;
const ROUNDS = 5;
/** Quick to fill: what the keys are does not matter for the time that looking at them takes. */
const FILL = { policy: 'window', window: 256 };
const BUDGET = { policy: 'quest', keep: 0, minTokens: 2048 };

export const deep = {
  name: 'deep',
  text: 'decode after 32,768 tokens, with all keys and with 2,048 of them (quest)',
  async run(context) {
    const file = await context.model('llama-1b', 'Q4_0', 8);
    const { threads, say } = context;
    const contextLength = DEPTH + STEPS * (ROUNDS + 1) + 1;
    const open = async (model) => {
      say(`${DEPTH} tokens into the cache`);
      const decoder = await openDecoder(model, DEPTH);
      await decoder.step(2);
      decoder.kept();
      return async () => ({ decode: await decoder.step(STEPS), kept: decoder.kept() });
    };
    const options = (decode) => ({ threads, contextLength, attention: { prefill: FILL, decode } });
    return withModel(file, options({ policy: 'dense' }), (dense) =>
      withModel(file, options(BUDGET), async (sparse) => {
        const things = { 'all keys': await open(dense), '2,048 keys': await open(sparse) };
        const turns = await eachInTurn({ ...context, repetitions: ROUNDS }, things);
        const [all, few] = turns.results;
        return {
          ...compared(turns, ['decode', 'kept']),
          values: { deepDecode: ratioOf(few, all, 'decode') },
        };
      }),
    );
  },
};
