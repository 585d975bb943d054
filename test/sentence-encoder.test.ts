// A real model end to end: the encoder of examples/sentence-encoder against the model's own graph, run by tfjs.
import { encodeAll } from '../examples/sentence-encoder/batches';
import { readParagraphs, toPassages } from '../examples/sentence-encoder/book';
import { largestDifference } from '../examples/sentence-encoder/comparison';
import { Peer } from '../examples/sentence-encoder/peer';
import { search } from '../examples/sentence-encoder/search';
import { encode, layerInputs, maxPieces } from '../lib/cli/sentence-encoder/encoder';
import { Tokenizer } from '../lib/cli/sentence-encoder/tokenizer';
import { type EncoderWeights, loadVocabulary, loadWeights } from '../lib/cli/sentence-encoder/weights';
import { Workspace } from '../lib/cli/sentence-encoder/workspace';

const width = 512;

/** Measured: up to 1.2e-6. At the 1e-5 that is asked for, a wrong epsilon in the layer norms would pass. */
const tolerance = 4e-6;

let weights: EncoderWeights;
let tokenizer: Tokenizer;
let peer: Peer;

beforeAll(async () => {
  weights = await loadWeights();
  tokenizer = new Tokenizer(await loadVocabulary());
  peer = await Peer.load();
}, 60_000);

const paragraphs = readParagraphs();
const longest = paragraphs.reduce((a, b) => (a.text.length > b.text.length ? a : b)).text;

/** From one piece to many more than the encoder reads; one in the middle is empty. */
const texts = [
  'Call me Ishmael.',
  '?',
  'Thar she blows!',
  'The whale is no fish, for it has lungs and warm blood.',
  '',
  'From hell’s heart I stab at thee; for hate’s sake I spit my last breath at thee.',
  'naïve café, 鯨 and 🐋, ½ past 10:30 :)',
  'whale whale whale whale whale whale whale whale',
  paragraphs[0].text.slice(0, 200),
  paragraphs[0].text.slice(0, 400),
  longest,
  'There is a wisdom that is woe; but there is a woe that is madness.',
];

describe('tokenizer', () => {
  test('spells every tenth paragraph of the book as the package does', () => {
    for (const { text } of paragraphs.filter((_, index) => index % 10 === 0)) {
      expect(tokenizer.encode(text)).toEqual(peer.tokenize(text));
    }
  });

  test.each([
    '',
    ' ',
    '  two  spaces ',
    'line\nbreaks\n\nand\ttabs',
    'unknown 鯨鯨 among 🐋🐋 known',
    ':',
    '::::',
    'a:b :c ::',
    'at 10:30 :) or 10:00, http://x.y',
    '”5”5',
    'ﬁne ① ½ Å',
    '\ud800 alone',
    '_▁_ ▁',
    '\u0000',
  ])('spells %j as the package does', (text) => {
    expect(tokenizer.encode(text)).toEqual(peer.tokenize(text));
  });
});

describe('encoder', () => {
  test('agrees with the graph on one padded batch', async () => {
    const batch = texts.map((text) => tokenizer.encode(text));
    expect(Math.max(...batch.map((ids) => ids.length))).toBeGreaterThan(maxPieces);
    const { data, dims } = await encode(weights, batch);
    expect(dims).toEqual([texts.length, width]);
    expect(largestDifference(await peer.embed(batch), data)).toBeLessThanOrEqual(tolerance);
  });

  test('agrees with the graph on every sentence alone', async () => {
    const workspace = new Workspace();
    for (const text of texts.filter((text) => text !== '')) {
      const batch = [tokenizer.encode(text)];
      const { data } = await encode(weights, batch, { workspace });
      expect(largestDifference(await peer.embed(batch), data)).toBeLessThanOrEqual(tolerance);
    }
  });

  test('gives the same in any order and in any batch', async () => {
    const sentences = texts.map((text) => tokenizer.encode(text));
    const together = await encodeAll(weights, sentences);
    for (const [index, ids] of sentences.entries()) {
      const { data } = await encode(weights, [ids]);
      expect(largestDifference(data, together.data.slice(index * width, (index + 1) * width))).toBeLessThanOrEqual(
        1e-6,
      );
    }
  });

  test('gives embeddings of length 1', async () => {
    const { data } = await encode(weights, [tokenizer.encode(texts[0]), []]);
    for (const row of [data.subarray(0, width), data.subarray(width)]) {
      expect(Math.hypot(...row)).toBeCloseTo(1, 6);
    }
  });

  test('refuses ids that are no pieces', async () => {
    await expect(encode(weights, [[8002]])).rejects.toThrow('Expected ids of pieces, from 0 to 8001, received 8002.');
    await expect(encode(weights, [[-1]])).rejects.toThrow(RangeError);
  });
});

