import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';

export type Answer = (request: IncomingMessage, response: ServerResponse, bytes: Uint8Array) => void;

/** Answers one range as a good server does. */
export const answerRange: Answer = (request, response, bytes) => {
  const [from = 0, to = 0] = (/^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [])
    .slice(1)
    .map(Number);
  if (from >= bytes.length) {
    response.writeHead(416, { 'Content-Range': `bytes */${bytes.length}` }).end();
    return;
  }
  const last = Math.min(to, bytes.length - 1);
  response.writeHead(206, { 'Content-Range': `bytes ${from}-${last}/${bytes.length}`, ETag: '"one"' });
  response.end(bytes.subarray(from, last + 1));
};

/** Serves `files` from this machine while `use` runs, and counts the bytes of bodies asked for. */
export async function withServer<T>(
  files: ReadonlyMap<string, Uint8Array>,
  answer: Answer,
  use: (url: string, requests: string[]) => Promise<T>,
): Promise<T> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(request.headers.range ?? '');
    const bytes = files.get((request.url ?? '').split('?')[0]?.slice(1) ?? '');
    if (bytes === undefined) response.writeHead(404).end();
    else answer(request, response, bytes);
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  try {
    return await use(`http://127.0.0.1:${address.port}`, requests);
  } finally {
    server.closeAllConnections();
    await new Promise((closed) => server.close(closed));
  }
}
