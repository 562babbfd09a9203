/**
 * The interrupt controllers and timers of one vCPU, wired as KVM wires its own: a line below GSI 16 drives an input of
 * the PIC and one of the I/O APIC, the interval timer drives GSI 0, and the PIC's INTR reaches the processor through
 * LINT0 of the local APIC.
 */
import type { Apic } from "./apic.ts";
import type { Clock } from "./clock.ts";
import type { SoftBus } from "./cpu.ts";
import { ATTENTION, GSI_EDGES } from "./layout.ts";
import { Pic } from "./pic.ts";
import { Pit } from "./pit.ts";
import type { State } from "./state.ts";

const PIC_LINES = 16;
const PIC_GSIS = (1 << PIC_LINES) - 1;
const TIMER_GSI = 0;

export class IrqChip {
  private readonly pic = new Pic();
  private readonly pit: Pit;

  constructor(
    private readonly state: State,
    private readonly clock: Clock,
    private readonly apic: Apic,
  ) {
    this.pit = new Pit(() => clock.host());
  }

  // --- what the run loop asks --------------------------------------------------------------------

  edgesWaiting(): boolean {
    return Atomics.load(this.state.i32, GSI_EDGES >> 2) !== 0;
  }

  /** Takes the edges that any thread has raised since the last call, and fires the timers that are due. */
  collect(): void {
    const edges = Atomics.exchange(this.state.i32, GSI_EDGES >> 2, 0);
    if (edges !== 0) this.raise(edges);
    if (this.pit.nextEdge !== undefined && this.pit.takeEdges()) this.raise(1 << TIMER_GSI);
    this.apic.poll();
  }

  /** TSC at which a timer fires next, if one runs. */
  get nextTimer(): bigint | undefined {
    const local = this.apic.nextTimer;
    const edge = this.pit.nextEdge;
    if (edge === undefined) return local;
    const interval = this.clock.atHost(edge);
    return local === undefined || interval < local ? interval : local;
  }

  /** True if an interrupt is to be delivered as soon as the processor allows it. */
  pending(): boolean {
    return this.externalPending() || this.apic.pending() >= 0;
  }

  /** The processor takes the interrupt that is pending: its vector. */
  acknowledge(): number {
    if (this.externalPending()) return this.pic.acknowledge();
    const vector = this.apic.pending();
    this.apic.acknowledge(vector);
    return vector;
  }

  private externalPending(): boolean {
    return this.pic.output && this.apic.acceptsExtInt;
  }

  private raise(gsis: number): void {
    this.apic.ioapic.edges(gsis);
    for (let irqs = gsis & PIC_GSIS; irqs !== 0; irqs &= irqs - 1)
      this.pic.pulse(31 - Math.clz32(irqs & -irqs));
  }

  // --- ports -------------------------------------------------------------------------------------

  /** `bus` with the chips' ports on it. They are a byte wide: a wider access is one to each port that it covers. */
  withPorts(bus: SoftBus): SoftBus {
    return {
      pioRead: (port, size) => {
        if (!owns(port)) return bus.pioRead(port, size);
        let value = 0;
        for (let i = 0; i < size; i++) {
          const byte = owns(port + i) ? this.readPort(port + i) : bus.pioRead(port + i, 1);
          value |= (byte & 0xff) << (8 * i);
        }
        return value;
      },
      pioWrite: (port, size, value) => {
        if (!owns(port)) {
          bus.pioWrite(port, size, value);
          return;
        }
        for (let i = 0; i < size; i++) {
          const byte = (value >> (8 * i)) & 0xff;
          if (owns(port + i)) this.writePort(port + i, byte);
          else bus.pioWrite(port + i, 1, byte);
        }
      },
      mmioRead: (gpa, size) => bus.mmioRead(gpa, size),
      mmioWrite: (gpa, size, value) => bus.mmioWrite(gpa, size, value),
    };
  }

  private readPort(port: number): number {
    if (!Pic.owns(port)) return this.pit.read(port);
    const value = this.pic.read(port);
    // A poll changes what is pending.
    this.changed();
    return value;
  }

  private writePort(port: number, value: number): void {
    if (Pic.owns(port)) this.pic.write(port, value);
    else this.pit.write(port, value);
    this.changed();
  }

  /** The run loop is to look at INTR and at the timers anew. */
  private changed(): void {
    Atomics.store(this.state.i32, ATTENTION >> 2, -1);
  }
}

function owns(port: number): boolean {
  return Pic.owns(port) || Pit.owns(port);
}
