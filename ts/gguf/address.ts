/** An address as the page or the worker it is given in understands it; outside both, and if it is whole, as it is. */
export function resolveAddress(address: string): string {
  if (address === '' || URL.canParse(address)) return address;
  const { document, location } = globalThis as { document?: Document; location?: Location };
  const base = document?.baseURI ?? location?.href;
  return base !== undefined && URL.canParse(address, base) ? new URL(address, base).href : address;
}
