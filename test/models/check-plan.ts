import { expect } from 'vitest';
import type { Plan, PlanOp } from '../../ts/plan/types.js';

/**
 * Runs a plan over shapes alone: every buffer is written before it is read, every matrix fits what it
 * is applied to, and every name exists.
 */
export function checkPlan(plan: Plan): void {
  const tensors = new Map(plan.tensors.map((tensor) => [tensor.name, tensor]));
  const buffers = new Map(plan.buffers.map((buffer) => [buffer.name, buffer]));
  expect(tensors.size).toBe(plan.tensors.length);
  expect(buffers.size).toBe(plan.buffers.length);
  const written = new Set<string>();
  const used = new Set<string>();

  const buffer = (name: string) => buffers.get(name) ?? expect.fail(`no buffer ${name}`);
  const read = (name: string) => {
    if (!written.has(name)) expect.fail(`${name} is read before it is written`);
    return buffer(name);
  };
  const tensor = (name: string) => {
    used.add(name);
    return tensors.get(name) ?? expect.fail(`no tensor ${name}`);
  };
  const write = (name: string, width: number, rows: 'tokens' | 'outputs') => {
    expect(buffer(name), `the buffer ${name}`).toMatchObject({ width, rows });
    written.add(name);
  };
  const checkBias = (name: string | undefined, cols: number) => {
    if (name !== undefined) expect(tensor(name)).toMatchObject({ rows: 1, cols });
  };

  const step = (op: PlanOp): void => {
    switch (op.op) {
      case 'embed': {
        const table = tensor(op.table);
        expect(table.rows).toBe(plan.vocabSize);
        write(op.out, table.cols, 'tokens');
        return;
      }
      case 'rms_norm': {
        const x = read(op.x);
        const weight = tensor(op.weight);
        expect([weight.rows, x.width % weight.cols]).toEqual([1, 0]);
        write(op.out, x.width, x.rows);
        return;
      }
      case 'linear': {
        const x = read(op.x);
        const weight = tensor(op.weight);
        expect(weight.cols, op.weight).toBe(x.width);
        checkBias(op.bias, weight.rows);
        if (op.add) read(op.out);
        write(op.out, weight.rows, x.rows);
        return;
      }
      case 'glu': {
        const x = read(op.x);
        const [gate, up] = [tensor(op.gate), tensor(op.up)];
        expect([gate.cols, up.cols, up.rows]).toEqual([x.width, x.width, gate.rows]);
        checkBias(op.gateBias, gate.rows);
        checkBias(op.upBias, gate.rows);
        write(op.out, gate.rows, x.rows);
        return;
      }
      case 'experts': {
        const [x, gates] = [read(op.x), read(op.gates)];
        const [gate, up, down] = [tensor(op.gate), tensor(op.up), tensor(op.down)];
        const stack = {
          rows: gate.rows,
          cols: x.width,
          experts: gates.width * (op.gate === op.up ? 2 : 1),
        };
        expect([gate, up]).toMatchObject([stack, stack]);
        expect(down).toMatchObject({ rows: x.width, cols: gate.rows, experts: gates.width });
        expect(op.topK).toBeLessThanOrEqual(gates.width);
        checkBias(op.selectionBias, gates.width);
        const biases = gates.width * gate.rows * (op.gateBias === op.upBias ? 2 : 1);
        checkBias(op.gateBias, biases);
        checkBias(op.upBias, biases);
        checkBias(op.downBias, gates.width * x.width);
        expect(read(op.out)).toMatchObject({ width: x.width, rows: x.rows });
        return;
      }
      case 'linear_heads': {
        const x = read(op.x);
        const { rows, cols, experts: heads = 0 } = tensor(op.weight);
        expect(cols * heads).toBe(x.width);
        write(op.out, rows * heads, 'tokens');
        return;
      }
      case 'gate':
        expect(read(op.gate)).toMatchObject({ width: 1, rows: read(op.x).rows });
        return;
      case 'copy': {
        const [x, out] = [read(op.x), buffer(op.out)];
        expect([1, op.heads]).toContain(op.xHeads);
        expect(op.from + op.count).toBeLessThanOrEqual(x.width / op.xHeads);
        expect(op.to + op.count).toBeLessThanOrEqual(out.width / op.heads);
        write(op.out, out.width, x.rows);
        return;
      }
      case 'rope': {
        const x = read(op.x);
        const rope = plan.ropes[op.rope] ?? expect.fail(`no rope ${op.rope}`);
        expect(x.width % op.headDim).toBe(0);
        expect(rope.dims % 2).toBe(0);
        expect(rope.dims + (op.at ?? 0)).toBeLessThanOrEqual(op.headDim);
        if (rope.factors !== undefined) {
          expect(tensor(rope.factors)).toMatchObject({ type: 'F32', rows: 1, cols: rope.dims / 2 });
        }
        return;
      }
      case 'attention': {
        const kv = plan.kvLayers[op.layer] ?? expect.fail(`no cache ${op.layer}`);
        expect(read(op.q).width).toBe(op.heads * kv.headDim);
        expect(read(op.k).width).toBe(kv.kvHeads * kv.headDim);
        const valueDim = kv.valueDim ?? kv.headDim;
        expect(read(op.v).width).toBe(kv.kvHeads * valueDim);
        expect(op.heads % kv.kvHeads).toBe(0);
        if (op.sinks !== undefined) expect(tensor(op.sinks)).toMatchObject({ rows: 1, cols: op.heads });
        write(op.out, op.heads * valueDim, 'tokens');
        return;
      }
      case 'add': {
        expect(read(op.x).width).toBe(read(op.out).width);
        return;
      }
      case 'select_outputs': {
        const x = read(op.x);
        expect(x.rows).toBe('tokens');
        write(op.out, x.width, 'outputs');
        return;
      }
      case 'logits': {
        const x = read(op.x);
        expect(x.rows).toBe('outputs');
        expect(tensor(op.weight)).toMatchObject({ rows: plan.vocabSize, cols: x.width });
        checkBias(op.bias, plan.vocabSize);
        return;
      }
    }
  };
  plan.ops.forEach(step);

  const layers = plan.ops.flatMap((op) => (op.op === 'attention' ? [op.layer] : []));
  expect(layers).toEqual(plan.kvLayers.map((_, index) => index));
  expect(plan.ops.at(-1)?.op).toBe('logits');
  expect(read(plan.hidden).rows).toBe('outputs');
  expect([...used].sort()).toEqual([...tensors.keys()].sort());
  expect([...written].sort()).toEqual([...buffers.keys()].sort());
}
