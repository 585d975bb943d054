/** Lets plain Node.js run the TypeScript of lib/ and test/: what a test must do in a process of its own. */
const swc = require('@swc/core');

const options = {
  jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
  module: { type: 'commonjs' },
  sourceMaps: 'inline',
};

require.extensions['.ts'] = (module, file) => module._compile(swc.transformFileSync(file, options).code, file);
