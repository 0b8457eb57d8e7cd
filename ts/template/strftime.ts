const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];
const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];

const two = (value: number): string => String(value).padStart(2, '0');

const FIELDS: ReadonlyMap<string, (date: Date) => string> = new Map<string, (date: Date) => string>([
  ['%Y', (date) => String(date.getFullYear())],
  ['%y', (date) => two(date.getFullYear() % 100)],
  ['%m', (date) => two(date.getMonth() + 1)],
  ['%B', (date) => MONTHS[date.getMonth()] ?? ''],
  ['%b', (date) => (MONTHS[date.getMonth()] ?? '').slice(0, 3)],
  ['%d', (date) => two(date.getDate())],
  ['%A', (date) => DAYS[date.getDay()] ?? ''],
  ['%a', (date) => (DAYS[date.getDay()] ?? '').slice(0, 3)],
  ['%H', (date) => two(date.getHours())],
  ['%M', (date) => two(date.getMinutes())],
  ['%S', (date) => two(date.getSeconds())],
  ['%%', () => '%'],
]);

/** The local date in the format of C's strftime, in English. Unknown fields stay as they are. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%[A-Za-z%]/g, (field) => FIELDS.get(field)?.(date) ?? field);
}
