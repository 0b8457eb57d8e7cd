import { describe, expect, it } from 'vitest';
import { createStopMatcher } from '../../ts/engine/stop.js';

function run(stops: string[], pieces: string[]): { text: string; matched: string | undefined } {
  const matcher = createStopMatcher(stops);
  let text = '';
  for (const piece of pieces) {
    const step = matcher.push(piece);
    text += step.text;
    if (step.matched !== undefined) return { text, matched: step.matched };
  }
  return { text: text + matcher.end(), matched: undefined };
}

/** All ways to cut a text in pieces. */
function cuts(text: string): string[][] {
  if (text.length <= 1) return [[text]];
  const first = text[0] ?? '';
  return cuts(text.slice(1)).flatMap(([head = '', ...rest]) => [
    [first, head, ...rest],
    [first + head, ...rest],
  ]);
}

describe('stop strings', () => {
  it.each([
    { stops: ['END'], text: 'one END two', result: { text: 'one ', matched: 'END' } },
    { stops: ['END'], text: 'ENEND', result: { text: 'EN', matched: 'END' } },
    { stops: ['aab'], text: 'aaaab', result: { text: 'aa', matched: 'aab' } },
    { stops: ['abcd', 'bc'], text: 'xabcdx', result: { text: 'xa', matched: 'bc' } },
    { stops: ['c', 'abc'], text: 'xabcx', result: { text: 'x', matched: 'abc' } },
    { stops: ['END'], text: 'no EN', result: { text: 'no EN', matched: undefined } },
    { stops: [], text: 'anything', result: { text: 'anything', matched: undefined } },
  ])('finds $stops in "$text" however it is cut', ({ stops, text, result }) => {
    for (const pieces of cuts(text)) expect(run(stops, pieces), pieces.join('|')).toEqual(result);
  });

  it('holds back only what may begin a stop string', () => {
    const matcher = createStopMatcher(['\n\nUser:']);
    expect(matcher.push('Hello')).toEqual({ text: 'Hello' });
    expect(matcher.push(' there\n')).toEqual({ text: ' there' });
    expect(matcher.push('more')).toEqual({ text: '\nmore' });
    expect(matcher.end()).toBe('');
  });
});
