import * as library from '@huggingface/jinja';

// The library's declarations name their files without extensions, which TypeScript does not resolve
// here. These are the parts used, as version 0.5.11 has them; the tests fail when they change.

/** A node of a parsed template. Which fields it has depends on its type. */
export interface Node {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** A value while a template runs: `StringValue`, `ArrayValue`, `ObjectValue`, ... */
export interface Value {
  readonly type: string;
  value: unknown;
  readonly builtins?: ReadonlyMap<string, Value>;
}

export interface Scope {
  /** Declares a variable, converted from plain data or a function over plain data. */
  set(name: string, value: unknown): Value;
  /** An undefined value when there is none of that name. */
  lookupVariable(name: string): Value;
}

export interface Interpreter {
  /** Every node of a template is evaluated through here, also by the library itself. */
  evaluate(node: Node | undefined, scope: Scope): Value | undefined;
}

export interface Jinja {
  readonly Environment: new () => Scope;
  readonly Interpreter: new (scope: Scope) => Interpreter;
  readonly tokenize: (text: string, options: { trim_blocks: boolean; lstrip_blocks: boolean }) => unknown;
  readonly parse: (tokens: unknown) => Node;
}

export const jinja = library as unknown as Jinja;

export function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && 'type' in value;
}
