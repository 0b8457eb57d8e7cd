import { describe, expect, it } from 'vitest';
import { MAX_TEMPLATE_LENGTH, renderChat } from '../../ts/template/index.js';

const context = { bosToken: '<s>', eosToken: '</s>', addGenerationPrompt: true };
const messages = [{ role: 'user', content: 'Hi' }];

const double = (body: string, times: number): string =>
  `{% set ns = namespace(s='ab') %}{% for i in range(${times}) %}{% set ns.s = ${body} %}{% endfor %}`;
const long = double('ns.s + ns.s', 16); // 131072 characters
const nestedLoops = (depth: number): string =>
  `${'{% for i in range(1000) %}'.repeat(depth)}x${'{% endfor %}'.repeat(depth)}`;

/** Templates that would run for minutes or fill the memory, by what they abuse. */
const HOSTILE: Record<string, string> = {
  'a huge range': '{% for i in range(1000000000000) %}{% endfor %}',
  'a range to infinity': '{% for i in range(10 ** 308) %}{% endfor %}',
  'a range of anything': "{{ range('a') }}",
  'nested loops': nestedLoops(6),
  'nested loops without text': nestedLoops(4).replace('x', ''),
  'doubled strings': double('ns.s + ns.s', 60),
  'doubled strings by ~': double('ns.s ~ ns.s', 60),
  'doubled variables': `{% set a = 'ab' %}${'{% set a = a ~ a %}'.repeat(60)}`,
  'doubled lists': double('[ns.s, ns.s]', 60),
  'doubled lists as JSON': `${double('[ns.s, ns.s]', 40)}{{ ns.s | tojson }}`,
  'doubled objects': double("{'a': ns.s, 'b': ns.s}", 60),
  'concatenated lists': `{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}`,
  'doubled blocks': `{% set a = 'ab' %}${'{% set a %}{{ a }}{{ a }}{% endset %}'.repeat(60)}`,
  'text of many loops': `${long}{% for i in range(10000) %}{{ ns.s }}{% endfor %}`,
  'text of a block': `${long}{% set t %}${'{{ ns.s }}'.repeat(8000)}{% endset %}{{ t | upper }}`,
  'text of a filter block': `${long}{% filter upper %}${'{{ ns.s }}'.repeat(8000)}{% endfilter %}`,
  'a replacement of everything': `${long}{{ ns.s.replace('a', ns.s) }}`,
  'a replacement of nothing': `${long}{{ ns.s.replace('', ns.s) }}`,
  'a replacement by filter': `${long}{{ ns.s | replace('a', ns.s) }}`,
  'a replacement by subscript': `${long}{{ ns.s['replace']('a', ns.s) }}`,
  'a replacement by name': `${long}{% set f = ns.s.replace %}{{ f('a', ns.s) }}`,
  'a replacement in a block': `${long}{% filter replace('a', ns.s) %}{{ ns.s }}{% endfilter %}`,
  'a long separator': `${long}{{ ns.s | join(ns.s) }}`,
  'a long separator by name': `${long}{{ range(9000) | join(separator=ns.s) }}`,
  'unpacked arguments': `${long}{{ ns.s | join(*[ns.s]) }}`,
  'a wide indent': "{{ 'a\\nb' | indent(100000000) }}",
  'a wide indent by name': "{{ 'a\\nb' | indent(width=100000000) }}",
  'a wide JSON indent': '{{ messages | tojson(indent=100000000) }}',
  'a long JSON separator': `${long}{{ range(9000) | tojson(separators=(ns.s, ns.s)) }}`,
  'a long search': `${long}{% set n = ns.s[:60000] ~ 'c' ~ ns.s[:60000] %}{{ n in ns.s }}`,
  'a long split': `${long}{% set n = ns.s[:60000] ~ 'c' ~ ns.s[:60000] %}{{ ns.s.split(n) }}`,
  'a long attribute': `${double("ns.s + '.'", 10)}${double('ns.s + ns.s', 14)}{{ messages | map(attribute=ns.s) }}`,
  'a long sort key': `${long}{{ messages | sort(attribute=ns.s) }}`,
  'a namespace in itself': '{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}',
  'a namespace in a list': '{% set ns = namespace() %}{% set ns.a = [ns, ns] %}{{ ns.a | tojson }}',
  'endless recursion': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  'branching recursion': '{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}',
  'recursion through a caller':
    '{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}',
  'a deep expression': `{{ ${'('.repeat(50_000)}1${')'.repeat(50_000)} }}`,
  'a deep list': `{{ ${'['.repeat(50_000)}${']'.repeat(50_000)} }}`,
  'deep blocks': `${'{% if true %}'.repeat(5000)}x${'{% endif %}'.repeat(5000)}`,
  'a long sum': `{{ ${'1+'.repeat(50_000)}1 }}`,
  'deeply nested values': `{% set ns = namespace(s=[]) %}{% for i in range(5000) %}{% set ns.s = [ns.s] %}{% endfor %}`,
  'white space': `{{ 1 }}${' '.repeat(100_000)}x`,
  'many white spaces': `${`${' '.repeat(250)}x`.repeat(500)}{{ `,
  'its own length': 'x'.repeat(MAX_TEMPLATE_LENGTH + 1),
  'a long reason': `${long}{{ raise_exception(ns.s) }}`,
  'sorting in loops': `{% for i in range(10000) %}{% set a = range(10000) | sort %}{% endfor %}`,
  'undefined names in loops': nestedLoops(3).replace('x', '{% if nothing %}{% endif %}'),
};

describe('hostile templates end soon with TEMPLATE_FAILED', () => {
  it.each(Object.entries(HOSTILE))('%s', (_, template) => {
    const before = process.memoryUsage().rss;
    const started = performance.now();
    let caught: unknown = 'no error';
    try {
      renderChat(template, messages, context);
    } catch (error) {
      caught = error;
    }
    const took = performance.now() - started;
    expect(caught).toMatchObject({ code: 'TEMPLATE_FAILED' });
    expect((caught as Error).message.length).toBeLessThan(400);
    expect(took).toBeLessThan(1000);
    expect(process.memoryUsage().rss - before).toBeLessThan(256 * 1024 * 1024);
  });
});
