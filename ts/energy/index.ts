export { openEnergyMeter } from './meter.js';
export type {
  CountedEnergy,
  Energy,
  EnergyMeter,
  EnergyOptions,
  EnergySpan,
  MeasuredEnergy,
  ModelledEnergy,
  Watts,
} from './types.js';
