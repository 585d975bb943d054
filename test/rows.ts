import { info } from '../lib';

/** The instruction sets whose CPU kernels of an op run on this machine, as the kernel table names them. */
export function isaRows(op: string): string[] {
  const rows = info().kernels.filter((kernel) => kernel.op === op && kernel.device === 'cpu' && kernel.supported);
  return [...new Set(rows.map((row) => row.isa))];
}

/** Computes once, at the first call: what all rows of a table share. */
export function once<Value>(compute: () => Value): () => Value {
  let result: { readonly value: Value } | undefined;
  return () => {
    result ??= { value: compute() };
    return result.value;
  };
}

/**
 * One test for each case and kernel row.
 *
 * @param prepare computes what all rows of a case share, its reference above all, and returns the check of one row
 */
export function testRows<Case>(
  rows: readonly string[],
  cases: Readonly<Record<string, Case>>,
  prepare: (given: Case) => (isa: string) => unknown,
): void {
  describe.each(Object.entries(cases))('%s', (_name, given) => {
    const check = once(() => prepare(given));
    test.each(rows)('%s', (isa) => {
      check()(isa);
    });
  });
}
