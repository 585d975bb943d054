/// <reference lib="dom" />
/**
 * The pages of `compare` and `analyze` as a browser shows them: everything drawn, nothing fetched, nothing cut off or on
 * top of something else, in wide and narrow windows, in light and dark.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Browser, Page } from 'playwright-core';

import { bitmapUrl } from '../lib/cli/page/bitmap';
import { charts, contrasts, launchBrowser, openedIn, sizes, type Viewport } from './browser';
import { program } from './command-line';

jest.setTimeout(180_000);

let work: string;
let browser: Browser;
let report: Report;

/** What is used here of what `compare --json` prints. */
interface Report {
  readonly runs: readonly { readonly name: string; readonly setting?: { readonly text: string } }[];
  readonly notes: readonly unknown[];
  readonly lengths: readonly { readonly points: readonly unknown[] }[];
  readonly spectra: { readonly heads: readonly unknown[] };
}

/** A name that would become part of the page if it were not escaped. */
const hostile = '<img src=x onerror=alert(1)>&"\'.safetensors';

function cli(...args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], { cwd: work, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${args.join(' ')} gave ${status}:\n${stdout}${stderr}`);
  return stdout;
}

/** Queries, keys and values of three heads of 16, 230 positions. */
function writeTensors(file: string): void {
  const [heads, length, dim] = [3, 230, 16];
  const bytes = 4 * heads * length * dim;
  const entry = (index: number) => ({
    dtype: 'F32',
    shape: [heads, length, dim],
    data_offsets: [index * bytes, (index + 1) * bytes],
  });
  const header = Buffer.from(JSON.stringify({ q: entry(0), k: entry(1), v: entry(2) }));
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(BigInt(header.length));
  const data = Float32Array.from({ length: (3 * bytes) / 4 }, (_, i) => Math.sin(i * 12.9898) * 2);
  fs.writeFileSync(path.join(work, file), Buffer.concat([start, header, Buffer.from(data.buffer)]));
}

beforeAll(async () => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'page-'));
  writeTensors(hostile);
  report = JSON.parse(
    cli('compare', '--tensors', hostile, '--lengths', '64,128,230', '--runs', '1', '--json', '--html'),
  );
  cli('analyze', '--tensors', hostile, '--names', 'q,k', '--html', 'spectra.html');
  browser = await launchBrowser();
}, 180_000);

afterAll(async () => {
  await browser?.close();
  if (work !== undefined) fs.rmSync(work, { recursive: true });
});

const opened = (
  file: string,
  viewport: Viewport,
  check: (page: Page) => Promise<void>,
  colorScheme: 'light' | 'dark' = 'light',
): Promise<void> => openedIn(browser, path.join(work, file), viewport, check, colorScheme);

describe.each(sizes)('$width pixels wide', (size) => {
  test('compare: every chart has all its marks, inside of it and side by side', async () => {
    await opened('compare.html', size, async (page) => {
      const seen = await charts(page);
      const kind = size.width > 560 ? 'wide' : 'narrow';
      expect(seen.map(({ id }) => id)).toEqual([`tradeoff-${kind}`, `lengths-${kind}`, `spectrum-${kind}`]);
      for (const chart of seen) {
        expect(chart).toMatchObject({ outside: [], overlapping: [] });
        expect(chart.left).toBeGreaterThanOrEqual(0);
        expect(chart.right).toBeLessThanOrEqual(size.width);
        expect(chart.lines).toBeGreaterThan(0);
      }
      const [tradeoff, lengths, spectrum] = seen;
      expect(tradeoff.marks).toBe(report.runs.length);
      expect(lengths.marks).toBe(report.lengths.reduce((sum, { points }) => sum + points.length, 0));
      expect(spectrum.lines).toBe(report.spectra.heads.length);
      expect(spectrum.marks).toBeGreaterThan(0);
    });
  });

  test('analyze: the same', async () => {
    await opened('spectra.html', size, async (page) => {
      const [spectrum, ...others] = await charts(page);
      expect(others).toEqual([]);
      expect(spectrum).toMatchObject({ outside: [], overlapping: [], lines: 3 });
      expect(spectrum.right).toBeLessThanOrEqual(size.width);
    });
  });

  test.each(['compare.html', 'spectra.html'])('%s is no wider than the window', async (file) => {
    await opened(file, size, async (page) => {
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(size.width);
    });
  });
});

test('the tables have all rows', async () => {
  await opened('compare.html', sizes[0], async (page) => {
    const rows = await page.$$eval('#runs tbody tr', (all) =>
      all.map((row) => [...row.children].slice(0, 2).map((cell) => cell.textContent)),
    );
    expect(rows).toEqual([['exact', ''], ...report.runs.map(({ name, setting }) => [name, setting?.text ?? ''])]);
    expect(await page.$$eval('#ranks tbody tr', (all) => all.length)).toBe(report.spectra.heads.length);
  });
});

test('a point of the front is no worse than another in both time and error', async () => {
  await opened('compare.html', sizes[0], async (page) => {
    expect(await page.$$eval('#runs tr.best', (all) => all.length)).toBe(
      (report.runs as readonly { onFront?: boolean }[]).filter(({ onFront }) => onFront).length,
    );
  });
});

test('attention maps are pictures of the matrices', async () => {
  await opened('compare.html', sizes[0], async (page) => {
    const pictures = await page.$$eval('figure', (figures) =>
      figures.map((figure) => {
        const image = figure.querySelector('img') as HTMLImageElement;
        const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d') as CanvasRenderingContext2D;
        context.drawImage(image, 0, 0);
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        const colors = new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 3).join()));
        return { name: figure.querySelector('b')?.textContent, size: image.naturalWidth, colors: colors.size };
      }),
    );
    const methods = [...new Set(report.runs.map(({ name }) => name))];
    expect(pictures.map(({ name }) => name)).toEqual(['exact', ...methods]);
    for (const { size, colors } of pictures) {
      expect(size).toBe(192);
      expect(colors).toBeGreaterThan(10);
    }
  });
});

test('a bitmap has its pixels where they belong', async () => {
  const colors = [
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
    [9, 8, 7],
    [1, 2, 3],
    [250, 251, 252],
  ] as const;
  const context = await browser.newContext();
  try {
    const page = await context.newPage();
    // Rows of three bytes, which the file pads to four.
    await page.setContent(`<img src="${bitmapUrl(Uint8Array.of(0, 1, 2, 3, 4, 5), 3, colors)}">`);
    const found = await page.$eval('img', async (image: HTMLImageElement) => {
      await image.decode();
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const drawing = canvas.getContext('2d') as CanvasRenderingContext2D;
      drawing.drawImage(image, 0, 0);
      const { data } = drawing.getImageData(0, 0, canvas.width, canvas.height);
      return { width: canvas.width, pixels: [...data].filter((_, i) => i % 4 < 3) };
    });
    expect(found).toEqual({ width: 3, pixels: colors.flat() });
  } finally {
    await context.close();
  }
});

test('in the dark it is dark, and all text can be read', async () => {
  for (const scheme of ['light', 'dark'] as const) {
    await opened(
      'compare.html',
      sizes[0],
      async (page) => {
        const found = await contrasts(page);
        expect(found.weak).toEqual([]);
        if (scheme === 'dark') expect(found.ground).toBeLessThan(0.05);
        else expect(found.ground).toBeGreaterThan(0.9);
      },
      scheme,
    );
  }
});

test('names are shown as they are, whatever is in them', async () => {
  await opened('compare.html', sizes[0], async (page) => {
    expect(await page.textContent('p.quiet')).toContain(`q, k, v of ${hostile}: 230 positions, 3 heads of 16, float32`);
    expect(await page.title()).toContain(hostile);
    expect(await page.$$eval('img[src=x], script', (all) => all.length)).toBe(0);
  });
});
