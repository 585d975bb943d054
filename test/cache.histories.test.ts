import { testHistories } from './cache-histories';
import { kvShape } from './cache-kinds';
import { isaRows } from './rows';

testHistories(kvShape, isaRows('full'));
