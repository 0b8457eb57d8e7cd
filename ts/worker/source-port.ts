import { expose, type Remote, releaseProxy, transfer, wrap } from 'comlink';
import { isParts } from '../engine/source.js';
import { isFrugalError } from '../errors.js';
import { blobSource, nameOf, partsSource } from '../gguf/blob-source.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';
import type { Reply, SentSource, SourcePort } from './protocol.js';
import { messageOf, replyTo, unwrap } from './reply.js';

/** What a source of the user's own threw last: it crosses as its message alone. */
export interface OwnFailure {
  last: { readonly error: unknown } | undefined;
}

/** What the user's own source threw, if that is what has come back. */
export function originalOf(error: unknown, { last }: OwnFailure): unknown {
  if (last === undefined || isFrugalError(error) || !(error instanceof Error)) return error;
  return messageOf(last.error) === error.message ? last.error : error;
}

/** A source as it crosses: what can be copied is, one of the user's own is asked through a port. */
export function sendSource(
  source: string | Blob | readonly Blob[] | ByteSource,
  own: OwnFailure,
): SentSource {
  if (isParts(source) && !canCross(source)) return sendSource(partsSource(source), own);
  if (source instanceof Blob && !canCross(source)) return sendSource(blobSource(source), own);
  if (isParts(source)) return { type: 'parts', parts: source, names: source.map(nameOf) };
  if (typeof source === 'string' || source instanceof Blob) return { type: 'place', place: source };
  const { port1, port2 } = new MessageChannel();
  const answer = <T>(step: () => T | Promise<T>) =>
    replyTo(async () => {
      try {
        return await step();
      } catch (error) {
        own.last = { error };
        throw error;
      }
    });
  const offered: SourcePort = {
    async read(offset, length) {
      // A copy, as the source may keep what it gave. Slices of Node's Buffers are views.
      const reply = await answer(async () => new Uint8Array(await readExactly(source, offset, length)));
      return reply.type === 'value' ? transfer(reply, [reply.value.buffer]) : reply;
    },
    async sibling(name) {
      const reply = await answer(async () => {
        if (source.sibling === undefined) throw new Error('this kind of source has no other files');
        return sendSource(await source.sibling(name), own);
      });
      return reply.type === 'value' && reply.value.type === 'port'
        ? transfer(reply, [reply.value.port])
        : reply;
    },
    finish: () => answer(async () => source.finish?.()),
    close: () => answer(() => source.close()),
  };
  expose(offered, port1);
  // In Node an open port would keep the process alive; while the thread reads, its calls do.
  (port1 as { unref?(): void }).unref?.();
  return transfer({ type: 'port', name: source.name, size: source.size, port: port2 }, [port2]);
}

/** Node's Blobs of files stay in the thread that made them. */
function canCross(blobs: Blob | readonly Blob[]): boolean {
  try {
    structuredClone(blobs);
    return true;
  } catch {
    return false;
  }
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
