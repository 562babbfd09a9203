/** Where the stored vectors of the table oracle lie. */

import { join } from "node:path";
import type { StateKind } from "./forms.ts";

/** File with the vectors of the forms that need this state. */
export const vectorFile = (state: StateKind): string => join(import.meta.dirname, "vectors", `${state}.gz`);
