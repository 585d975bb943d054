const { TestEnvironment } = require('jest-environment-node');

/**
 * Jest runs tests in a realm of their own, whose typed arrays are not those of the process. onnxruntime-node tells
 * typed arrays by `instanceof` in native code, which knows only the process's. Here tests get those.
 */
module.exports = class NativeRealmEnvironment extends TestEnvironment {
  constructor(config, context) {
    super(config, context);
    for (const name of Object.getOwnPropertyNames(globalThis)) {
      if (/^(ArrayBuffer|SharedArrayBuffer|DataView|(Big)?(Int|Uint|Float)\d+(Clamped)?Array)$/.test(name)) {
        this.global[name] = globalThis[name];
      }
    }
  }
};
