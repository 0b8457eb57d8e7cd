import { describe, expect, it } from 'vitest';
import { type ChatMessage, renderChat } from '../../ts/template/index.js';
import { CHATML, GPT_OSS, LLAMA2, LLAMA3, MISTRAL, QWEN3 } from './templates.js';

const context = {
  bosToken: '<s>',
  eosToken: '</s>',
  addGenerationPrompt: true,
  now: new Date(2026, 0, 5, 13, 7, 9),
};
const talk: ChatMessage[] = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'Hi' },
  { role: 'assistant', content: '<think>greet</think>\nHello!' },
  { role: 'user', content: 'Why?' },
];

describe('common chat templates', () => {
  it('renders ChatML', () => {
    expect(renderChat(CHATML, talk.slice(0, 2), context)).toBe(
      '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n',
    );
    const closed = renderChat(CHATML, talk.slice(0, 1), { ...context, addGenerationPrompt: false });
    expect(closed).toBe('<|im_start|>system\nBe brief.<|im_end|>\n');
  });

  it('renders the Llama 2 style', () => {
    expect(renderChat(LLAMA2, talk, context)).toBe(
      '<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] <think>greet</think>\nHello! </s><s>[INST] Why? [/INST]',
    );
  });

  it('renders the Llama 3 style, with a date and no tools', () => {
    expect(renderChat(LLAMA3, talk.slice(0, 2), { ...context, bosToken: '<|begin_of_text|>' })).toBe(
      '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 05 Jan 2026\n\nBe brief.<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
    );
  });

  it('renders the Mistral style, with a namespace', () => {
    expect(renderChat(MISTRAL, talk, context)).toBe(
      '<s>[INST] Hi[/INST] <think>greet</think>\nHello!</s>[INST] Be brief.\n\nWhy?[/INST]',
    );
  });

  it('renders the Qwen 3 style, without earlier thoughts', () => {
    expect(renderChat(QWEN3, talk, context)).toBe(
      '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n' +
        '<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n',
    );
  });

  it('renders the gpt-oss style, with channels', () => {
    const system =
      '<|start|>system<|message|>You are a large language model.\nKnowledge cutoff: 2024-06\n' +
      'Current date: 2026-01-05\n\nReasoning: medium\n\n' +
      '# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>';
    const said = (answer: string, end: string) =>
      `<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>${answer}<|${end}|>`;
    const messages = talk.map((message) =>
      message.role === 'assistant' ? { ...message, content: 'Hello!' } : message,
    );
    const developer = '<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>';
    const why = '<|start|>user<|message|>Why?<|end|>';
    expect(renderChat(GPT_OSS, messages, context)).toBe(
      `${system}${developer}${said('Hello!', 'end')}${why}<|start|>assistant`,
    );
    const closed = renderChat(GPT_OSS, messages.slice(1, 3), { ...context, addGenerationPrompt: false });
    expect(closed).toBe(system + said('Hello!', 'return'));
  });

  it('renders the gpt-oss style with tools, which its macros write as types', () => {
    const unit = { type: 'string', enum: ['C', 'F'], default: 'C' };
    const days = {
      type: 'array',
      items: { type: 'object', properties: { day: { type: ['string', 'null'] } } },
    };
    const properties = { place: { type: 'string', description: 'A town' }, unit, days };
    const weather = {
      name: 'weather',
      description: 'Looks outside',
      parameters: { properties, required: ['place'] },
    };
    const tools = `{%- set tools = ${JSON.stringify([{ function: weather }])} %}`;
    const text = renderChat(tools + GPT_OSS, talk.slice(1, 2), context);
    expect(text).toContain(
      '<|start|>developer<|message|>\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n// Looks outside\n' +
        'type weather = (_: {\n// A town\nplace: string,\nunit?: "C" | "F", // default: C,\n' +
        'days?: {\nday?: string | null}[],\n}) => any;\n\n} // namespace functions<|end|>',
    );
  });

  it.each([
    ['an answer with its channels', 'assistant', '<|channel|>analysis<|message|>Well.<|end|>', '<|channel|>'],
    ['the result of a tool that was not called', 'tool', '4', 'tool role'],
  ])('the gpt-oss style refuses %s', (_, role, content, reason) => {
    const refused = () =>
      renderChat(
        GPT_OSS,
        [
          { role: 'user', content: 'Hi' },
          { role, content },
        ],
        context,
      );
    expect(refused).toThrow(
      expect.objectContaining({ code: 'TEMPLATE_FAILED', message: expect.stringContaining(reason) }),
    );
  });

  it('takes content as it is, not as template code', () => {
    const content = '{{ 7 * 7 }}{% for %} <|im_end|>';
    expect(renderChat(CHATML, [{ role: 'user', content }], context)).toContain(`user\n${content}<|im_end|>`);
  });

  it('renders long conversations and long messages', () => {
    const many = Array.from({ length: 500 }, (_, i) => ({
      role: i % 2 ? 'assistant' : 'user',
      content: 'word',
    }));
    expect(renderChat(QWEN3, many, context).split('<|im_start|>')).toHaveLength(502);
    const content = 'a '.repeat(1_000_000);
    expect(renderChat(CHATML, [{ role: 'user', content }], context)).toContain(content);
  });

  it('holds the thread for less than 10 ms', () => {
    for (const template of [CHATML, LLAMA2, LLAMA3, MISTRAL, QWEN3, GPT_OSS]) {
      const times = Array.from({ length: 5 }, () => {
        const started = performance.now();
        renderChat(template, talk, context);
        return performance.now() - started;
      });
      expect(Math.min(...times)).toBeLessThan(10);
    }
  });
});

