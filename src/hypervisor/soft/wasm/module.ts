/** A WebAssembly module under construction: signatures, imports, functions, one table, one imported memory. */
import { ByteWriter, type ValType } from "./encoding.ts";
import { Func, type FuncRef } from "./func.ts";

const SECTION = {
  type: 1,
  import: 2,
  function: 3,
  table: 4,
  export: 7,
  element: 9,
  code: 10,
  custom: 0,
} as const;

/** Shared memory the module imports as `env.memory`; sizes in 64 KiB pages. */
export interface MemoryImport {
  readonly minPages: number;
  readonly maxPages: number;
}

export class ModuleBuilder {
  private readonly types = new ByteWriter();
  private readonly typeIndex = new Map<string, number>();
  private readonly imports: { name: string; ref: FuncRef }[] = [];
  private readonly funcs: Func[] = [];
  private readonly exported: { name: string; index: number }[] = [];
  /** Functions by table slot. Slot 0 stays empty so that a zeroed record traps instead of running. */
  private readonly slots: { slot: number; func: number }[] = [];
  private table: "none" | "own" | "imported" = "none";
  private tableSize = 0;

  private custom: { name: string; data: Uint8Array } | undefined;

  constructor(private readonly memory: MemoryImport) {}

  /** Adds a custom section. */
  customSection(name: string, data: Uint8Array): void {
    this.custom = { name, data };
  }

  signature(params: readonly ValType[], results: readonly ValType[]): number {
    const key = `${params.join()}>${results.join()}`;
    let index = this.typeIndex.get(key);
    if (index === undefined) {
      index = this.typeIndex.size;
      this.typeIndex.set(key, index);
      this.types.u8(0x60);
      this.types.u32(params.length);
      for (const p of params) this.types.u8(p);
      this.types.u32(results.length);
      for (const r of results) this.types.u8(r);
    }
    return index;
  }

  /** Imports `env.<name>`. All imports must be declared before the first function. */
  import(name: string, params: readonly ValType[], results: readonly ValType[]): FuncRef {
    if (this.funcs.length) throw new Error(`import ${name} after the first function`);
    const ref = { index: this.imports.length, type: this.signature(params, results), params, results };
    this.imports.push({ name, ref });
    return ref;
  }

  func(name: string, params: readonly ValType[], results: readonly ValType[]): Func {
    const index = this.imports.length + this.funcs.length;
    const f = new Func({ index, type: this.signature(params, results), params, results }, name);
    this.funcs.push(f);
    return f;
  }

  export(name: string, f: Func): void {
    this.exportRef(name, f.ref);
  }
  exportRef(name: string, ref: FuncRef): void {
    this.exported.push({ name, index: ref.index });
  }

  /** Declares the function table, exported as `table`; `size` slots. */
  ownTable(size: number): void {
    this.table = "own";
    this.tableSize = size;
  }

  /** Imports the table `env.table` instead. */
  importTable(size: number): void {
    this.table = "imported";
    this.tableSize = size;
  }

  /** Puts `f` into the table, at `slot` or the next one (1, 2, ...), and returns the slot. */
  slot(f: Func, slot = this.slots.length + 1): number {
    this.slots.push({ slot, func: f.ref.index });
    return slot;
  }

  /** Number of functions put into the table so far. */
  get slotCount(): number {
    return this.slots.length;
  }

  /** `names`: add a name section (debugging, profiling). */
  encode(names = false): Uint8Array {
    const out = new ByteWriter(1 << 16);
    out.append(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0));
    const section = (id: number, fill: (w: ByteWriter) => void) => {
      const w = new ByteWriter(1 << 12);
      fill(w);
      out.u8(id);
      out.sized(w);
    };
    section(SECTION.type, (w) => {
      w.u32(this.typeIndex.size);
      w.append(this.types.view());
    });
    section(SECTION.import, (w) => {
      w.u32(this.imports.length + (this.table === "imported" ? 2 : 1));
      for (const { name, ref } of this.imports) {
        w.name("env");
        w.name(name);
        w.u8(0);
        w.u32(ref.type);
      }
      w.name("env");
      w.name("memory");
      w.u8(2);
      w.u8(3); // shared, with a maximum
      w.u32(this.memory.minPages);
      w.u32(this.memory.maxPages);
      if (this.table === "imported") {
        w.name("env");
        w.name("table");
        w.u8(1);
        w.u8(0x70);
        w.u8(0);
        w.u32(this.tableSize);
      }
    });
    section(SECTION.function, (w) => {
      w.u32(this.funcs.length);
      for (const f of this.funcs) w.u32(f.ref.type);
    });
    if (this.table === "own") {
      section(SECTION.table, (w) => {
        w.u32(1);
        w.u8(0x70);
        w.u8(0);
        w.u32(this.tableSize);
      });
    }
    section(SECTION.export, (w) => {
      w.u32(this.exported.length + (this.table === "own" ? 1 : 0));
      for (const e of this.exported) {
        w.name(e.name);
        w.u8(0);
        w.u32(e.index);
      }
      if (this.table === "own") {
        w.name("table");
        w.u8(1);
        w.u32(0);
      }
    });
    if (this.slots.length) {
      section(SECTION.element, (w) => {
        const runs: { slot: number; func: number }[][] = [];
        for (const s of this.slots) {
          const last = runs[runs.length - 1];
          if (last && last[last.length - 1]!.slot + 1 === s.slot) last.push(s);
          else runs.push([s]);
        }
        w.u32(runs.length);
        for (const run of runs) {
          w.u32(0);
          w.u8(0x41);
          w.s32(run[0]!.slot);
          w.u8(0x0b);
          w.u32(run.length);
          for (const s of run) w.u32(s.func);
        }
      });
    }
    const bodies = this.funcs.map((f) => ({ index: f.ref.index, ...f.body() }));
    const hinted = bodies.filter((b) => b.hints.length > 0);
    if (hinted.length > 0) {
      // Branch hinting proposal: must come before the code section.
      section(SECTION.custom, (w) => {
        w.name("metadata.code.branch_hint");
        w.u32(hinted.length);
        for (const { index, hints } of hinted) {
          w.u32(index);
          w.u32(hints.length);
          for (const { offset, likely } of hints) {
            w.u32(offset);
            w.u32(1);
            w.u8(likely ? 1 : 0);
          }
        }
      });
    }
    section(SECTION.code, (w) => {
      w.u32(bodies.length);
      for (const b of bodies) w.sized(b.bytes);
    });
    const { custom } = this;
    if (custom) {
      section(SECTION.custom, (w) => {
        w.name(custom.name);
        w.append(custom.data);
      });
    }
    if (names) {
      section(SECTION.custom, (w) => {
        w.name("name");
        const map = new ByteWriter();
        map.u32(this.funcs.length);
        for (const f of this.funcs) {
          map.u32(f.ref.index);
          map.name(f.name);
        }
        w.u8(1);
        w.sized(map);
      });
    }
    return out.view();
  }
}
