/** `tokenizer.ggml.token_type`, as the GGUF format numbers it. */
export const TokenType = {
  undefined: 0,
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const;

/**
 * What a token is, as bits: a token that the file calls normal or user-defined and whose text is that of a
 * well-known control token is both.
 */
export const Attribute = {
  none: 0,
  normal: 1,
  unknown: 2,
  control: 4,
  userDefined: 8,
  unused: 16,
  byte: 32,
  /** Takes the white space after it, when it is recognised in a text. */
  stripRight: 64,
} as const;

const ATTRIBUTE_OF_TYPE: Readonly<Record<number, number>> = {
  [TokenType.normal]: Attribute.normal,
  [TokenType.unknown]: Attribute.unknown,
  [TokenType.control]: Attribute.control,
  [TokenType.userDefined]: Attribute.userDefined,
  [TokenType.unused]: Attribute.unused,
  [TokenType.byte]: Attribute.byte,
};

/** The attribute bits of `count` tokens; all are normal when the file gives no types. */
export function attributesOf(types: Int32Array | undefined, count: number): Uint8Array {
  const attributes = new Uint8Array(count).fill(Attribute.normal);
  if (types !== undefined) {
    for (let id = 0; id < count; id++) attributes[id] = ATTRIBUTE_OF_TYPE[types[id] ?? 0] ?? Attribute.none;
  }
  return attributes;
}
