/** Makes a failing program smaller: pieces are taken away as long as it still fails. */
import type { Node, Program } from "./program.ts";

function lists(program: Program): Node[][] {
  const out: Node[][] = [];
  const visit = (list: Node[]): void => {
    out.push(list);
    for (const node of list) for (const child of node.children) visit(child);
  };
  for (const list of [...program.parts, ...program.functions]) visit(list);
  return out;
}

/** Whether `fails` still holds; a program that cannot be assembled or run is no smaller one. */
function stillFails(program: Program, fails: (program: Program) => boolean): boolean {
  try {
    return fails(program);
  } catch {
    return false;
  }
}

/** Takes nodes out of `list`, large slices first. True if some went. */
function thin(program: Program, list: Node[], fails: (program: Program) => boolean): boolean {
  let some = false;
  for (let size = list.length; size >= 1; size >>= 1) {
    for (let at = 0; at + size <= list.length; ) {
      const taken = list.splice(at, size);
      if (stillFails(program, fails)) {
        some = true;
        continue;
      }
      list.splice(at, 0, ...taken);
      at += size;
    }
  }
  return some;
}

/** Replaces nodes of `list` by what they hold. True if some were. */
function unwrap(program: Program, list: Node[], fails: (program: Program) => boolean): boolean {
  let some = false;
  for (let at = 0; at < list.length; at++) {
    const node = list[at]!;
    if (node.children.length === 0) continue;
    list.splice(at, 1, ...node.children.flat());
    if (stillFails(program, fails)) some = true;
    else list.splice(at, node.children.flat().length, node);
  }
  return some;
}

/** Changes `program`, for which `fails` holds, into a smaller one for which it holds too. */
export function reduce(program: Program, fails: (program: Program) => boolean): void {
  for (let changed = true; changed; ) {
    changed = false;
    for (const list of lists(program)) {
      if (thin(program, list, fails)) changed = true;
      if (unwrap(program, list, fails)) changed = true;
    }
  }
}