describe('queries, keys and values of a layer', () => {
  const text = paragraphs
    .map((paragraph) => paragraph.text)
    .join(' ')
    .slice(0, 4000);
  const long = () => tokenizer.encode(text);

  test('are projections of the normalised embeddings, beyond the trained length too', async () => {
    const ids = long();
    expect(ids.length).toBeGreaterThan(4 * maxPieces);
    const inputs = await layerInputs(weights, ids, 0);
    const layer = weights.layers[0];
    for (const position of [0, 1, maxPieces, ids.length - 1]) {
      const embedded = Float64Array.from({ length: 256 }, (_, i) => {
        const angle = position * weights.frequencies[i % 128];
        return 2 * weights.embeddings.data[ids[position] * 256 + i] + (i < 128 ? Math.sin(angle) : Math.cos(angle));
      });
      const mean = embedded.reduce((sum, x) => sum + x) / 256;
      const deviation = Math.sqrt(embedded.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 256);
      const normal = embedded.map(
        (x, i) => ((x - mean) / deviation) * layer.attentionNorm.scale[i] + layer.attentionNorm.bias[i],
      );
      for (const [name, { kernel, bias }] of [
        ['q', layer.query],
        ['k', layer.key],
        ['v', layer.value],
      ] as const) {
        expect(inputs[name].dims).toEqual([1, 4, ids.length, 64]);
        for (const [head, d] of [
          [0, 0],
          [1, 63],
          [3, 17],
        ]) {
          const column = head * 64 + d;
          const expected = normal.reduce((sum, x, i) => sum + x * kernel.data[i * 256 + column], bias[column]);
          expect(inputs[name].data[(head * ids.length + position) * 64 + d]).toBeCloseTo(expected, 4);
        }
      }
    }
  });

  test('of layer 1 see what layer 0 made of the text', async () => {
    const ids = long().slice(0, 100);
    const inputs = await layerInputs(weights, ids, 1);
    expect(inputs.q.dims).toEqual([1, 4, 100, 128]);
    const changed = await layerInputs(weights, [...ids.slice(0, 99), ids[0]], 1);
    expect(changed.q.data[0]).not.toBe(inputs.q.data[0]);
    expect((await layerInputs(weights, ids, 1)).q).toEqual(inputs.q);
  });

  test('there are two layers', async () => {
    await expect(layerInputs(weights, long(), 2)).rejects.toThrow('Expected a layer from 0 to 1, received 2.');
  });
});

describe('comparer', () => {
  test('is not fooled by NaN, nor by what is missing', () => {
    expect(largestDifference(Float32Array.of(1, 2), Float32Array.of(1, Number.NaN))).toBeNaN();
    expect(largestDifference(Float32Array.of(1, Number.NaN), Float32Array.of(1, 2))).toBeNaN();
    expect(largestDifference(Float32Array.of(1, 2), Float32Array.of(1))).toBeNaN();
    expect(largestDifference(Float32Array.of(1, -2), Float32Array.of(1, -2.5))).toBe(0.5);
  });
});

describe('book', () => {
  test('is cut into passages that the encoder reads whole, and nothing of it is lost', () => {
    const passages = toPassages(paragraphs, tokenizer, maxPieces);
    const put = new Map(paragraphs.map((paragraph) => [paragraph, '']));
    for (const { paragraph, text, ids } of passages) {
      expect(ids.length).toBeLessThanOrEqual(maxPieces);
      put.set(paragraph, put.get(paragraph) + text.replace(/\s/g, ''));
    }
    for (const [paragraph, text] of put) expect(text).toBe(paragraph.text.replace(/\s/g, ''));
  });

  test('answers a question with the passage a reader would name', async () => {
    const chapter = paragraphs.filter(({ place }) => place.startsWith('Chapter 3,')).slice(0, 40);
    const passages = toPassages(chapter, tokenizer, maxPieces);
    const embeddings = await encodeAll(
      weights,
      passages.map(({ ids }) => ids),
    );
    const query = await encode(weights, [tokenizer.encode('Two strangers have to share a bed at the inn.')]);
    const [hits] = await search(query, embeddings, 3);
    expect(hits).toHaveLength(3);
    expect(hits[0].score).toBeGreaterThan(hits[1].score);
    expect(passages[hits[0].index].text).toMatch(/^No man prefers to sleep two in a bed\./);
  });
});
