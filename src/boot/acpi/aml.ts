/**
 * Encodes ACPI Machine Language (ACPI 6.5, chapters 20 and 6.4). Each constructor returns the bytes of the
 * ASL term of the same name; nesting the calls gives nested terms. The arguments are the monitor's own, so a
 * value that does not fit is a mistake in the monitor and throws RangeError.
 */

/** Encoded AML. */
export type Aml = readonly number[];

/** Opcodes and prefixes (20.2). */
const ZERO_OP = 0x00;
const ONE_OP = 0x01;
const NAME_OP = 0x08;
const BYTE_PREFIX = 0x0a;
const WORD_PREFIX = 0x0b;
const DWORD_PREFIX = 0x0c;
const STRING_PREFIX = 0x0d;
const SCOPE_OP = 0x10;
const BUFFER_OP = 0x11;
const METHOD_OP = 0x14;
const DUAL_NAME_PREFIX = 0x2e;
const MULTI_NAME_PREFIX = 0x2f;
const EXT_OP_PREFIX = 0x5b;
const ROOT_CHAR = 0x5c;
const DEVICE_OP = 0x82;
const RETURN_OP = 0xa4;

/** Resource descriptors (6.4). */
const IO_PORT_DESCRIPTOR = 0x47;
const IO_DECODE_16 = 1;
const END_TAG = 0x79;
const MEMORY_32_FIXED = 0x86;
const MEMORY_READ_WRITE = 1;
const EXTENDED_INTERRUPT = 0x89;
const INTERRUPT_CONSUMER = 1 << 0;
const INTERRUPT_EDGE = 1 << 1;

/** `Scope (path) { terms }` */
export function scope(path: string, terms: readonly Aml[]): Aml {
  return [SCOPE_OP, ...packaged([...nameString(path), ...terms.flat()])];
}

/** `Device (name) { terms }` */
export function device(path: string, terms: readonly Aml[]): Aml {
  return [EXT_OP_PREFIX, DEVICE_OP, ...packaged([...nameString(path), ...terms.flat()])];
}

/** `Name (name, value)` */
export function name(path: string, value: Aml): Aml {
  return [NAME_OP, ...nameString(path), ...value];
}

/** `Method (name, argCount, NotSerialized) { terms }`; 0 to 7 arguments. */
export function method(path: string, argCount: number, terms: readonly Aml[]): Aml {
  checkRange(argCount, 7, "method argument count");
  return [METHOD_OP, ...packaged([...nameString(path), argCount, ...terms.flat()])];
}

/** `Return (value)` */
export function returns(value: Aml): Aml {
  return [RETURN_OP, ...value];
}

/** An integer constant in its shortest encoding; 0 to 2^32-1. */
export function integer(value: number): Aml {
  checkRange(value, 0xffff_ffff, "integer");
  if (value === 0) return [ZERO_OP];
  if (value === 1) return [ONE_OP];
  if (value <= 0xff) return [BYTE_PREFIX, value];
  if (value <= 0xffff) return [WORD_PREFIX, ...u16(value)];
  return [DWORD_PREFIX, ...u32(value)];
}

/** A string constant: ASCII without NUL. */
export function string(text: string): Aml {
  const bytes = [...text].map((c) => c.charCodeAt(0));
  if (bytes.some((b) => b === 0 || b > 0x7f))
    throw new RangeError(`not an AML string: ${JSON.stringify(text)}`);
  return [STRING_PREFIX, ...bytes, 0];
}

/** `EisaId ("PNP0501")`: three letters, four hexadecimal digits (19.6.39). */
export function eisaId(id: string): Aml {
  if (!/^[A-Z]{3}[0-9A-F]{4}$/.test(id)) throw new RangeError(`not an EISA id: ${id}`);
  const letter = (i: number) => id.charCodeAt(i) - 0x40;
  const letters = (letter(0) << 10) | (letter(1) << 5) | letter(2);
  const product = Number.parseInt(id.slice(3), 16);
  return [DWORD_PREFIX, letters >> 8, letters & 0xff, product >> 8, product & 0xff];
}

/** `ResourceTemplate () { descriptors }`: a buffer that ends in an end tag with its checksum (6.4.2.9). */
export function resourceTemplate(descriptors: readonly Aml[]): Aml {
  const bytes = [...descriptors.flat(), END_TAG];
  const sum = bytes.reduce((a, b) => a + b, 0);
  bytes.push(-sum & 0xff);
  return [BUFFER_OP, ...packaged([...integer(bytes.length), ...bytes])];
}

/** `Memory32Fixed (ReadWrite, base, length)` (6.4.3.4) */
export function memory32Fixed(base: number, length: number): Aml {
  checkRange(base, 0xffff_ffff, "memory base");
  checkRange(length, 0xffff_ffff, "memory length");
  return [MEMORY_32_FIXED, ...u16(9), MEMORY_READ_WRITE, ...u32(base), ...u32(length)];
}

/** `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }` (6.4.3.6) */
export function interruptEdgeHigh(gsi: number): Aml {
  checkRange(gsi, 0xffff_ffff, "interrupt");
  return [EXTENDED_INTERRUPT, ...u16(6), INTERRUPT_CONSUMER | INTERRUPT_EDGE, 1, ...u32(gsi)];
}

/** `IO (Decode16, port, port, 1, length)` (6.4.2.5) */
export function ioPorts(port: number, length: number): Aml {
  checkRange(port, 0xffff, "port");
  checkRange(length, 0xff, "port count");
  return [IO_PORT_DESCRIPTOR, IO_DECODE_16, ...u16(port), ...u16(port), 1, length];
}

/** A name such as `_SB.V000` or `\_SB`; segments shorter than 4 characters are padded with `_` (20.2.2). */
function nameString(path: string): number[] {
  const root = path.startsWith("\\");
  const segments = (root ? path.slice(1) : path).split(".");
  const bytes: number[] = root ? [ROOT_CHAR] : [];
  if (segments.length === 2) bytes.push(DUAL_NAME_PREFIX);
  if (segments.length > 2) bytes.push(MULTI_NAME_PREFIX, segments.length);
  for (const segment of segments) {
    if (!/^[A-Z_][A-Z0-9_]{0,3}$/.test(segment)) throw new RangeError(`not an AML name: ${path}`);
    for (const c of segment.padEnd(4, "_")) bytes.push(c.charCodeAt(0));
  }
  return bytes;
}

/** PkgLength, which counts its own 1 to 4 bytes, and the contents (20.2.4). */
function packaged(contents: number[]): number[] {
  const length = contents.length;
  if (length + 1 < 1 << 6) return [length + 1, ...contents];
  for (let extra = 1; extra <= 3; extra++) {
    const total = length + 1 + extra;
    if (total < 1 << (4 + 8 * extra)) {
      const lead = [(extra << 6) | (total & 0xf)];
      for (let i = 0; i < extra; i++) lead.push((total >> (4 + 8 * i)) & 0xff);
      return lead.concat(contents);
    }
  }
  throw new RangeError(`AML package of ${length} bytes is too long`);
}

function checkRange(value: number, max: number, what: string): void {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw new RangeError(`AML ${what} ${value} is outside 0 to ${max}`);
  }
}

function u16(value: number): number[] {
  return [value & 0xff, value >>> 8];
}

function u32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}
