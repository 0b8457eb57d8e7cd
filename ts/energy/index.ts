export { openEnergyMeter } from './meter.js';
export type {
  CountedEnergy,
  EnergyMeter,
  EnergyOptions,
  EnergySpan,
  MeasuredEnergy,
  ModelledEnergy,
} from './types.js';
