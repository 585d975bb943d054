/// <reference lib="dom" />
/** Pages as a browser shows them. */
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Browser, chromium, type Page } from 'playwright-core';

export interface Viewport {
  readonly width: number;
  readonly height: number;
}

/** A wide and a narrow window. */
export const sizes = [
  { width: 1280, height: 900 },
  { width: 400, height: 800 },
];

/** The browser of this machine. */
export async function launchBrowser(): Promise<Browser> {
  const [program] = (process.env.PATH ?? '')
    .split(path.delimiter)
    .map((folder) => path.join(folder, 'chromium'))
    .filter((file) => fs.existsSync(file));
  if (program === undefined) throw new Error('these tests need chromium: sh scripts/setup browser');
  return await chromium.launch({ executablePath: program });
}

/** Opens a page; what goes wrong in it fails the test. */
export async function openedIn(
  browser: Browser,
  file: string,
  viewport: Viewport,
  check: (page: Page) => Promise<void>,
  colorScheme: 'light' | 'dark' = 'light',
): Promise<void> {
  const context = await browser.newContext({ viewport, colorScheme });
  try {
    const page = await context.newPage();
    const problems: string[] = [];
    const requests: string[] = [];
    page.on('console', (message) => problems.push(`console: ${message.text()}`));
    page.on('pageerror', (error) => problems.push(`error: ${error.message}`));
    page.on('requestfailed', (request) => problems.push(`failed: ${request.url()}`));
    page.on('dialog', (dialog) => problems.push(`dialog: ${dialog.message()}`));
    page.on('request', (request) => {
      if (!request.url().startsWith('data:')) requests.push(request.url());
    });
    const url = pathToFileURL(file).href;
    await page.goto(url);
    await check(page);
    expect(problems).toEqual([]);
    expect(requests).toEqual([url]);
  } finally {
    await context.close();
  }
}

/** What is to be seen of each chart. */
export interface Seen {
  readonly id: string;
  readonly marks: number;
  readonly lines: number;
  /** Elements that lie partly outside of their chart. */
  readonly outside: readonly string[];
  /** Texts that lie on one another. */
  readonly overlapping: readonly string[];
  readonly left: number;
  readonly right: number;
}

export async function charts(page: Page): Promise<Seen[]> {
  return await page.$$eval('svg.chart', (all) =>
    all
      .filter((svg) => svg.getBoundingClientRect().width > 0)
      .map((svg) => {
        const frame = svg.getBoundingClientRect();
        const boxOf = (element: Element) => ({
          name: `${element.tagName} ${element.getAttribute('class') ?? ''} ${element.textContent ?? ''}`,
          box: element.getBoundingClientRect(),
        });
        const drawn = [...svg.querySelectorAll('path, line, text')].map(boxOf);
        const texts = [...svg.querySelectorAll('text')].map(boxOf);
        // A pixel of the fonts' own air may be shared.
        const onTop = (a: DOMRect, b: DOMRect) =>
          a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
        return {
          id: svg.id,
          marks: svg.querySelectorAll('.mark').length,
          lines: svg.querySelectorAll('path.line, path.knob').length,
          outside: drawn
            .filter(
              ({ box }) =>
                box.left < frame.left - 1 ||
                box.right > frame.right + 1 ||
                box.top < frame.top - 1 ||
                box.bottom > frame.bottom + 1,
            )
            .map(({ name }) => name),
          overlapping: texts.flatMap((a, i) =>
            texts.slice(i + 1).flatMap((b) => (onTop(a.box, b.box) ? [`${a.name} / ${b.name}`] : [])),
          ),
          left: frame.left,
          right: frame.right,
        };
      }),
  );
}

/** Luminance of the page's ground, and texts of too little contrast to their panel (WCAG 2). */
export async function contrasts(page: Page): Promise<{ readonly ground: number; readonly weak: readonly string[] }> {
  return await page.evaluate(() => {
    const channels = (color: string) => (color.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
    /** Relative luminance, WCAG 2. */
    const luminance = (color: string) => {
      const [r, g, b] = channels(color).map((c) => {
        const share = c / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const panel = luminance(getComputedStyle(document.querySelector('section') as Element).backgroundColor);
    const contrast = (color: string) => {
      const own = luminance(color);
      return (Math.max(own, panel) + 0.05) / (Math.min(own, panel) + 0.05);
    };
    const texts = [...document.querySelectorAll('section p, section td, section li, section text')];
    return {
      ground: luminance(getComputedStyle(document.body).backgroundColor),
      weak: texts.flatMap((element) => {
        const style = getComputedStyle(element);
        const value = contrast(element.tagName === 'text' ? style.fill : style.color);
        return value >= 4.5 ? [] : [`${element.textContent}: ${value}`];
      }),
    };
  });
}
