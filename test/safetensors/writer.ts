/** Writes safetensors files in memory, right ones and, because nothing is checked, wrong ones. */

export interface StoredTensor {
  readonly dtype: string;
  /** Rows first. */
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** What a header says of a tensor. */
export interface Entry {
  dtype: unknown;
  shape: unknown;
  data_offsets: unknown;
}

export function headerOf(tensors: ReadonlyMap<string, StoredTensor>): Record<string, Entry> {
  let at = 0;
  return Object.fromEntries(
    [...tensors].map(([name, { dtype, shape, data }]) => {
      const begin = at;
      at += data.length;
      return [name, { dtype, shape, data_offsets: [begin, at] }];
    }),
  );
}

/** @param header as JSON, an object or a text that may be none */
export function joinFile(header: unknown, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const json = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + json.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(data, 8 + json.length);
  return out;
}

export function writeSafetensors(tensors: ReadonlyMap<string, StoredTensor>): Uint8Array<ArrayBuffer> {
  const data = Buffer.concat([...tensors.values()].map((tensor) => tensor.data));
  return joinFile({ __metadata__: { format: 'pt' }, ...headerOf(tensors) }, data);
}
