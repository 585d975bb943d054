/**
 * Writes one protobuf message, field by field. ONNX models of a few nodes need no more than this; the packages that do
 * it are either ES modules only or many times larger than this command line.
 */
export class Message {
  readonly #bytes: number[] = [];

  /** A varint field. Negative numbers take ten bytes, as the format wants. */
  int(field: number, value: number): this {
    this.#key(field, 0);
    return this.#varint(value);
  }

  float(field: number, value: number): this {
    this.#key(field, 5);
    this.#bytes.push(...new Uint8Array(Float32Array.of(value).buffer));
    return this;
  }

  text(field: number, value: string): this {
    return this.bytes(field, Buffer.from(value));
  }

  bytes(field: number, value: Uint8Array): this {
    this.#key(field, 2);
    this.#varint(value.length);
    // One by one: a whole model would be more arguments than a call may have.
    for (const byte of value) this.#bytes.push(byte);
    return this;
  }

  message(field: number, value: Message): this {
    return this.bytes(field, value.finish());
  }

  finish(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }

  #key(field: number, wireType: number): void {
    this.#varint(field * 8 + wireType);
  }

  #varint(value: number): this {
    let rest = BigInt.asUintN(64, BigInt(value));
    while (rest > 127n) {
      this.#bytes.push(Number(rest & 127n) | 128);
      rest >>= 7n;
    }
    this.#bytes.push(Number(rest));
    return this;
  }
}
