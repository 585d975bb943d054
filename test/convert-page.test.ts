/// <reference lib="dom" />
/** The page of `convert` as a browser shows it: pictures of ranks, curve and spectra, in wide and narrow, light and dark. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Browser, Page } from 'playwright-core';

import { charts, contrasts, launchBrowser, openedIn, sizes } from './browser';
import { program } from './command-line';
import { huggingFace, layersOf, smallShape } from './models';
import { writeSafetensors } from './tensor-files';

jest.setTimeout(180_000);

let work: string;
let browser: Browser;
/** What is used here of what `convert --json` prints: of each page, few layers or many. */
let layers: Readonly<Record<string, readonly Layer[]>>;

type Heads = { readonly heads: readonly { readonly rank: number }[] };
interface Layer {
  readonly index: number;
  readonly key: Heads;
  readonly value: Heads;
}

const shapes = {
  few: { ...smallShape, layers: 3, modelDim: 24, heads: 8, kvHeads: 8, headDim: 16, valueDim: 16 },
  many: { ...smallShape, layers: 34, modelDim: 24, heads: 24, kvHeads: 24, headDim: 8, valueDim: 8 },
  one: { ...smallShape, layers: 1, modelDim: 8, heads: 1, kvHeads: 1, headDim: 4, valueDim: 4 },
};
const pages = Object.keys(shapes) as (keyof typeof shapes)[];

/** A name that would become part of the page if it were not escaped. */
const hostile = '<img src=x onerror=alert(1)>&"\'.safetensors';

beforeAll(async () => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'convert-page-'));
  const convert = (page: keyof typeof shapes): readonly Layer[] => {
    const [source, output, html] = [`${page}-${hostile}`, `${page}.out.safetensors`, `${page}.html`];
    writeSafetensors(path.join(work, source), huggingFace(layersOf(shapes[page])));
    const options = ['--heads', String(shapes[page].heads), '--no-rope', '--iterations', '3', '--ranks', '4'];
    const args = [program, 'convert', source, '-o', output, '--html', html, '--json', ...options];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: work, encoding: 'utf8' });
    if (status !== 0) throw new Error(`${page} gave ${status}: ${stderr}`);
    return JSON.parse(stdout).layers;
  };
  layers = Object.fromEntries(pages.map((page) => [page, convert(page)]));
  browser = await launchBrowser();
}, 180_000);

afterAll(async () => {
  await browser?.close();
  if (work !== undefined) fs.rmSync(work, { recursive: true });
});

const opened = (file: string, size: (typeof sizes)[number], check: (page: Page) => Promise<void>, dark = false) =>
  openedIn(browser, path.join(work, `${file}.html`), size, check, dark ? 'dark' : 'light');

describe.each(sizes)('$width pixels wide', (size) => {
  test.each(pages)('%s layers: everything is drawn, inside of its chart and side by side', async (name) => {
    await opened(name, size, async (page) => {
      const kind = size.width > 560 ? 'wide' : 'narrow';
      const seen = await charts(page);
      const drawn = ['ranks-key', 'ranks-value', 'spectra-key', 'spectra-value', 'curve'];
      expect(seen.map(({ id }) => id)).toEqual(drawn.map((chart) => `${chart}-${kind}`));
      for (const chart of seen) {
        expect(chart).toMatchObject({ outside: [], overlapping: [] });
        expect(chart.left).toBeGreaterThanOrEqual(0);
        expect(chart.right).toBeLessThanOrEqual(size.width);
      }
      const [, , keys, values, curve] = seen;
      expect([keys.lines, values.lines]).toEqual(Array(2).fill(Math.min(4, shapes[name].layers)));
      expect([curve.lines, curve.marks]).toEqual([2, 2]);
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(size.width);
    });
  });
});

test.each(pages)('%s layers: a cell for every head, brighter with its rank', async (name) => {
  await opened(name, sizes[0], async (page) => {
    for (const side of ['key', 'value'] as const) {
      const cells = await page.$$eval(`#ranks-${side}-wide .cell`, (all) =>
        all.map((cell) => ({
          title: cell.querySelector('title')?.textContent ?? '',
          fill: (cell.querySelector('rect')?.getAttribute('fill')?.match(/\d+/g) ?? []).map(Number),
        })),
      );
      const wanted = layers[name].flatMap(({ index, ...layer }) =>
        layer[side].heads.map(({ rank }, head) => ({ rank, text: `layer ${index}, head ${head}: rank ${rank} of ` })),
      );
      expect(cells).toHaveLength(wanted.length);
      const light = new Map<number, number>();
      for (const [i, { title, fill }] of cells.entries()) {
        const { rank, text } = wanted[i];
        expect(title.startsWith(text)).toBe(true);
        light.set(
          rank,
          fill.reduce((sum, channel) => sum + channel, 0),
        );
      }
      const byRank = [...light].sort(([a], [b]) => a - b).map(([, sum]) => sum);
      expect(byRank).toEqual([...byRank].sort((a, b) => a - b));
    }
  });
});

test('numbers in cells can be read on their colour', async () => {
  await opened('few', sizes[0], async (page) => {
    const weak = await page.$$eval('#ranks-key-wide .cell, #ranks-value-wide .cell', (cells) => {
      const luminance = (color: string) => {
        const [r, g, b] = (color.match(/[\d.]+/g) ?? []).map((channel) => {
          const share = Number(channel) / 255;
          return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      return cells.flatMap((cell) => {
        const colors = ['rect', 'text'].map((name) => getComputedStyle(cell.querySelector(name) as Element).fill);
        const [low, high] = colors.map(luminance).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05) >= 4.5 ? [] : [colors.join(' on ')];
      });
    });
    expect(weak).toEqual([]);
  });
});

test('the table has all layers, and all other text can be read, in light and dark', async () => {
  for (const dark of [false, true]) {
    await opened(
      'few',
      sizes[0],
      async (page) => {
        const first = (rows: Element[]) => rows.map((row) => row.children[0].textContent);
        expect(await page.$$eval('#layers tbody tr', first)).toEqual(['0', '1', '2']);
        // Cells have their own ground: the test above.
        await page.$$eval('.cell text', (texts) => {
          for (const text of texts) text.remove();
        });
        const { ground, weak } = await contrasts(page);
        expect(weak).toEqual([]);
        expect(ground < 0.05).toBe(dark);
      },
      dark,
    );
  }
});

test('names are shown as they are, whatever is in them', async () => {
  await opened('one', sizes[0], async (page) => {
    expect(await page.textContent('p.quiet')).toContain(`one-${hostile}: 1 layer of 1 heads`);
    expect(await page.title()).toContain(hostile);
    expect(await page.$$eval('img[src=x], script', (all) => all.length)).toBe(0);
  });
});
