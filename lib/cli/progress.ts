import { Presets, SingleBar } from 'cli-progress';

import type { Progress } from './bench';

/** A bar on the error stream, where it is in nobody's way; nothing at all if that is no terminal. */
export function progressBar(): Progress {
  const bar = new SingleBar(
    {
      format: '{bar} {percentage} % | {what}',
      stream: process.stderr,
      noTTYOutput: false,
      hideCursor: true,
      clearOnComplete: true,
      // What is measured must not share its cores with a drawing timer more often than needed.
      fps: 2,
    },
    Presets.shades_classic,
  );
  return {
    start: (steps) => bar.start(steps, 0, { what: '' }),
    show: (what) => bar.update({ what }),
    step: () => bar.increment(),
    stop: () => bar.stop(),
  };
}
