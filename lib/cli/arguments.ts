import { InvalidArgumentError } from 'commander';

/** Something the user must ask differently. */
export class Usage extends Error {}

/** A whole number from 1 on. */
export function count(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError('Not a whole number from 1 on.');
  return value;
}

/** Such numbers, separated by commas. */
export function counts(text: string): number[] {
  return text.split(',').map(count);
}