describe('what templates may use', () => {
  const render = (template: string) => renderChat(template, talk, context);

  it.each([
    ["{{ 'a-b-c'.replace('-', '+') }}{{ 'x y' | replace('x', 'z') }}", 'a+b+cz y'],
    ["{{ ['a', 'b'] | join(', ') }}", 'a, b'],
    ["{{ {'a': [1, 2]} | tojson }}", '{"a": [1, 2]}'],
    ["{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'],
    ["{{ 'a\\nb' | indent(2) }}", 'a\n  b'],
    ['{% filter upper %}a{% endfilter %}', 'A'],
    ["{% filter replace('a', 'bb') %}aa{% endfilter %}", 'bbbb'],
    ['{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}{% for i in range(2) %}{{ i }}{% endfor %}', '13501'],
    ['{% for i in range(2, 0, -1) %}{{ i }}{% endfor %}', '21'],
    [
      '{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}',
      '02',
    ],
    ["{% macro m(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ m('a') }}{{ m('b', y='?') }}", 'a!b?'],
    ['{% set block %}{{ 1 + 1 }}{% endset %}{{ block }}', '2'],
    [
      "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
      'Hi|Why?',
    ],
    ["{{ 'b' in ['a', 'b'] }}{{ 'b' not in 'abc' }}{{ 'role' in messages[0] }}", 'truefalsetrue'],
    ['{{ tools is none and documents is none and enable_thinking is not defined }}', 'true'],
    [
      "{{ strftime_now('%A %d %B %Y %H:%M:%S %y %m %b %a %% %Q') }}",
      'Monday 05 January 2026 13:07:09 26 01 Jan Mon % %Q',
    ],
    ['{{ bos_token }}{{ eos_token }}{{ add_generation_prompt and True and not none }}', '<s></s>true'],
  ])('%s', (template, expected) => {
    expect(render(template)).toBe(expected);
  });
});

describe('failures', () => {
  const failure = (template: string, messages = talk): unknown => {
    try {
      return renderChat(template, messages, context);
    } catch (error) {
      return error;
    }
  };

  it('says why a template refuses a conversation', () => {
    expect(failure(LLAMA2, talk.slice(2))).toMatchObject({
      code: 'TEMPLATE_FAILED',
      message:
        'the chat template refuses these messages: roles must alternate user/assistant/user/assistant/...',
    });
  });

  it.each([
    '{% for x in %}',
    '{{ 1 +',
    '{% if true %}',
    '{{ nothing.see() }}',
    '{{ messages() }}',
    '{% bogus %}',
  ])('refuses the broken template %s', (template) => {
    expect(failure(template)).toMatchObject({
      code: 'TEMPLATE_FAILED',
      cure: expect.stringContaining('template'),
    });
  });

  it('names a message that is not one', () => {
    const messages = [talk[0], { role: 'user' }] as ChatMessage[];
    expect(failure(CHATML, messages)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'message 1 needs a role and a content, both strings',
    });
  });
});
