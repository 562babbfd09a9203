/**
 * Where the parts of a random program's data page lie. The page is mapped as the oracle maps it (see
 * oracle/layout.ts): random accesses go to both ends of the page, the stack and the loader's image lie between.
 */
import { DATA_CROSS, DATA_THIRD } from "../oracle/layout.ts";

/** Random accesses reach this far on both sides of a page boundary, in bytes. */
export const DATA_REACH = 0x100;
/** Top of the stack that a part starts with, and of the other one that programs switch to. */
export const STACK_TOP = DATA_CROSS + 0x900;
export const OTHER_STACK_TOP = DATA_CROSS + 0x9f0;
/** Page offset of the program's bytes, which the native loader copies into the code page, and room for them. */
export const IMAGE_OFFSET = 0xa00;
export const IMAGE_BYTES = 0x500;

/** What RBX and RBP hold throughout. */
export const RBX_VALUE = DATA_CROSS + 0x10;
export const RBP_VALUE = DATA_THIRD + 0x30;
