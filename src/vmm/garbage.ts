/**
 * Collects the garbage of a thread that seldom comes to its event loop. The engine counts guest RAM as live memory, once
 * for each buffer that shows it, and would let as much garbage pile up before it collects by itself.
 */

/** Requests after which there are some 30 MiB of garbage. */
const COLLECT_AFTER = 32_768;
/** Of so many collections one looks at all, which takes 2 ms; the others at what is new, which takes half of one. */
const FULL_EVERY = 16;

export class Garbage {
  private requests = 0;
  private collections = 0;

  /** `count` requests were served. */
  add(count: number): void {
    this.requests += count;
  }

  /** Collects if there is enough. */
  collect(): void {
    if (this.requests >= COLLECT_AFTER) this.collectNow();
  }

  collectNow(): void {
    this.requests = 0;
    const { edenGC, fullGC } = engine();
    if (++this.collections % FULL_EVERY === 0) fullGC();
    else edenGC();
  }
}

type Engine = Pick<typeof import("bun:jsc"), "edenGC" | "fullGC">;

/** Loaded when it is needed, and at once. */
function engine(): Engine {
  const module = process.getBuiltinModule("bun:jsc");
  if (!isEngine(module)) throw new Error("the runtime does not let its garbage collector be called");
  return module;
}

function isEngine(module: object | undefined): module is Engine {
  return module !== undefined && "edenGC" in module && "fullGC" in module;
}
