import { expose, type Remote, releaseProxy, transfer, wrap } from 'comlink';
import { isParts } from '../engine/source.js';
import { nameOf } from '../gguf/blob-source.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';
import type { Reply, SentSource, SourcePort } from './protocol.js';
import { replyTo, unwrap } from './reply.js';

/** A source as it crosses: what can be copied is, one of the user's own is asked through a port. */
export function sendSource(source: string | Blob | readonly Blob[] | ByteSource): SentSource {
  if (isParts(source)) return { type: 'parts', parts: source, names: source.map(nameOf) };
  if (typeof source === 'string' || source instanceof Blob) return { type: 'place', place: source };
  const { port1, port2 } = new MessageChannel();
  const offered: SourcePort = {
    async read(offset, length) {
      // A copy: the source may keep what it gave.
      const reply = await replyTo(async () => (await readExactly(source, offset, length)).slice());
      return reply.type === 'value' ? transfer(reply, [reply.value.buffer]) : reply;
    },
    async sibling(name) {
      const reply = await replyTo(async () => {
        if (source.sibling === undefined) throw new Error('this kind of source has no other files');
        return sendSource(await source.sibling(name));
      });
      return reply.type === 'value' && reply.value.type === 'port'
        ? transfer(reply, [reply.value.port])
        : reply;
    },
    finish: () => replyTo(async () => source.finish?.()),
    close: () => replyTo(() => source.close()),
  };
  expose(offered, port1);
  // In Node an open port would keep the process alive; while the thread reads, its calls do.
  (port1 as { unref?(): void }).unref?.();
  return transfer({ type: 'port', name: source.name, size: source.size, port: port2 }, [port2]);
}

/** The source on the other side. */
export function receiveSource(sent: SentSource): string | Blob | readonly Blob[] | ByteSource {
  if (sent.type === 'place') return sent.place;
  if (sent.type === 'port') return portSource(sent.name, sent.size, wrap<SourcePort>(sent.port));
  return sent.parts.map((part, i) => new File([part], sent.names[i] ?? ''));
}

function portSource(name: string, size: number, port: Remote<SourcePort>): ByteSource {
  return {
    name,
    size,
    async read(offset, length, signal) {
      signal?.throwIfAborted();
      const bytes = unwrap((await port.read(offset, length)) as Reply<Uint8Array>);
      signal?.throwIfAborted();
      return bytes;
    },
    async sibling(file) {
      const opened = receiveSource(unwrap((await port.sibling(file)) as Reply<SentSource>));
      if (typeof opened === 'string' || opened instanceof Blob || isParts(opened))
        throw new TypeError('not a source');
      return opened;
    },
    async finish() {
      unwrap((await port.finish()) as Reply<void>);
    },
    async close() {
      unwrap((await port.close()) as Reply<void>);
      port[releaseProxy]();
    },
  };
}
