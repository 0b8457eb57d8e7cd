/** Finds stop strings in text that comes in pieces. */
export interface StopMatcher {
  /**
   * Takes the next piece and gives the text that is certain not to be part of a stop string.
   * After a match `text` is what came before the stop string, and the matcher is done.
   */
  push(piece: string): { readonly text: string; readonly matched?: string };
  /** The text held back so far; called when no more pieces come. */
  end(): string;
}

/**
 * The stop string that ends first wins, and of several that end together the longest, so the result does not depend
 * on how the text is cut into pieces. Text that may be the beginning of a stop string is held back.
 */
export function createStopMatcher(stops: readonly string[]): StopMatcher {
  let held = '';
  return {
    push(piece) {
      const before = held.length;
      const text = held + piece;
      for (let end = before + 1; end <= text.length; end++) {
        const matched = longestEnding(text, end, stops);
        if (matched !== undefined) {
          held = '';
          return { text: text.slice(0, end - matched.length), matched };
        }
      }
      const keep = longestBeginning(text, stops);
      held = text.slice(text.length - keep);
      return { text: text.slice(0, text.length - keep) };
    },
    end() {
      const rest = held;
      held = '';
      return rest;
    },
  };
}

/** The longest stop string that `text` has right before `end`. */
function longestEnding(text: string, end: number, stops: readonly string[]): string | undefined {
  let longest: string | undefined;
  for (const stop of stops) {
    if (stop.length > (longest?.length ?? 0) && text.endsWith(stop, end)) longest = stop;
  }
  return longest;
}

/** How many characters at the end of `text` may be the beginning of a stop string. */
function longestBeginning(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let n = Math.min(stop.length - 1, text.length); n > longest; n--) {
      if (text.endsWith(stop.slice(0, n))) longest = n;
    }
  }
  return longest;
}
