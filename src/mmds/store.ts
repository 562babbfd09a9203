/** The microVM metadata service's data: one JSON value of limited size. */

/** Why a change was refused. Messages are Firecracker's. */
export class MmdsError extends Error {
  constructor(readonly kind: "not-initialized" | "too-large") {
    super(
      kind === "too-large"
        ? "The MMDS patch request doesn't fit."
        : "The MMDS data store is not initialized.",
    );
    this.name = "MmdsError";
  }
}

export class MmdsStore {
  private data: unknown = null;
  private initialized = false;

  /** `limit`: most bytes that the data may take as JSON. */
  constructor(private readonly limit: number) {}

  /** The data; null before the first {@link put}. */
  get(): unknown {
    return this.data;
  }

  /** Replaces the data. Throws {@link MmdsError}. */
  put(data: unknown): void {
    this.checkSize(data);
    this.data = data;
    this.initialized = true;
  }

  /** Changes the data by a JSON merge patch (RFC 7396). Throws {@link MmdsError}. */
  patch(patch: unknown): void {
    if (!this.initialized) throw new MmdsError("not-initialized");
    const merged = mergePatch(this.data, patch);
    this.checkSize(merged);
    this.data = merged;
  }

  private checkSize(data: unknown): void {
    if (Buffer.byteLength(JSON.stringify(data)) > this.limit) throw new MmdsError("too-large");
  }
}

/** The result of RFC 7396's MergePatch. Neither argument is changed. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch;
  // A map, since "__proto__" is a key like any other here.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value));
  }
  return Object.fromEntries(merged);
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
