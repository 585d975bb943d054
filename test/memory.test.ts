/** Memory after thousands of calls and caches, and after large ones. */
import { info } from '../lib';
import { runChild } from './child';
import type { Growth } from './children/growth';
import type { Filled } from './children/memory';
import { once } from './rows';

// Guards against hanging only.
const seconds = 400;
jest.setTimeout(1000 * (seconds + 10));

const MiB = 2 ** 20;
// A sanitizer keeps what was freed for a while.
const sanitized = info().build.sanitizers !== '';
const rssLimit = sanitized ? Infinity : 64 * MiB;

const found = once(() =>
  runChild<{ growth: Record<string, Growth>; filled: Record<string, Filled> }>('memory.ts', seconds, ['--expose-gc']),
);

test('calls and caches leave nothing behind', () => {
  const { growth } = found();
  expect(Object.keys(growth).length).toBeGreaterThan(25);
  // Of the small calls one that kept its output would show in `external`; the large ones and the caches make at least
  // 128 MiB in all.
  const leaks = Object.entries(growth).filter(
    ([, { rss, external, heapUsed }]) => rss > rssLimit || external > MiB || heapUsed > MiB,
  );
  expect(leaks).toEqual([]);
});

test('what a cache held goes back to the system with its last holder', () => {
  const { filled } = found();
  const parts: Readonly<Record<string, readonly number[]>> = {
    'pages of 64 KiB': [1],
    'pages of 1 MiB': [1],
    'pages of 1 MiB, again': [1],
    'pages of 4 MiB': [1],
    'pages of an odd size': [1],
    'pages of an odd size, truncated, then disposed': [0.5, 0.5],
    dropped: [1],
    'shared with a fork': [0, 1],
    'pages of LRKV': [1],
    'truncated to a half, then disposed': [0.5, 0.5],
    'appended at once, truncated to a half, then disposed': [0.5, 0.5],
  };
  expect(Object.keys(filled)).toEqual(Object.keys(parts));
  const wrong = Object.entries(filled).filter(([name, { byteLength, grew, shrank }]) => {
    const near = (bytes: number, part: number) => sanitized || Math.abs(bytes - part * byteLength) < 32 * MiB;
    return !near(grew, 1) || shrank.length !== parts[name].length || !shrank.every((by, i) => near(by, parts[name][i]));
  });
  expect(wrong).toEqual([]);
});
