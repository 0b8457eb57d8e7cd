import { type Chat, type Generation, type LoadEvent, load, type Model, type ModelSource } from 'frugal';
import * as el from './elements.js';
import { factsOf } from './facts.js';

const EMBEDDED = 'stories-moe-q8_0.gguf';
const PHASES = { header: 'Reading the header', tokenizer: 'Building the tokenizer', weights: 'Loading weights' };
/** Text is drawn so often that it flows, and no more often than it can be read. */
const DRAW_MS = 30;

let loading: Promise<Model>;
/** What was loaded last without an error. */
let working: { readonly source: ModelSource; readonly name: string } | undefined;
let stopLoading = new AbortController();
let chat: Chat | undefined;
let writing: AbortController | undefined;

/**
 * Loads a model in place of the present one; what is still being done with that one ends. There is not memory for two
 * at all times, so the one before is loaded again where this one fails.
 */
function open(source: ModelSource, name: string, failure?: unknown): void {
  stopLoading.abort();
  writing?.abort();
  const previous = loading;
  const stop = new AbortController();
  stopLoading = stop;
  loading = (async () => {
    await previous?.then((model) => model.dispose()).catch(() => undefined);
    showLoading(name);
    // What comes back is not given up for itself.
    el.cancel.hidden = working === undefined || working.source === source;
    if (failure !== undefined) el.showError(failure);
    const model = await load(source, { signal: stop.signal, onProgress: showProgress });
    showModel(model, name);
    working = { source, name };
    return model;
  })();
  loading.catch((reason) => {
    if (stop.signal.aborted) return;
    // One that was to come back and fails is not tried again.
    if (failure !== undefined) working = undefined;
    else if (working !== undefined) return open(working.source, working.name, reason);
    el.loading.hidden = true;
    el.name.textContent = name;
    el.showError(failure ?? reason);
  });
}

function showLoading(name: string): void {
  chat = undefined;
  el.output.replaceChildren();
  el.speed.textContent = '';
  el.error.hidden = true;
  el.facts.hidden = true;
  el.loading.hidden = false;
  el.progress.removeAttribute('value');
  el.phase.textContent = 'Starting';
  el.name.textContent = `Loading ${name}`;
  el.say(`Loading ${name}`);
}

function showProgress({ phase, loaded, total }: LoadEvent): void {
  if (phase === 'weights' && total > 0) {
    el.progress.value = loaded / total;
    el.phase.textContent = `${PHASES.weights}, ${Math.round((100 * loaded) / total)}%`;
  } else {
    el.phase.textContent = PHASES[phase];
  }
}

function showModel(model: Model, name: string): void {
  el.loading.hidden = true;
  el.name.textContent = model.info.name || name;
  el.facts.replaceChildren(
    ...factsOf(model).map(([term, value]) => {
      const group = document.createElement('div');
      const dt = document.createElement('dt');
      const dd = document.createElement('dd');
      dt.textContent = term;
      dd.textContent = value;
      group.append(dt, dd);
      return group;
    }),
  );
  el.facts.hidden = false;
  el.modes.hidden = !model.info.hasChatTemplate;
  setMode(model.info.hasChatTemplate ? 'chat' : 'story');
  el.say(`${model.info.name || name} is ready`);
}

/** What has been written in the meantime stays: only the page's own beginning comes and goes. */
function setMode(mode: 'story' | 'chat'): void {
  const wasChat = el.go.textContent === 'Send';
  for (const input of el.modes.querySelectorAll('input')) input.checked = input.value === mode;
  const isChat = mode === 'chat';
  el.promptLabel.textContent = isChat ? 'Message' : 'Beginning of a text';
  el.go.textContent = isChat ? 'Send' : 'Write';
  const beginning = el.prompt.defaultValue;
  if (isChat && el.prompt.value === beginning) el.prompt.value = '';
  if (!isChat && wasChat && el.prompt.value === '') el.prompt.value = beginning;
}

function options(signal: AbortSignal) {
  const seed = el.seed.valueAsNumber;
  return {
    signal,
    temperature: Number.isFinite(el.temperature.valueAsNumber) ? el.temperature.valueAsNumber : 0.6,
    maxTokens: Math.max(1, Math.trunc(el.maxTokens.valueAsNumber) || 200),
    ...(Number.isSafeInteger(seed) && seed >= 0 ? { seed } : {}),
  };
}

