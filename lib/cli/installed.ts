import { createRequire } from 'node:module';
import path from 'node:path';

/** A package that the command line can use but this package does not bring along. */
export class PackageMissing extends Error {}

/**
 * Finds a package from the user's project, or else from where this package lies.
 *
 * @param use what is to be done with the package, with the `require` that finds it
 * @param install what the message says of how to install it: options of `npm install` and the package's name
 * @throws PackageMissing saying how to install it
 */
export function withPackage<Result>(name: string, use: (require: NodeJS.Require) => Result, install = name): Result {
  const problems: string[] = [];
  for (const base of [path.join(process.cwd(), 'package.json'), __filename]) {
    try {
      return use(createRequire(base));
    } catch (error) {
      problems.push((error as Error).message.split('\n', 1)[0] as string);
    }
  }
  throw new PackageMissing(
    `${name} does not load from ${process.cwd()}: ${problems[0]}\n` +
      `Install it there and try again: npm install --save-dev ${install}`,
  );
}

/** The main file of such a package. @throws PackageMissing */
export function locatePackage(name: string): string {
  return withPackage(name, (require) => require.resolve(name));
}
