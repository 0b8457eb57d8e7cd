/** What the name of a part of a split model says: its place from 1 on, and what all parts share. */
export interface PartName {
  readonly stem: string;
  readonly part: number;
  readonly count: number;
}

const PART_NAME = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s;

/** `undefined` where a file is not named as a part. */
export function parsePartName(name: string): PartName | undefined {
  const [, stem, part, count] = PART_NAME.exec(name) ?? [];
  return stem === undefined ? undefined : { stem, part: Number(part), count: Number(count) };
}

export function partName({ stem, part, count }: PartName): string {
  return `${stem}-${digits(part)}-of-${digits(count)}.gguf`;
}

function digits(value: number): string {
  return String(value).padStart(5, '0');
}
