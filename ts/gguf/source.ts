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
   * Where others have read from `path`: whether they had the file that is open here.
   * @throws FrugalError `SOURCE_READ`
   */
  checkPath?(): Promise<void>;
  /**
   * Reads exactly `length` bytes from `offset`.
   * @throws FrugalError `SOURCE_READ` when fewer bytes can be had, or the range is outside the source
   */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array>;
  /** As `read`, into memory that the caller uses again and again. The result is the same. */
  readInto?(target: Uint8Array, offset: number, signal?: AbortSignal): Promise<void>;
  /** Opens a file beside this one (the other parts of a split model). Absent where there is no such notion. */
  sibling?(name: string, signal?: AbortSignal): Promise<ByteSource>;
  /**
   * Called before `close` when all that a model needs has been read. A source that checks or keeps the file then reads
   * the rest.
   */
  finish?(signal?: AbortSignal): Promise<void>;
  /** Called before `close` when the file is not what was wanted. A source that keeps it then leaves nothing of it. */
  discard?(): Promise<void>;
  close(): Promise<void>;
}
