/**
 * Where a model's bytes come from. A source knows its size before anything is read, so that every
 * count and offset in a file can be checked against it.
 */
export interface ByteSource {
  /** For messages: a path, a URL or a file name. */
  readonly name: string;
  /** Size in bytes, fixed when the source is opened. */
  readonly size: number;
  /** A local path, where there is one: it lets the native backend read weights by itself. */
  readonly path?: string;
  /**
   * Reads exactly `length` bytes from `offset`.
   * @throws FrugalError `SOURCE_READ` when fewer bytes can be had, or the range is outside the source
   */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array>;
  /** Opens a file beside this one (the other parts of a split model). Absent where there is no such notion. */
  sibling?(name: string, signal?: AbortSignal): Promise<ByteSource>;
  close(): Promise<void>;
}
