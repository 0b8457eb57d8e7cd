//! How fast the matrix kernels are, as fractions of what this machine can do.
//!
//! ```text
//! cargo run --release -p kernels --example speed -- [ISA] [decode|cached|eight|prefill] [FORMAT,...] [ROWSxCOLS] [far]
//! ```
//!
//! Decode multiplies one column with matrices larger than any cache and is measured against reading
//! memory (cached: a matrix that the second-level cache holds, which shows the work per byte); prefill multiplies 512 columns and is measured against dot products of registers (of floats
//! for F32, F16 and BF16); eight multiplies 8, as sequences that decode together do, from memory and from a cache. Each line has one thread, then two; medians of interleaved rounds. far: weights are read in the
//! second of this CPU's ways (see [`kernels::ways`]).

use kernels::acts::ActStore;
use kernels::kernels::matmul::LinearJob;
use kernels::packed::{Format, Matrix, Shape};
use kernels::peaks::peaks;
use kernels::simd::LANES;
use kernels::table::{KernelTable, available};
use kernels::view::{Aligned, Shared};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROUNDS: usize = 9;
const PREFILL: usize = 512;
/// Bytes of weights that a second-level cache holds.
const CACHED: usize = 256 << 10;
/// Weights that decode reads in a round.
const STREAM: usize = 192 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().any(|arg| arg == word);
    if has("far") {
        kernels::ways::choose(kernels::ways::WAYS - 1);
    }
    let tables = available();
    let table = tables.iter().find(|table| has(table.isa)).unwrap_or(&tables[0]);
    let formats: Vec<Format> =
        args.iter().flat_map(|arg| arg.split(',')).filter_map(Format::by_name).collect();
    let formats = if formats.is_empty() { Format::ALL.to_vec() } else { formats };
    let shape = args
        .iter()
        .filter(|arg| arg.starts_with(|c: char| c.is_ascii_digit()))
        .find_map(|arg| arg.split_once('x'));
    let (rows, cols) = shape.map_or((2048, 2048), |(rows, cols)| (number(rows), number(cols)));

    let memory = Aligned::<u8>::streamed(STREAM).expect("memory");
    let mut memory = memory;
    memory.as_mut_slice().fill(0x2d);
    println!("{}, {rows} rows of {cols}; one thread, then two", table.isa);
    let peaks = peaks(table.isa);
    let limits: Vec<Limit> = vec![
        Limit {
            name: "read",
            unit: "GB/s",
            work: STREAM as f64,
            run: Box::new(|n| read(&memory, peaks.read, n)),
        },
        Limit { name: "int8", unit: "Gop/s", work: 1.0, run: Box::new(|n| rate(peaks.int8, n)) },
        Limit { name: "f32", unit: "Gflop/s", work: 1.0, run: Box::new(|n| rate(peaks.float, n)) },
    ];
    let mut benches = Vec::new();
    let all = !["decode", "cached", "eight", "prefill"].into_iter().any(&has);
    for format in formats {
        let tile = format.tile_bytes(cols);
        if all || has("decode") {
            let copies = (STREAM / (rows / LANES * tile)).max(1);
            benches.push(Bench::new("decode", table, format, [rows, cols, 1], copies, 1));
        }
        if all || has("cached") {
            let tiles = (CACHED / tile).max(4);
            let repeats = (STREAM / 4 / (tiles * tile)).max(1);
            benches.push(Bench::new("cached", table, format, [tiles * LANES, cols, 1], 1, repeats));
        }
        if has("eight") {
            let copies = (STREAM / (rows / LANES * tile)).max(1);
            benches.push(Bench::new("8 columns", table, format, [rows, cols, 8], copies, 1));
            let tiles = (CACHED / tile).max(4);
            let repeats = (STREAM / 16 / (tiles * tile)).max(1);
            benches.push(Bench::new("8 cached", table, format, [tiles * LANES, cols, 8], 1, repeats));
        }
        if all || has("prefill") {
            benches.push(Bench::new("prefill", table, format, [rows, cols, PREFILL], 1, 1));
        }
    }
    let mut limit_rates = vec![[const { Vec::new() }; 2]; limits.len()];
    let mut rates = vec![[const { Vec::new() }; 2]; benches.len()];
    for _ in 0..ROUNDS {
        for threads in [1, 2] {
            for (limit, rates) in limits.iter().zip(&mut limit_rates) {
                let seconds = (limit.run)(threads);
                rates[threads - 1].push(limit.work / seconds / 1e9);
            }
            for (bench, rates) in benches.iter_mut().zip(&mut rates) {
                let seconds = bench.run(threads);
                rates[threads - 1].push(bench.work() / seconds / 1e9);
            }
        }
    }
    let limit_rates: Vec<[f64; 2]> = limit_rates.into_iter().map(|rates| rates.map(median)).collect();
    for (limit, [one, two]) in limits.iter().zip(&limit_rates) {
        println!("{:12} {one:8.1} {two:8.1} {}", limit.name, limit.unit);
    }
    for (bench, rates) in benches.iter().zip(rates) {
        let [one, two] = rates.map(median);
        let limit = limit_rates[bench.limit()];
        let name = format!("{} {}", bench.matrices[0].format().name(), bench.name);
        println!(
            "{name:14} {one:8.1} {two:8.1} {:8}  {:4.0}% {:4.0}%",
            limits[bench.limit()].unit,
            one / limit[0] * 100.0,
            two / limit[1] * 100.0
        );
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a whole number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Limit<'a> {
    name: &'static str,
    unit: &'static str,
    work: f64,
    run: Box<dyn Fn(usize) -> f64 + 'a>,
}

