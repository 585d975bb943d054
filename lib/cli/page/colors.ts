/** Ramps of colours that stand for numbers. */
export type Color = readonly [red: number, green: number, blue: number];

/** Equally spaced from the smallest to the largest value: dark to bright with growing lightness, as matplotlib's magma. */
export const magma: readonly Color[] = [
  [6, 5, 26],
  [60, 15, 112],
  [140, 41, 129],
  [222, 73, 104],
  [254, 159, 109],
  [252, 253, 191],
];

/** The colour at a share from 0 to 1 of the way. */
export function ramp(between: readonly Color[], at: number): Color {
  const place = at * (between.length - 1);
  const index = Math.min(between.length - 2, Math.floor(place));
  const [from, to] = [between[index] as Color, between[index + 1] as Color];
  const mix = (channel: 0 | 1 | 2) => Math.round(from[channel] + (to[channel] - from[channel]) * (place - index));
  return [mix(0), mix(1), mix(2)];
}
