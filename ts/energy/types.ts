/** What a stretch of time cost, on the whole machine: another program's work, or another generation's, is in it. */
export type Energy = MeasuredEnergy | ModelledEnergy | CountedEnergy;

interface Cost {
  readonly seconds: number;
  /** Of all threads of this process. */
  readonly cpuSeconds: number;
}

/** Read from counters of the hardware. */
export interface MeasuredEnergy extends Cost {
  readonly kind: 'measured';
  /** Packages and memory. */
  readonly joules: number;
  /** Joules by name: `package`, `dram`; `core` and `uncore` are parts of the packages; `psys` is more than all. */
  readonly domains: Readonly<Record<string, number>>;
}

/** Made of watts that the user gave: seconds * idle + CPU-seconds / cores * (busy - idle). */
export interface ModelledEnergy extends Cost {
  readonly kind: 'modelled';
  readonly joules: number;
  readonly watts: Watts;
}

/** No energy is known: neither counters that may be read, nor watts. */
export interface CountedEnergy extends Cost {
  readonly kind: 'counted';
  /** Why nothing was measured, and what to do about it. */
  readonly why: string;
}

/** What the whole machine takes, from the plug or from a data sheet. */
export interface Watts {
  readonly idle: number;
  /** With all cores at work. */
  readonly busy: number;
}

export interface EnergyOptions {
  /** For a model of the energy where no counters can be read. */
  readonly watts?: Watts;
  /** Where Linux shows its power counters. @default '/sys/class/powercap' */
  readonly root?: string;
}

/** Measures stretches of time, also ones that overlap. */
export interface EnergyMeter {
  /** What `end` will give. */
  readonly kind: Energy['kind'];
  start(): EnergySpan;
}

export interface EnergySpan {
  /** What it cost since `start`. Call it once. */
  end(): Energy;
}