/// Seconds that `job` takes on so many threads.
fn timed(threads: usize, job: impl Fn(usize) + Sync) -> f64 {
    let (job, ready, go) = (&job, AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let (ready, go) = (&ready, &go);
            scope.spawn(move || {
                ready.fetch_add(1, Ordering::SeqCst);
                while go.load(Ordering::SeqCst) == 0 {
                    std::hint::spin_loop();
                }
                job(thread);
            });
        }
        while ready.load(Ordering::SeqCst) + 1 < threads {
            std::hint::spin_loop();
        }
        go.store(1, Ordering::SeqCst);
        let start = Instant::now();
        job(0);
        start
    })
    .elapsed()
    .as_secs_f64()
}

fn read(memory: &Aligned<u8>, read: fn(&[u8]) -> u64, threads: usize) -> f64 {
    const PART: usize = 1 << 20;
    let next = AtomicUsize::new(0);
    timed(threads, |_| {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            let Some(bytes) = memory.as_slice().get(part * PART..(part + 1) * PART) else { return };
            black_box(read(bytes));
        }
    })
}

/// Seconds per operation of a loop.
fn rate(job: fn(u32) -> u64, threads: usize) -> f64 {
    const LOOPS: u32 = 4096;
    let operations = AtomicUsize::new(0);
    let seconds = timed(threads, |_| {
        operations.fetch_add(job(LOOPS) as usize, Ordering::Relaxed);
    });
    seconds / operations.into_inner() as f64
}

struct Bench {
    name: &'static str,
    table: &'static KernelTable,
    matrices: Vec<Matrix>,
    repeats: usize,
    columns: usize,
    acts: ActStore,
    out: Aligned<f32>,
}

impl Bench {
    fn new(
        name: &'static str,
        table: &'static KernelTable,
        format: Format,
        [rows, cols, columns]: [usize; 3],
        copies: usize,
        repeats: usize,
    ) -> Self {
        let matrices = (0..copies).map(|_| filled(format, rows, cols)).collect();
        let mut acts = ActStore::new(columns, cols).expect("memory");
        let kind = format.activations();
        let x: Vec<f32> = (0..cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        for row in 0..columns {
            // SAFETY: one thread.
            (table.prepare)(kind, &x, unsafe { acts.shared().row(kind, row, cols) }).expect("finite");
        }
        Self {
            name,
            table,
            matrices,
            repeats,
            columns,
            acts,
            out: Aligned::zeroed(columns * rows).expect("memory"),
        }
    }

    fn limit(&self) -> usize {
        match (self.columns, self.matrices[0].format().activations().quantised()) {
            (1, _) => 0,
            (_, true) => 1,
            (_, false) => 2,
        }
    }

    /// Bytes read, or operations.
    fn work(&self) -> f64 {
        let of = |matrix: &Matrix| match self.columns {
            1 => matrix.bytes(),
            columns => matrix.rows() * matrix.cols() * columns * 2,
        };
        (self.matrices.iter().map(of).sum::<usize>() * self.repeats) as f64
    }

    /// Hands out parts as the executor does.
    fn run(&mut self, threads: usize) -> f64 {
        let tiles = self.matrices[0].tiles();
        let size = (tiles / if self.columns == 1 { 2 } else { threads * 8 }).max(1);
        let items = tiles.div_ceil(size);
        let next = AtomicUsize::new(0);
        let out: Shared<f32> = self.out.shared();
        let format = self.matrices[0].format();
        let (table, matrices, columns, repeats) = (self.table, &self.matrices, self.columns, self.repeats);
        let acts = self.acts.shared();
        timed(threads, |_| {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item / items >= matrices.len() * repeats {
                    return;
                }
                let weight = &matrices[item / items % matrices.len()];
                let first = item % items * size;
                (table.linear)(&LinearJob {
                    weight,
                    tiles: first..(first + size).min(tiles),
                    // SAFETY: nobody writes them meanwhile.
                    acts: unsafe { acts.all(format.activations(), columns, weight.cols()) },
                    bias: None,
                    add: false,
                    out,
                    width: weight.rows(),
                });
            }
        })
    }
}

fn filled(format: Format, rows: usize, cols: usize) -> Matrix {
    let mut matrix = Matrix::zeroed(Shape { format, rows, cols }).expect("memory");
    let bytes = matrix.bytes();
    // SAFETY: one thread. Bytes of 0x2d are small positive values in every format.
    unsafe { matrix.shared_tiles().write(0..bytes) }.fill(0x2d);
    matrix
}
