/** @type {import('jest').Config} */
module.exports = {
  testEnvironment: 'node',
  // Against hangs only: references are slow on a machine that does something else as well, and everything is under a
  // sanitizer.
  testTimeout: process.env.LA_SANITIZED ? 3_600_000 : 60_000,
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  modulePathIgnorePatterns: ['<rootDir>/build', '<rootDir>/dist', '<rootDir>/prebuilds'],
  // In the sandbox a global is looked up anew at every use, which makes Math a hundred times the cost of arithmetic.
  sandboxInjectedGlobals: ['Math', 'Number'],
  transform: {
    '\\.ts$': ['@swc/jest', { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' } }],
  },
};
