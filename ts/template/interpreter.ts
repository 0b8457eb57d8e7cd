import { type Interpreter, isNode, jinja, type Node, type Scope, type Value } from './jinja.js';
import { exceeded, type Meter } from './meter.js';

const MEMBERSHIP: ReadonlySet<string> = new Set(['in', 'not in']);
const MAX_COMPARISONS = 2 ** 29;
const MAX_ATTRIBUTE_LENGTH = 256;

/**
 * An interpreter that a template cannot make run long or grow large.
 *
 * The library evaluates every node through one method, which is wrapped here: time, nesting
 * and the size of every result are counted. So no operation ever sees a value above the limit, and
 * one operation takes time in proportion to its values, except for those that multiply: `range`,
 * `replace`, `join`, `indent` and `tojson` in size, `in`, `split`, `sort` and `map` in time. These are
 * refused by what they would cost before they run.
 */
export function createInterpreter(scope: Scope, meter: Meter): Interpreter {
  const interpreter = new jinja.Interpreter(scope);
  const plain = interpreter.evaluate.bind(interpreter);

  interpreter.evaluate = (node, scope) => {
    if (node instanceof Held) return node.held;
    meter.enter();
    try {
      const value = plain(prepare(node, scope), scope);
      meter.check(value);
      if (node?.type === 'Set') checkAssigned(node, scope, meter);
      return value;
    } finally {
      meter.leave();
    }
  };

  const hold = (node: unknown, scope: Scope): Held => {
    const value = isNode(node) ? interpreter.evaluate(node, scope) : undefined;
    if (value === undefined) throw exceeded('uses a value where there is none');
    return new Held(value);
  };

  const prepare = (node: Node | undefined, scope: Scope): Node | undefined => {
    switch (node?.type) {
      case 'FilterStatement': {
        // As a filter of the block's text, so that the text is measured first.
        const operand = { type: 'Program', body: node.body };
        return prepare({ type: 'FilterExpression', operand, filter: node.filter }, scope);
      }
      case 'FilterExpression':
        return prepareFilter(node, scope);
      case 'BinaryExpression':
        return isNode(node.operator) && MEMBERSHIP.has(String(node.operator.value))
          ? prepareMembership(node, scope)
          : node;
      case 'MemberExpression': {
        const object = hold(node.object, scope);
        boundMethods(object.held, meter);
        return { ...node, object };
      }
      default:
        return node;
    }
  };

  const prepareMembership = (node: Node, scope: Scope): Node => {
    const left = hold(node.left, scope);
    const right = hold(node.right, scope);
    checkSearch(right.held.value, left.held.value);
    return { ...node, left, right };
  };

  /** Evaluates what a multiplying filter works on, checks it, and puts the values in its place. */
  const prepareFilter = (node: Node, scope: Scope): Node => {
    const { filter } = node;
    if (!isNode(filter) || filter.type !== 'CallExpression' || !isNode(filter.callee)) return node;
    const name = String(filter.callee.value);
    const check = MULTIPLYING.get(name);
    if (check === undefined || !Array.isArray(filter.args)) return node;
    const operand = hold(node.operand, scope);
    boundMethods(operand.held, meter);
    const args = filter.args.map((arg: Node) => {
      if (arg.type.endsWith('SpreadExpression')) throw exceeded(`unpacks arguments of the filter ${name}`);
      if (arg.type !== 'KeywordArgumentExpression') return hold(arg, scope);
      return { ...arg, value: hold(arg.value, scope) };
    });
    check(operand.held, readArguments(args), meter);
    return { ...node, operand, filter: { ...filter, args } };
  };

  return interpreter;
}

/** Stands in a template for a value that has been evaluated already. */
class Held implements Node {
  readonly type = 'Held';
  readonly [field: string]: unknown;
  readonly held: Value;

  constructor(held: Value) {
    this.held = held;
  }
}

