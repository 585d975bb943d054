// How things look in a terminal. Nothing here assumes that there is one: into a file or a pipe goes plain text.

const widest = 100;

/** Prints a line to standard output. */
export function print(line = ''): void {
  process.stdout.write(`${line}\n`);
}

/** Emphasised, where the output is a terminal that can and may. */
export function bold(text: string): string {
  return process.stdout.isTTY && process.stdout.hasColors() ? `\u001b[1m${text}\u001b[22m` : text;
}

/** Cuts a text into lines of the terminal's width, less the indent, and ends it with an ellipsis after `lines`. */
export function wrapped(text: string, indent: number, lines: number): string {
  const width = Math.max(20, Math.min(process.stdout.columns ?? widest, widest) - indent);
  const all: string[] = [];
  for (const word of text.split(' ')) {
    const line = all.at(-1);
    if (line === undefined || line.length + 1 + word.length > width) all.push(word);
    else all[all.length - 1] = `${line} ${word}`;
  }
  const shown = all.slice(0, lines);
  if (all.length > lines) shown[lines - 1] = `${shown[lines - 1].slice(0, width - 2)} …`;
  return shown.map((line) => ' '.repeat(indent) + line).join('\n');
}

/** For example `2,425 paragraphs`. */
export function plural(count: number, noun: string): string {
  return `${whole(count)} ${noun}${count === 1 ? '' : 's'}`;
}

/** For example `2,425`. */
export function whole(count: number): string {
  return Math.round(count).toLocaleString('en');
}

/** For example `3.25 s`. */
export function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
}

/** Columns aligned with two spaces between them; all but the first are numbers, to the right. */
export function table(rows: readonly (readonly string[])[], indent = 2): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) => row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[column]))))
    .map((cells) => ' '.repeat(indent) + cells.join('  '))
    .join('\n');
}
