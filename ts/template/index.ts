import { FrugalError, isFrugalError } from '../errors.js';
import { createInterpreter } from './interpreter.js';
import { jinja, type Node, type Scope } from './jinja.js';
import { createMeter, exceeded, type Meter, NODE_SIZE } from './meter.js';
import { strftime } from './strftime.js';

/** One message of a conversation, as templates see it. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, or what else the template knows. */
  readonly role: string;
  readonly content: string;
}

export interface ChatContext {
  readonly bosToken: string;
  readonly eosToken: string;
  /** Whether to end with the beginning of the assistant's answer. */
  readonly addGenerationPrompt: boolean;
  /** What `strftime_now` reads. @default the present */
  readonly now?: Date;
}

/** The most characters a template may have; those of today's models have up to about 40,000. */
export const MAX_TEMPLATE_LENGTH = 1 << 17;
// The library looks for some tags with patterns that take quadratic time on white space.
const MAX_WHITE_SPACE = 256;
const BASE_SIZE = 1 << 18;
const SIZE_PER_INPUT = 4;
const MAX_REASON_LENGTH = 300;

/**
 * Renders a conversation with a model's Jinja chat template into the text to give to the model.
 * Templates see what they see in their own training code: messages, add_generation_prompt, bos_token,
 * eos_token, tools and documents (none), raise_exception, strftime_now, range and namespace.
 *
 * Templates come with model files and are not trusted. One may have 131,072 characters and no more than
 * 256 white space characters in a row, take 600 ms, nest 256 deep, and make values of
 * up to 262,144 characters and four times the conversation; that bounds the result too.
 *
 * @throws FrugalError `TEMPLATE_FAILED` at a limit, for an error in the template, and when the template
 * refuses the messages; `INVALID_ARGUMENT` for messages that are not roles with contents
 */
export function renderChat(template: string, messages: readonly ChatMessage[], context: ChatContext): string {
  const plainMessages = messages.map(checkMessage);
  checkTemplate(template);
  try {
    const meter = createMeter();
    const program = parse(template);
    return run(program, createScope(plainMessages, context, meter), meter);
  } catch (error) {
    throw isFrugalError(error) ? error : failed(error);
  }
}

function checkMessage(message: ChatMessage, index: number): ChatMessage {
  const { role, content } = message;
  if (typeof role === 'string' && typeof content === 'string') return { role, content };
  throw new FrugalError('INVALID_ARGUMENT', `message ${index} needs a role and a content, both strings`, {
    cure: "pass messages like { role: 'user', content: 'Hello' }",
    data: { index },
  });
}

function checkTemplate(template: string): void {
  if (template.length > MAX_TEMPLATE_LENGTH) {
    throw exceeded(`has ${template.length} characters, more than ${MAX_TEMPLATE_LENGTH}`);
  }
  for (const [run] of template.matchAll(/\s+/g)) {
    if (run.length > MAX_WHITE_SPACE) {
      throw exceeded(`has more than ${MAX_WHITE_SPACE} white space characters in a row`);
    }
  }
}

function parse(template: string): Node {
  try {
    return jinja.parse(jinja.tokenize(template, { trim_blocks: true, lstrip_blocks: true }));
  } catch (error) {
    // In a template that is cut off the library reads on past the end.
    throw failed(
      error instanceof TypeError ? new Error('it is cut off or no Jinja', { cause: error }) : error,
    );
  }
}

function run(program: Node, scope: Scope, meter: Meter): string {
  const result = createInterpreter(scope, meter).evaluate(program, scope);
  if (typeof result?.value === 'string') return result.value;
  throw exceeded('gives no text');
}

function createScope(messages: readonly ChatMessage[], context: ChatContext, meter: Meter): Scope {
  const scope = new jinja.Environment();
  for (const [name, value] of [
    ['true', true],
    ['false', false],
    ['none', null],
  ] as const) {
    scope.set(name, value);
    scope.set(name.charAt(0).toUpperCase() + name.slice(1), value);
  }
  scope.set('raise_exception', raiseException);
  scope.set('range', (...args: unknown[]) => range(args, meter));
  scope.set('strftime_now', (format: unknown) => strftime(context.now ?? new Date(), String(format)));
  scope.set('bos_token', context.bosToken);
  scope.set('eos_token', context.eosToken);
  scope.set('add_generation_prompt', context.addGenerationPrompt);
  scope.set('tools', null);
  scope.set('documents', null);
  const { size } = meter.check(scope.set('messages', messages));
  meter.limit(BASE_SIZE + SIZE_PER_INPUT * size);
  return scope;
}

/** How a template says that a conversation is not one it can render. */
function raiseException(reason: unknown): never {
  const text = String(reason).slice(0, MAX_REASON_LENGTH);
  throw new FrugalError('TEMPLATE_FAILED', `the chat template refuses these messages: ${text}`, {
    cure: 'change the roles or the order of the messages, or pass another chat template',
    data: { reason: text },
  });
}

/** Python's range, refused by its length before it is made. */
function range(args: readonly unknown[], meter: Meter): number[] {
  const numbers = args.filter((arg) => Number.isSafeInteger(arg)) as number[];
  const [start = 0, stop = 0, step = 1] = args.length === 1 ? [0, ...numbers] : numbers;
  if (numbers.length !== args.length || args.length < 1 || args.length > 3 || step === 0) {
    throw exceeded('calls range with something other than whole numbers');
  }
  const length = Math.max(0, Math.ceil((stop - start) / step));
  meter.room(length * NODE_SIZE);
  return Array.from({ length }, (_, index) => start + index * step);
}

/** What the library throws: its own messages, and JavaScript's for a template that nests too deep. */
function failed(error: unknown): FrugalError {
  const reason = (error instanceof Error ? error.message : String(error)).slice(0, MAX_REASON_LENGTH);
  return new FrugalError('TEMPLATE_FAILED', `the chat template failed: ${reason || 'no reason given'}`, {
    cure: 'pass another chat template in the options',
    data: { reason },
    cause: error,
  });
}