/** What a variable holds was not always measured as a result: the text of a block was not. */
function checkAssigned(node: Node, scope: Scope, meter: Meter): void {
  const { assignee } = node;
  if (!isNode(assignee) || assignee.type === 'TupleLiteral') return;
  const target = assignee.type === 'MemberExpression' ? assignee.object : assignee;
  if (!isNode(target) || target.type !== 'Identifier') throw exceeded('assigns to something without a name');
  meter.check(scope.lookupVariable(String(target.value)));
}

const bound = new WeakSet<Value>();

/** Makes the methods of a string that search in it, which filters call too, check their cost first. */
function boundMethods(text: Value, meter: Meter): void {
  if (text.type !== 'StringValue' || typeof text.value !== 'string') return;
  const string = text.value;
  const before = (name: string, check: (search: string, replacement: unknown) => void): void => {
    const method = text.builtins?.get(name);
    if (method === undefined || bound.has(method)) return;
    const original = method.value as (args: readonly Value[], scope: Scope) => Value;
    method.value = (args: readonly Value[], scope: Scope) => {
      const search = args[0]?.value;
      if (typeof search === 'string') check(search, args[1]?.value);
      return original(args, scope);
    };
    bound.add(method);
  };
  before('split', (search) => checkSearch(string, search));
  before('replace', (search, replacement) => {
    checkSearch(string, search);
    meter.room(string.length + occurrences(string, search) * textLength(replacement));
  });
}

/** Searching takes at worst as many comparisons as the product of the lengths. */
function checkSearch(text: unknown, search: unknown): void {
  if (textLength(text) * textLength(search) > MAX_COMPARISONS) throw exceeded('searches for too long a text');
}

function occurrences(text: string, search: string): number {
  if (search === '') return text.length + 1;
  let count = 0;
  for (let at = text.indexOf(search); at !== -1; at = text.indexOf(search, at + search.length)) count += 1;
  return count;
}

interface Arguments {
  readonly positional: readonly unknown[];
  readonly named: ReadonlyMap<string, unknown>;
}

function readArguments(args: readonly Node[]): Arguments {
  const positional: unknown[] = [];
  const named = new Map<string, unknown>();
  for (const arg of args) {
    if (arg instanceof Held) positional.push(arg.held.value);
    else if (isNode(arg.key) && arg.value instanceof Held)
      named.set(String(arg.key.value), arg.value.held.value);
  }
  return { positional, named };
}

type Check = (operand: Value, args: Arguments, meter: Meter) => void;

const textLength = (value: unknown): number => (typeof value === 'string' ? value.length : 0);
const width = (value: unknown): number => (typeof value === 'number' ? value : 0);

/** The filters that can cost or make more than what goes into them by more than a small factor. */
const MULTIPLYING: ReadonlyMap<string, Check> = new Map<string, Check>([
  // Checked where the string's method is called.
  ['replace', () => {}],
  ['map', (_, { named }) => checkAttribute(named.get('attribute'))],
  ['sort', (_, { positional, named }) => checkAttribute(positional[2] ?? named.get('attribute'))],
  [
    'join',
    (operand, { positional, named }, meter) => {
      const separator = textLength(positional[0] ?? named.get('separator'));
      const count = Array.isArray(operand.value) ? operand.value.length : textLength(operand.value);
      meter.room(meter.check(operand).size + count * separator);
    },
  ],
  [
    'indent',
    ({ value }, { positional, named }, meter) => {
      if (typeof value !== 'string') return;
      const lines = occurrences(value, '\n') + 1;
      meter.room(value.length + lines * width(positional[0] ?? named.get('width')));
    },
  ],
  [
    'tojson',
    (operand, { named }, meter) => {
      const { size, nodes, depth } = meter.check(operand);
      const separators = named.get('separators');
      const between = Array.isArray(separators)
        ? separators.reduce((sum: number, part: Value) => sum + textLength(part.value), 0)
        : 0;
      meter.room(size + nodes * (depth * width(named.get('indent')) + between));
    },
  ],
]);

/** An attribute is a path that is taken apart once for every item. */
function checkAttribute(attribute: unknown): void {
  if (textLength(attribute) > MAX_ATTRIBUTE_LENGTH) throw exceeded('names too long an attribute');
}
