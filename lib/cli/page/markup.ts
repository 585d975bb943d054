/** Text that is HTML or SVG already. Everything else is escaped where it is put in. */
export class Markup {
  constructor(readonly text: string) {}
}

export type Child = Markup | string | number | undefined | readonly Child[];

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => escapes[character] as string);
}

function childText(child: Child): string {
  if (child === undefined) return '';
  if (child instanceof Markup) return child.text;
  return typeof child === 'object' ? child.map(childText).join('') : escaped(String(child));
}

/** Numbers with no more digits than a screen can show. */
function attributeText(value: string | number): string {
  return typeof value === 'number' ? String(Math.round(value * 100) / 100) : escaped(value);
}

const empty = new Set(['meta', 'img', 'br']);

/** An element of HTML or SVG. Attributes that are undefined are left out. */
export function tag(
  name: string,
  attributes: Readonly<Record<string, string | number | undefined>>,
  ...children: readonly Child[]
): Markup {
  const start = Object.entries(attributes)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}="${attributeText(value as string | number)}"`)
    .join('');
  if (empty.has(name)) return new Markup(`<${name}${start}>`);
  return new Markup(`<${name}${start}>${childText(children)}</${name}>`);
}
