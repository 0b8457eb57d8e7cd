/**
 * Gives the memory of bytes that nobody needs any more back at once, where the runtime can: the collector would let
 * tens of megabytes gather. The bytes must be alone in their buffer, and nobody else may hold it.
 */
export function releaseBytes(bytes: Uint8Array): void {
  const { buffer } = bytes;
  if (bytes.byteLength !== buffer.byteLength) return;
  // Newer than the language version this is compiled for.
  if ('transfer' in buffer && typeof buffer.transfer === 'function') buffer.transfer(0);
}
