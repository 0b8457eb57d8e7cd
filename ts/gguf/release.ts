/**
 * Gives the memory of bytes that nobody needs any more back at once: the collector would let tens of megabytes
 * gather. The bytes must be alone in their buffer, and nobody else may hold it.
 */
export function releaseBytes(bytes: Uint8Array): void {
  const { buffer } = bytes;
  if (!(buffer instanceof ArrayBuffer) || bytes.byteLength !== buffer.byteLength) return;
  // Newer than the language version this is compiled for, and than Node 20.
  if ('transfer' in buffer && typeof buffer.transfer === 'function') buffer.transfer(0);
  else nowhere().postMessage(undefined, [buffer]);
}

let port: MessagePort | undefined;

/** A port whose other end is closed: what is handed over to it is gone. */
function nowhere(): MessagePort {
  if (port === undefined) {
    const channel = new MessageChannel();
    channel.port2.close();
    port = channel.port1;
    // Where ports keep a process alive, this one must not.
    if ('unref' in port && typeof port.unref === 'function') port.unref();
  }
  return port;
}
