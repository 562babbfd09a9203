/** As much XML as the tests of pictures need. */

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

/** @throws Error for an entity that XML does not have, and for an ampersand alone. */
export function unescapeXml(text: string): string {
  return text.replace(/&(\w*;?)/g, (_, name: string) => {
    const character = name.endsWith(";") ? ENTITIES[name.slice(0, -1)] : undefined;
    if (character === undefined) throw new Error(`&${name} is no entity`);
    return character;
  });
}

/**
 * Checks that `xml` is well-formed: one root, tags that pair, attributes quoted and named once, only entities of XML.
 * @returns the text of each element that has some, in order.
 * @throws Error otherwise.
 */
export function checkXml(xml: string): string[] {
  const open: string[] = [];
  const texts: string[] = [];
  let roots = 0;
  for (const [piece] of xml.matchAll(/<[^>]*>?|[^<]+/g)) {
    const tag = /^<(\/?)([A-Za-z][\w-]*)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>$/.exec(piece);
    if (tag === null) {
      if (piece.startsWith("<")) throw new Error(`not a tag: ${piece}`);
      const text = unescapeXml(piece);
      if (text.trim() === "") continue;
      if (open.length === 0) throw new Error(`text outside of the root: ${text}`);
      texts.push(text);
      continue;
    }
    const [, end, name, attributes, empty] = tag;
    if (end === "/") {
      if (open.pop() !== name) throw new Error(`${piece} ends no open element`);
      continue;
    }
    if (open.length === 0 && ++roots > 1) throw new Error(`a second root: ${piece}`);
    const names = [...attributes!.matchAll(/([\w:-]+)="([^"]*)"/g)].map(([, key, value]) => {
      unescapeXml(value!);
      return key;
    });
    if (new Set(names).size !== names.length) throw new Error(`an attribute twice: ${piece}`);
    if (empty !== "/") open.push(name!);
  }
  if (open.length > 0 || roots !== 1) throw new Error(`not closed: ${open.join(", ")}`);
  return texts;
}
