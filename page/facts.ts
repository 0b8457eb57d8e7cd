import type { Model } from 'frugal';

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB'];

function showBytes(bytes: number): string {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** power).toFixed(power > 1 ? 1 : 0)} ${UNITS[power]}`;
}

function showCount(count: number): string {
  const [scale, unit] = count >= 1e9 ? [1e9, ' B'] : count >= 1e6 ? [1e6, ' M'] : [1, ''];
  return `${(count / scale).toFixed(scale > 1 ? 1 : 0)}${unit}`;
}

/** What there is to know about a model and what runs it, as names and values. */
export function factsOf({ info }: Model): Array<readonly [name: string, value: string]> {
  const { backend } = info;
  return [
    ['Architecture', info.architecture],
    ['Parameters', showCount(info.parameters)],
    ['Weights', showBytes(info.weightBytes)],
    ['Read per token', showBytes(info.bytesPerToken)],
    ['Context', `${info.contextLength} tokens`],
    ['Vocabulary', info.vocabSize.toLocaleString('en')],
    ['Runs on', `${backend.kind}, ${backend.isa}`.replaceAll('-', '\u2011')],
    ['Threads', `${backend.threads}${crossOriginIsolated ? '' : ' (page not isolated)'}`],
  ];
}
