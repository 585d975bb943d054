/** The page: one file, no script, nothing fetched; legible in light and in dark, wide and narrow. */
import { writeFile } from 'node:fs/promises';
import path from 'node:path';

import type { Provenance } from '../provenance';
import { type Child, Markup, tag } from './markup';
import { style } from './style';

export interface PageContent {
  readonly title: string;
  /** What it is about, beside the title in the window's name. */
  readonly subject: string;
  /** The line under the title. */
  readonly lead: string;
  /** What must be known to judge the rest. */
  readonly notes: readonly string[];
  readonly content: readonly Markup[];
  /** At the end: what was used, by name. */
  readonly factsTitle: string;
  readonly facts: Readonly<Record<string, string>>;
}

export function documentOf({ title, subject, lead, notes, content, factsTitle, facts }: PageContent): string {
  const page = tag(
    'html',
    { lang: 'en' },
    tag(
      'head',
      {},
      tag('meta', { charset: 'utf-8' }),
      tag('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
      tag('title', {}, `${title}: ${subject}`),
      tag('style', {}, new Markup(style)),
    ),
    tag(
      'body',
      {},
      tag(
        'main',
        {},
        tag('h1', {}, title),
        tag('p', { class: 'quiet' }, lead),
        notes.map((note) => tag('p', { class: 'note' }, note)),
        ...content,
        wholeSection(
          factsTitle,
          undefined,
          tag(
            'dl',
            {},
            Object.entries(facts).map(([name, value]) => [tag('dt', {}, name), tag('dd', {}, value)]),
          ),
        ),
      ),
    ),
  );
  return `<!doctype html>\n${page.text}\n`;
}

/** Where the page lies goes to the error stream: the output may be JSON that something reads. */
export async function writePage(
  html: string | true | undefined,
  usual: string,
  page: () => Promise<string>,
): Promise<void> {
  if (html === undefined) return;
  const file = path.resolve(html === true ? usual : html);
  await writeFile(file, await page());
  process.stderr.write(`The page with charts: ${file}\n`);
}

/** One of the parts that stand side by side. */
export function section(title: string, note: string | undefined, ...content: readonly Child[]): Markup {
  return sectionOf(undefined, title, note, content);
}

/** A part as wide as the page. */
export function wholeSection(title: string, note: string | undefined, ...content: readonly Child[]): Markup {
  return sectionOf('whole', title, note, content);
}

function sectionOf(
  name: string | undefined,
  title: string,
  note: string | undefined,
  content: readonly Child[],
): Markup {
  const said = note === undefined ? undefined : tag('p', { class: 'note' }, note);
  return tag('section', { class: name }, tag('h2', {}, title), said, ...content);
}

/** A table that scrolls where the page is narrower. */
export function table(
  id: string,
  head: readonly string[],
  rows: readonly { readonly cells: readonly string[]; readonly class?: string | undefined }[],
): Markup {
  const cells = (name: 'th' | 'td', texts: readonly string[]) => texts.map((text) => tag(name, {}, text));
  return tag(
    'div',
    { class: 'scroll' },
    tag(
      'table',
      { id },
      tag('thead', {}, tag('tr', {}, cells('th', head))),
      tag(
        'tbody',
        {},
        rows.map((row) => tag('tr', { class: row.class }, cells('td', row.cells))),
      ),
    ),
  );
}

/** What a result was got with. */
export function provenanceFacts(
  { date, package: own, node, machine }: Provenance,
  threads: number,
): Record<string, string> {
  return {
    package: `lowrank-attention ${own.version}, ${own.build.type} build, ${own.build.compiler}`,
    machine: `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB.toFixed(0)} GiB, ${machine.platform}`,
    'load before': machine.loadAverage.map((load) => load.toFixed(2)).join(' '),
    threads: String(threads),
    'Node.js': node,
    date,
  };
}
