/** How processes and worker threads begin and end around calls: a crash or a hang there is a failure here. */
import { info } from '../lib';
import { endingOf, runChild } from './child';

const sanitized = info().build.sanitizers !== '';
// Guards against hanging only.
const seconds = sanitized ? 200 : 60;
jest.setTimeout(1000 * (seconds + 10));

describe('a process', () => {
  const ending = (how: string) => {
    const { status, signal, stdout, stderr } = endingOf('endings.ts', seconds, [], [how]);
    return { status, signal, stdout, stderr };
  };

  // 'long' is printed by calls that take seconds: none may be waited for.
  test.each([
    ['exit in a long call', ''],
    ['exit in the turn of the call', ''],
    ['exit with a queue', ''],
    ['exit in the callback of a call, others running', ''],
    ['exit in the callback of a call, many done', ''],
    ['exit with caches and calls on them', ''],
    ['exit in a beforeExit handler', ''],
    ['calls in an exit handler', 'sync 1\n'],
  ])('%s: at once, with the code that was given', (how, stdout) => {
    expect(ending(how)).toEqual({ status: 3, signal: null, stdout, stderr: '' });
  });

  test.each([
    'uncaught exception in a long call',
    'exception in the callback of a call',
    'rejection that nobody handles, others running',
  ])('%s: ends as Node.js ends', (how) => {
    const stderr = expect.stringContaining('nobody catches this');
    expect(ending(how)).toEqual({ status: 1, signal: null, stdout: '', stderr });
  });

  test('killed by a signal in calls', () => {
    expect(ending('killed by a signal in calls')).toEqual({ status: null, signal: 'SIGTERM', stdout: '', stderr: '' });
  });

  test.each([
    ['end with a call nobody waits for', 'written true\n'],
    ['end with many calls nobody waits for', 'all true\n'],
    ['end with a call begun in the callback of another', 'second\n'],
  ])('%s: not before it is done', (how, stdout) => {
    expect(ending(how)).toEqual({ status: 0, signal: null, stdout, stderr: '' });
  });

  // An addon that kept the process would be found out by time.
  test.each([
    ['end without a call', ''],
    ['end after sync calls', ''],
    ['end after async calls, with a cache', 'done\n'],
    ['end after calls that failed', 'rejected\nrejected\n'],
  ])('%s: nothing keeps it', (how, stdout) => {
    expect(ending(how)).toEqual({ status: 0, signal: null, stdout, stderr: '' });
  });
});

describe('worker threads', () => {
  const workers = <Answer>(program: string, count: number) =>
    runChild<Answer>('workers.ts', seconds, [], [program, String(count)]);

  test('several at once, with the main thread: the same bits everywhere', () => {
    const count = sanitized ? 2 : 3;
    const { codes, digests, found } = workers<Record<string, unknown[]>>('digests', count);
    expect(codes).toEqual(Array(count).fill(0));
    expect(digests).toBe(3 * count);
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(/^[0-9a-f]{64}$/);
  });

  test('end by themselves with calls in flight: as Node.js says, and the process goes on', () => {
    const count = sanitized ? 1 : 2;
    const { outcomes, digest } = workers<{ outcomes: Record<string, unknown[]>; digest: boolean }>('alone', count);
    const all = (outcome: unknown) => Array(count).fill(outcome);
    expect(outcomes).toEqual({
      'exit in calls': all({ code: 5, done: 0, errors: [] }),
      'exit in the turn of the calls': all({ code: 5, done: 0, errors: [] }),
      'throw in calls': all({ code: 1, done: 0, errors: ['nobody catches this'] }),
      'end with calls nobody waits for': all({ code: 0, done: 6, errors: [] }),
    });
    expect(digest).toBe(true);
  });

  test.each([
    ['terminated in asynchronous calls', sanitized ? 6 : 50],
    ['terminated in synchronous calls', sanitized ? 2 : 4],
    ['terminated in short synchronous calls', sanitized ? 10 : 40],
  ])('%s: no thread is left, and the process goes on', (program, count) => {
    expect(workers(program, count)).toEqual({ codes: [1], left: 0, grew: true, same: true });
  });

  test('terminated at any time', () => {
    expect(workers('terminated at any time', sanitized ? 6 : 16)).toEqual({ digest: true });
  });

  test('left running when the process exits', () => {
    const { status, signal, stderr } = endingOf('workers.ts', seconds, [], ['left running at the exit', '3']);
    expect({ status, signal, stderr }).toEqual({ status: 3, signal: null, stderr: '' });
  });
});

test('copies of the package in one process: each works, and refuses the caches of another', () => {
  const { digests, codes } = runChild<{ digests: number; codes: unknown[] }>('copies.ts', seconds);
  expect(digests).toBe(1);
  expect(codes).toEqual([1, 'ERR_TYPE', 'ERR_TYPE', 'ERR_TYPE', 'ERR_TYPE']);
});
