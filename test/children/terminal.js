// Preloaded by a program whose error stream is a pipe: progress is shown as on a terminal, so that a test can wait for it.
process.stderr.isTTY = true;
