import { testHistories } from './cache-histories';
import { lrkvShape } from './cache-kinds';
import { isaRows } from './rows';

testHistories(lrkvShape, isaRows('lrkv'));
