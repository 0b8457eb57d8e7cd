/** The parts of the page, by their ids. */
function find<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (element instanceof type) return element;
  throw new Error(`the page has no ${id}`);
}

export const name = find('model-name', HTMLHeadingElement);
export const file = find('file', HTMLInputElement);
export const loading = find('loading', HTMLDivElement);
export const progress = find('progress', HTMLProgressElement);
export const phase = find('phase', HTMLSpanElement);
export const cancel = find('cancel', HTMLButtonElement);
export const facts = find('facts', HTMLDListElement);
export const error = find('error', HTMLParagraphElement);
export const modes = find('modes', HTMLDivElement);
export const output = find('output', HTMLDivElement);
export const form = find('form', HTMLFormElement);
export const prompt = find('prompt', HTMLTextAreaElement);
export const promptLabel = find('prompt-label', HTMLLabelElement);
export const go = find('go', HTMLButtonElement);
export const stop = find('stop', HTMLButtonElement);
export const speed = find('speed', HTMLOutputElement);
export const settings = find('settings', HTMLDetailsElement);
export const temperature = find('temperature', HTMLInputElement);
export const maxTokens = find('max-tokens', HTMLInputElement);
export const seed = find('seed', HTMLInputElement);
export const drop = find('drop', HTMLDivElement);
const said = find('said', HTMLDivElement);

/** Tells people who do not see the page. */
export function say(text: string): void {
  said.textContent = text;
}

export function showError(reason: unknown): void {
  const { message, cure } = reason as { message?: string; cure?: string };
  const text = message ?? String(reason);
  error.textContent = cure ? `${text.replace(/[.!?]?$/, (end) => end || '.')} ${cure}` : text;
  error.hidden = false;
}

/** Adds text at the end of the output, which stays in sight unless the reader has scrolled up. */
export function append(tag: 'span' | 'div', kind: string, text = ''): HTMLElement {
  const element = document.createElement(tag);
  element.className = kind;
  output.append(element);
  grow(element, text);
  return element;
}

export function grow(element: HTMLElement, text: string): void {
  const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  element.append(text);
  if (atEnd) output.scrollTop = output.scrollHeight;
}