/** Starts an answer, and shows where it goes. */
function begin(model: Model, text: string, signal: AbortSignal): [generation: Generation, place: HTMLElement] {
  const isChat = !el.modes.hidden && el.modes.querySelector<HTMLInputElement>('input:checked')?.value === 'chat';
  if (!isChat) {
    el.output.replaceChildren();
    el.append('span', 'given', text);
    return [model.generate(text, options(signal)), el.append('span', 'made')];
  }
  chat ??= model.chat();
  el.append('div', 'question', text);
  el.prompt.value = '';
  return [chat.send(text, options(signal)), el.append('div', 'answer')];
}

/** Shows the pieces as they come, some at a time, and how fast they come. */
async function show(generation: Generation, place: HTMLElement): Promise<void> {
  let text = '';
  let count = 0;
  let first = 0;
  let drawn = 0;
  const draw = () => {
    el.grow(place, text);
    text = '';
    drawn = performance.now();
    const seconds = (drawn - first) / 1000;
    if (count > 1) el.speed.textContent = `${count} tokens, ${((count - 1) / seconds).toFixed(0)} per second`;
  };
  for await (const piece of generation) {
    text += piece;
    count += 1;
    if (count === 1) {
      first = performance.now();
      performance.mark('first-token');
    }
    if (count === 1 || performance.now() - drawn >= DRAW_MS) draw();
  }
  draw();
  const { usage, finishReason, seed } = await generation.result;
  const speed = usage.decodeTokensPerSecond.toFixed(0);
  const wait = Math.round(usage.timeToFirstTokenMs);
  el.speed.textContent = `${usage.completionTokens} tokens, ${speed} per second, first after ${wait} ms, seed ${seed}`;
  el.say(`Finished after ${usage.completionTokens} tokens${finishReason === 'length' ? ', at the limit' : ''}`);
}

async function write(): Promise<void> {
  const text = el.prompt.value;
  if (writing !== undefined || text.trim() === '') return;
  const controller = new AbortController();
  writing = controller;
  el.go.disabled = true;
  el.stop.disabled = false;
  el.error.hidden = true;
  el.output.classList.add('writing');
  el.output.setAttribute('aria-busy', 'true');
  try {
    const model = await loading;
    controller.signal.throwIfAborted();
    // What was said of the last text is not true of this one.
    el.say('');
    await show(...begin(model, text, controller.signal));
  } catch (reason) {
    if (controller.signal.aborted) el.say('Stopped');
    else el.showError(reason);
  }
  writing = undefined;
  el.output.classList.remove('writing');
  el.output.removeAttribute('aria-busy');
  el.go.disabled = false;
  const hadFocus = document.activeElement === el.stop || document.activeElement === document.body;
  el.stop.disabled = true;
  if (hadFocus) el.prompt.focus({ preventScroll: true });
}

function openFiles(files: FileList | null | undefined): void {
  const [first, ...others] = files ?? [];
  if (first !== undefined) open(others.length > 0 ? [first, ...others] : first, first.name);
}

el.form.addEventListener('submit', (event) => {
  event.preventDefault();
  void write();
});
el.prompt.addEventListener('keydown', (event) => {
  const isChat = el.go.textContent === 'Send';
  if (event.key !== 'Enter' || event.isComposing || event.shiftKey) return;
  if (!isChat && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  el.form.requestSubmit();
});
// A setting that is out of range holds the form back: it must be seen.
el.form.addEventListener('invalid', () => el.settings.setAttribute('open', ''), true);
el.stop.addEventListener('click', () => writing?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') writing?.abort();
});
el.cancel.addEventListener('click', () => {
  if (working !== undefined) open(working.source, working.name);
});
el.modes.addEventListener('change', () => {
  el.output.replaceChildren();
  chat = undefined;
  setMode(el.modes.querySelector<HTMLInputElement>('input:checked')?.value === 'chat' ? 'chat' : 'story');
});
el.file.addEventListener('change', () => {
  openFiles(el.file.files);
  // Choosing the same file again, once it is mended, is a change too.
  el.file.value = '';
});
/** Text that is dragged goes where it always goes. */
const hasFiles = ({ dataTransfer }: DragEvent) => dataTransfer?.types.includes('Files') === true;
document.addEventListener('dragover', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  el.drop.hidden = false;
});
document.addEventListener('dragleave', (event) => {
  if (event.relatedTarget === null) el.drop.hidden = true;
});
document.addEventListener('drop', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  el.drop.hidden = true;
  openFiles(event.dataTransfer?.files);
});

open(EMBEDDED, 'the embedded model');
el.prompt.focus({ preventScroll: true });
