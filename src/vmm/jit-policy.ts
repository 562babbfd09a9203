/**
 * How eager a thread's JavaScript engine is to compile. What runs until the guest does runs once, and compiling it would
 * take a processor from the other threads of the start, and pages.
 */

/** Times the engine's usual thresholds. With thousands it would be felt for long that some code has run before. */
export const STARTUP_JIT_POLICY = 100;

/** For a Worker, at its beginning. The executable's main thread starts like this. */
export function compileLater(): void {
  Bun.unsafe.setJITPolicy(STARTUP_JIT_POLICY);
}

/** From now on the calling thread runs what it runs for long. */
export function compileAsUsual(): void {
  Bun.unsafe.setJITPolicy(1);
}
