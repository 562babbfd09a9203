/** Where the cache is. Apart from what fills it, which every start would have to load. */

/** `$XDG_CACHE_HOME/sparkler`, or `~/.cache/sparkler` (XDG Base Directory Specification). */
export function defaultCacheDir(env: Readonly<Record<string, string | undefined>> = process.env): string {
  const base = env.XDG_CACHE_HOME;
  // The specification has relative paths ignored.
  if (base?.startsWith("/")) return `${trimmed(base)}/sparkler`;
  const home = env.HOME ?? process.getBuiltinModule("node:os").homedir();
  return `${trimmed(home)}/.cache/sparkler`;
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, "");
}
