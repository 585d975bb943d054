/** Bad input by the thousand, in processes of their own: a crash or a hang there is a failure here. */
import { info } from '../lib';
import { runChild } from './child';
import type { Growth } from './children/growth';

// Guards against hanging only.
const seconds = 240;
jest.setTimeout(1000 * (seconds + 10));

test('any garbage in the place of any argument gives a result of the right shape or an AttentionError', () => {
  const counts = runChild<Record<string, { done: number; refused: number }>>('fuzz.ts', seconds);
  // Garbage that never gets past the first check, or is never refused, would try nothing.
  for (const [name, { done, refused }] of Object.entries(counts)) {
    expect([name, done > 0]).toEqual([name, true]);
    if (!/info|devices/.test(name)) expect([name, refused > 0]).toEqual([name, true]);
  }
});

test('the binding survives whatever it is called with', () => {
  const { done, refused, thrown } = runChild<Record<'done' | 'refused' | 'thrown', number>>('native.ts', seconds);
  expect(done).toBeGreaterThan(1000);
  expect(refused).toBeGreaterThan(1000);
  expect(thrown).toBeGreaterThan(0);
});

test('calls that fail leave nothing behind', () => {
  const MiB = 2 ** 20;
  const { growth, listeners } = runChild<{ growth: Record<string, Growth & { failed: number }>; listeners: number }>(
    'leaks.ts',
    seconds,
    ['--expose-gc'],
  );
  expect(listeners).toBe(0);
  // A call that kept its output would have grown the process by 500 MiB, one that kept 1 KiB of objects the heap by 2.
  // A sanitizer keeps what was freed for a while.
  const rssLimit = info().build.sanitizers === '' ? 128 * MiB : Infinity;
  const leaks = Object.entries(growth).filter(
    ([, { failed, rss, external, heapUsed }]) => failed < 500 || rss > rssLimit || external > MiB || heapUsed > MiB,
  );
  expect(leaks).toEqual([]);
});
