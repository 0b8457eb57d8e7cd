import type { Plan, PlanOp, Rope } from './types.js';

/**
 * A plan as text, one line each for caches, buffers, ropes, tensors and numbered ops: for people,
 * messages and comparisons. Shapes read [rows, width] for buffers and [rows, cols] for tensors.
 */
export function printPlan(plan: Plan): string {
  const lines = [
    `plan ${plan.version} ${plan.name}: vocabulary ${plan.vocabSize}, context ${plan.contextLength}`,
    ...printKvLayers(plan),
    ...plan.buffers.map((buffer) => `buffer ${buffer.name} [${buffer.rows}, ${buffer.width}]`),
    ...plan.ropes.map((rope, index) => `rope ${index} ${printRope(rope)}`),
    ...plan.tensors.map((tensor) => `tensor ${tensor.name} ${tensor.type} [${tensor.rows}, ${tensor.cols}]`),
    ...plan.ops.map((op, index) => `${index} ${printOp(op)}`),
    `hidden ${plan.hidden}`,
  ];
  return `${lines.join('\n')}\n`;
}

/** Equal layers in a row share a line. */
function printKvLayers(plan: Plan): string[] {
  const lines: string[] = [];
  let first = 0;
  for (const [index, layer] of plan.kvLayers.entries()) {
    const next = plan.kvLayers[index + 1];
    const { kvHeads, headDim, valueDim } = layer;
    const same = next?.kvHeads === kvHeads && next.headDim === headDim && next.valueDim === valueDim;
    if (same) continue;
    const layers = first === index ? `${index}` : `${first}..${index}`;
    const values = valueDim === undefined ? '' : ` and ${valueDim}`;
    const type = plan.kvCache === undefined ? '' : ` as ${plan.kvCache}`;
    lines.push(`kv ${layers}: ${kvHeads} heads of ${headDim}${values}${type}`);
    first = index + 1;
  }
  return lines;
}

function printRope(rope: Rope): string {
  const parts = [`${rope.layout} dims ${rope.dims} base ${rope.base}`];
  if (rope.factor !== 1) parts.push(`factor ${rope.factor}`);
  if (rope.extFactor !== 0) {
    parts.push(
      `yarn ${rope.extFactor} beta ${rope.betaFast}..${rope.betaSlow}${rope.exactRamp ? ' exactly' : ''} original ${rope.originalContext}`,
    );
  }
  if (rope.attnFactor !== 1) parts.push(`attention ${rope.attnFactor}`);
  if (rope.logMultiplier !== undefined) parts.push(`scores ${rope.logMultiplier}`);
  if (rope.factors !== undefined) parts.push(`divided by ${rope.factors}`);
  return parts.join(' ');
}

/** One op as text: what it writes, then its name and inputs. */
function printOp(op: PlanOp): string {
  switch (op.op) {
    case 'embed':
      return `${op.out} = embed(${op.table}${option('scale', op.scale)})`;
    case 'rms_norm':
      return `${op.out} = rms_norm(${op.x}, ${op.weight}, eps ${op.eps})`;
    case 'add':
      return `${op.out} += ${op.x}`;
    case 'linear':
      return `${op.out} ${op.add ? '+=' : '='} linear(${op.x}, ${op.weight}${option('bias', op.bias)}${op.precise ? ', precise' : ''})`;
    case 'glu':
      return (
        `${op.out} = glu(${op.x}, ${op.gate}, ${op.up}, ${op.activation}` +
        `${option('biases', listed([op.gateBias, op.upBias]))})`
      );
    case 'experts': {
      const normalised = op.normalise ? ', normalised' : '';
      const groups = op.groups && `${op.groups.used} of ${op.groups.count} by best ${op.groups.best}`;
      const biases = listed([op.gateBias, op.upBias, op.downBias]);
      return (
        `${op.out} += experts(${op.x}, gates ${op.gates}, ${op.gate}, ${op.up}, ${op.down}, ${op.activation}, ` +
        `top ${op.topK}${normalised}${op.scale === 1 ? '' : `, scale ${op.scale}`}` +
        `${option('scored by', op.scoring)}${option('chosen with', op.selectionBias)}${option('groups', groups)}` +
        `${option('biases', biases)})`
      );
    }
    case 'linear_heads':
      return `${op.out} = linear_heads(${op.x}, ${op.weight}${op.precise ? ', precise' : ''})`;
    case 'gate':
      return `${op.x} *= sigmoid(${op.gate})`;
    case 'copy': {
      const at = (name: string, heads: number, start: number) =>
        `${name}[${heads}][${start}..${start + op.count}]`;
      return `${at(op.out, op.heads, op.to)} = ${at(op.x, op.xHeads, op.from)}`;
    }
    case 'rope':
      return `${op.x} = rope(${op.x}, rope ${op.rope}, head ${op.headDim}${option('at', op.at)})`;
    case 'attention':
      return (
        `${op.out} = attention(${op.q}, ${op.k}, ${op.v}, layer ${op.layer}, ` +
        `heads ${op.heads}${option('scale', op.scale)}${option('rope', op.rope)}${option('window', op.window)}` +
        `${option('softcap', op.softcap)}${option('sinks', op.sinks)})`
      );
    case 'select_outputs':
      return `${op.out} = select_outputs(${op.x})`;
    case 'logits':
      return `logits(${op.x}, ${op.weight}${option('bias', op.bias)}${option('softcap', op.softcap)})`;
  }
}

/** Those there are, with spaces between. */
function listed(names: readonly (string | undefined)[]): string | undefined {
  return names.filter((name) => name !== undefined).join(' ') || undefined;
}

function option(name: string, value: string | number | undefined): string {
  return value === undefined ? '' : `, ${name} ${value}`;
}
