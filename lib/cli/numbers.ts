// How numbers are written, in tables and at axes alike.

/** About three significant digits, without an exponent. */
function digits(value: number): string {
  if (value === 0) return '0';
  const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(places, 9));
}

/** `0.123 ms`, `12.3 ms`, `1.23 s` */
export function timeText(ms: number): string {
  if (ms >= 1000) return `${digits(ms / 1000)} s`;
  return ms < 0.1 ? `${digits(ms * 1000)} µs` : `${digits(ms)} ms`;
}

/** The same at an axis, where numbers are round: `10 ms`, `1 s` */
export function timeTick(ms: number): string {
  const [value, unit] = ms >= 1000 ? [ms / 1000, 's'] : ms < 0.1 ? [ms * 1000, 'µs'] : [ms, 'ms'];
  return `${Number(value.toPrecision(2))} ${unit}`;
}

/** `1e-4 %`, `0.12 %`, `12 %`, `120 %` */
export function percentText(share: number): string {
  const percent = 100 * share;
  if (percent > 0 && percent < 1e-3) return `${percent.toExponential(0)} %`;
  return `${percent >= 10 ? percent.toFixed(0) : Number(percent.toPrecision(2))} %`;
}

/** `0`, `12 KiB`, `3.4 MiB` */
export function bytesText(bytes: number): string {
  if (bytes === 0) return '0';
  const [unit, size] = bytes >= 2 ** 30 ? ['GiB', 2 ** 30] : bytes >= 2 ** 20 ? ['MiB', 2 ** 20] : ['KiB', 2 ** 10];
  const value = bytes / (size as number);
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
}

/** `42.1×`, `4.20×`, `0.013×` */
export function factorText(factor: number): string {
  return `${factor >= 10 ? factor.toFixed(1) : factor >= 0.1 ? factor.toFixed(2) : Number(factor.toPrecision(2))}×`;
}

/** `4096` as `4,096` */
export function wholeText(value: number): string {
  return value.toLocaleString('en');
}
