// The same measurement of a loaded model wherever it runs: this file is also served to pages and run by Deno.

/** Token ids of a prompt: the same in every engine, spread a little. */
export const promptIds = (length, salt = 0) =>
  Uint32Array.from({ length }, (_, i) => 20 + ((i * 37 + salt) % 200));

/**
 * Prompts and the tokens after them, through the public API.
 * @returns tokens per second of each repetition, and what usage.attention says of the last
 */
export async function measureModel(model, { prompt, generate, repetitions = 1 }) {
  const options = { temperature: 0, ignoreEnd: true };
  await model.complete(promptIds(16), { ...options, maxTokens: 4 });
  const [prefill, decode] = [[], []];
  let attention;
  for (let i = 0; i < repetitions; i++) {
    // Each begins otherwise.
    const { usage } = await model.complete(promptIds(prompt, i + 1), { ...options, maxTokens: generate + 1 });
    prefill.push(usage.prefillTokensPerSecond);
    if (generate > 0) decode.push(usage.decodeTokensPerSecond);
    attention = usage.attention;
  }
  return { prefill, decode, kept: attention?.kept };
}
