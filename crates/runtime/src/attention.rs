//! A step's attention as items for threads.
//!
//! An item is some tokens' queries of one KV head: up to [`MAX_QUERIES`], so that many share each pass
//! over keys and values. Where there are few items for the threads, or one is much longer than the
//! others, items are split by chunks of 1,024 positions; a phase of its own then merges the chunks'
//! states in ascending order. No bit depends on either.

use crate::choose::Asked;
use crate::compile::Attention;
use crate::exec::{Token, Work};
use crate::kv::{KvLayout, LayerLayout};
use crate::plan::KvLayer;
use crate::sparse::{BlockSource, Choice, Place};
use kernels::kernels::attend::AttendScratch;
use kernels::kernels::attention::{AttendJob, BLOCK, CHUNK, MAX_QUERIES, Query, state_len};
use kernels::select::{Keys, Queries, SmallKeys};
use kernels::table::KernelTable;
use kernels::view::Shared;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Items per thread that long attention is split into.
const ITEMS_PER_THREAD: usize = 4;

/// What of an attention op its division into items depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    pub kv_heads: usize,
    /// Query heads of each.
    pub group: usize,
    pub value_dim: usize,
    pub window: Option<usize>,
}

impl Shape {
    /// The group's heads are dealt with in so many parts, of so many heads.
    fn parts(&self) -> (usize, usize) {
        let parts = self.group.div_ceil(MAX_QUERIES);
        (parts, self.group.div_ceil(parts))
    }

    /// Units of one span that is not split.
    fn heads(&self) -> usize {
        self.kv_heads * self.parts().0
    }
}

/// Consecutive tokens of one entry whose queries are handled together.
struct Span {
    tokens: Range<usize>,
    /// The chunks that any of them sees.
    chunks: Range<usize>,
    /// Into how many pieces these are split.
    pieces: usize,
    /// Before it, of all spans: items, merges, and floats of states.
    items: usize,
    merges: usize,
    states: usize,
}

/// How one shape's attention is divided in one step.
pub struct Division {
    shape: Shape,
    spans: Vec<Span>,
    pub items: usize,
    pub merges: usize,
    /// Floats for the states of spans that are split.
    pub states: usize,
}

/// One item: some chunks of a span's queries of some heads.
struct Item<'a> {
    span: &'a Span,
    kv_heads: usize,
    kv_head: usize,
    /// Within the KV head's group.
    heads: Range<usize>,
    piece: usize,
}

impl Division {
    /// Of no tokens.
    pub fn new(shape: Shape) -> Self {
        Self { shape, spans: Vec::new(), items: 0, merges: 0, states: 0 }
    }

    /// Divides a step's tokens anew, in the memory of the last step.
    pub fn divide(&mut self, tokens: &[Token], threads: usize) {
        let shape = self.shape;
        let (_, part) = shape.parts();
        let enough = (threads * ITEMS_PER_THREAD).div_ceil(shape.heads());
        let most = (MAX_QUERIES / part).min(tokens.len() / enough).clamp(1, BLOCK);
        find_spans(&mut self.spans, tokens, 1 << most.ilog2(), shape.window);
        let cost = self.spans.iter().map(Span::cost).sum::<usize>() * shape.heads();
        let share = (cost / (threads * ITEMS_PER_THREAD)).max(1);
        (self.items, self.merges, self.states) = (0, 0, 0);
        for span in &mut self.spans {
            (span.items, span.merges, span.states) = (self.items, self.merges, self.states);
            span.pieces =
                if threads == 1 { 1 } else { span.cost().div_ceil(share).clamp(1, span.chunks.len()) };
            self.items += shape.heads() * span.pieces;
            if span.pieces > 1 {
                self.merges += shape.heads();
                self.states += shape.heads() * span.states_len(&shape);
            }
        }
    }

    fn item(&self, index: usize) -> Item<'_> {
        let span = &self.spans[self.spans.partition_point(|span| span.items <= index) - 1];
        let (head, piece) = ((index - span.items) / span.pieces, (index - span.items) % span.pieces);
        self.of_head(span, head, piece)
    }

    fn merge(&self, index: usize) -> Item<'_> {
        let span = &self.spans[self.spans.partition_point(|span| span.merges <= index) - 1];
        self.of_head(span, index - span.merges, 0)
    }

    fn of_head<'a>(&self, span: &'a Span, head: usize, piece: usize) -> Item<'a> {
        let (parts, size) = self.shape.parts();
        let first = head % parts * size;
        Item {
            span,
            kv_heads: self.shape.kv_heads,
            kv_head: head / parts,
            heads: first..(first + size).min(self.shape.group),
            piece,
        }
    }

    /// Where the states of an item's queries, over all chunks, are.
    fn states_at(&self, item: &Item) -> usize {
        let (parts, size) = self.shape.parts();
        let head = item.kv_head * parts + item.heads.start / size;
        item.span.states + head * item.span.states_len(&self.shape)
    }
}

impl Span {
    fn cost(&self) -> usize {
        self.tokens.len() * self.chunks.len()
    }

    /// Floats of the states of one part of a KV head's group.
    fn states_len(&self, shape: &Shape) -> usize {
        self.chunks.len() * self.tokens.len() * shape.parts().1 * state_len(shape.value_dim)
    }

    fn piece(&self, piece: usize) -> Range<usize> {
        let at = |piece: usize| self.chunks.start + self.chunks.len() * piece / self.pieces;
        at(piece)..at(piece + 1)
    }
}

/// The first position that a query sees.
fn window_start(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Runs of up to `most` tokens of one entry, a power of two, within the same multiple of it.
fn find_spans(spans: &mut Vec<Span>, tokens: &[Token], most: usize, window: Option<usize>) {
    spans.clear();
    for (i, token) in tokens.iter().enumerate() {
        let end = token.position / CHUNK + 1;
        match spans.last_mut() {
            Some(span) if tokens[span.tokens.start].entry == token.entry && token.position % most != 0 => {
                span.tokens.end = i + 1;
                span.chunks.end = end;
            }
            _ => {
                let chunks = window_start(token.position, window) / CHUNK..end;
                spans.push(Span { tokens: i..i + 1, chunks, pieces: 1, items: 0, merges: 0, states: 0 });
            }
        }
    }
}

/// Consecutive tokens of one block of positions each.
fn blocks(tokens: &[Token], run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut next = run.start;
    std::iter::from_fn(move || {
        let start = next;
        let block = tokens[run.clone()].get(start - run.start)?.position / BLOCK;
        let same = tokens[start..run.end].iter().take_while(|token| token.position / BLOCK == block);
        next = start + same.count();
        Some(start..next)
    })
}

/// The blocks of keys that one layer's queries keep, by entry and KV head.
#[derive(Default)]
pub struct Chosen {
    /// The tokens of each entry that does not keep all keys.
    entries: Vec<Range<usize>>,
    /// For each of them and KV head: the choice for each block of its queries; none: all keys.
    choices: Vec<Mutex<Vec<BlockChoice>>>,
}

type BlockChoice = (usize, Option<Arc<Choice>>);

impl Chosen {
    /// Makes room for a step's choices, in the memory of the last step.
    pub fn begin(&mut self, work: &Work, layout: &KvLayout) {
        let Self { entries, choices } = self;
        entries.clear();
        for (i, token) in work.tokens.iter().enumerate() {
            if work.entries[token.entry].sources.prefill.is_empty() {
                continue;
            }
            match entries.last_mut() {
                Some(run) if work.tokens[run.start].entry == token.entry => run.end = i + 1,
                _ => entries.push(i..i + 1),
            }
        }
        choices.resize_with(entries.len() * layout.most_heads(), Mutex::default);
    }

    pub fn items(&self, layer: LayerLayout) -> usize {
        self.entries.len() * layer.kv_heads
    }

    /// A span's queries are all of one block of positions.
    fn choice(&self, work: &Work, item: &Item) -> Option<Arc<Choice>> {
        let token = item.span.tokens.start;
        let entry = self.entries.iter().position(|run| run.contains(&token))?;
        let choices = lock(&self.choices[entry * item.kv_heads + item.kv_head]);
        let block = work.tokens[token].position / BLOCK;
        choices.iter().find(|(of, _)| *of == block)?.1.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread works in.
pub struct Scratch {
    attend: AttendScratch,
    queries: Vec<Query>,
    /// Kept as room alone: new memory for every token would cost more than what is done in it.
    small: SmallKeys,
}

impl Scratch {
    /// With room for all layers' items, so that a thread may take its first at any time.
    pub fn new(layers: &[KvLayer]) -> Self {
        let most = |size: fn(&KvLayer) -> usize| layers.iter().map(size).max().unwrap_or(0);
        let attend = AttendScratch::with_room(most(|layer| layer.head_dim), most(KvLayer::values));
        Self { attend, queries: Vec::with_capacity(MAX_QUERIES), small: SmallKeys::default() }
    }
}

/// One attention op in one step.
pub struct Attending<'a> {
    pub of: &'a Attention,
    pub division: &'a Division,
    pub chosen: &'a Chosen,
    pub work: &'a Work<'a>,
    pub layout: &'a KvLayout,
    pub sinks: Option<&'a [f32]>,
    pub table: &'static KernelTable,
    pub q: Shared<'a, f32>,
    pub out: Shared<'a, f32>,
    pub states: Shared<'a, f32>,
}

impl Attending<'_> {
    pub fn item(&self, index: usize, scratch: &mut Scratch) {
        let item = self.division.item(index);
        let Scratch { attend, queries, .. } = scratch;
        self.find_queries(&item, queries);
        let choice = self.chosen.choice(self.work, &item);
        let job = AttendJob { kept: choice.as_deref().map(Choice::kept), ..self.job(&item, queries) };
        if item.span.pieces == 1 {
            return (self.table.attend)(&job, attend);
        }
        let chunks = item.span.piece(item.piece);
        let before = (chunks.start - item.span.chunks.start) * queries.len() * job.state_len();
        let states = self.states.from(self.division.states_at(&item) + before);
        (self.table.attend_part)(&job, chunks, states, attend);
    }

    pub fn merge(&self, index: usize, scratch: &mut Scratch) {
        let item = self.division.merge(index);
        let Scratch { attend, queries, .. } = scratch;
        self.find_queries(&item, queries);
        let job = self.job(&item, queries);
        let at = self.division.states_at(&item);
        let len = item.span.chunks.len() * queries.len() * job.state_len();
        // SAFETY: written in the phase before, and by none that runs now.
        (self.table.merge_parts)(&job, unsafe { self.states.read(at..at + len) }, attend);
    }

    /// Chooses the keys of all of an entry's tokens for one KV head.
    pub fn choose(&self, index: usize, scratch: &mut Scratch) {
        let (layer, kv_heads) = (self.layer(), self.layer().kv_heads);
        let (run, kv_head) = (&self.chosen.entries[index / kv_heads], index % kv_heads);
        let entry = self.work.tokens[run.start].entry;
        let of = &self.work.entries[entry];
        let sources = of.sources;
        let mut choices = Vec::new();
        let mut state = lock(&of.heads[layer.heads_before + kv_head]);
        let keys = Keys {
            cache: self.layout.cache,
            pages: self.work.pages_of(entry),
            at: layer.keys_at(kv_head),
            head_dim: layer.head_dim,
        };
        scratch.small.clear();
        for tokens in blocks(self.work.tokens, run.clone()) {
            let last = self.work.tokens[tokens.end - 1];
            let block = last.position / BLOCK;
            // Of all queries of a block the first sees the most; it may have been in an earlier step.
            let query = if tokens.len() == 1 { last.position } else { block * BLOCK };
            let first_seen = window_start(query, self.of.window) / BLOCK;
            let choice = match sources.of(self.of.layer, tokens.len()) {
                Some(BlockSource::Chosen(method)) => {
                    state.update(self.table, keys, method, block);
                    let asked = Asked {
                        keys,
                        queries: self.asked(&tokens, kv_head),
                        scale: self.of.scale,
                        softcap: self.of.softcap,
                        first: first_seen,
                        own: block,
                        position: last.position,
                    };
                    state.choose(self.table, method, &asked, &mut scratch.small)
                }
                Some(source) => source.choose(Place { layer: self.of.layer, kv_head, block }),
                None => None,
            };
            state.count(choice.as_ref(), first_seen, block, tokens.len());
            choices.push((block, choice.map(Arc::new)));
        }
        *lock(&self.chosen.choices[index]) = choices;
    }

    /// The queries of a block's tokens that share a KV head.
    fn asked(&self, tokens: &Range<usize>, kv_head: usize) -> Queries {
        let (layer, group) = (self.layer(), self.division.shape.group);
        // SAFETY: written in an earlier phase, and by none that runs now.
        let q = unsafe { self.q.read(0..self.q.len()) };
        let rows = (kv_head * group..(kv_head + 1) * group).flat_map(|head| {
            tokens
                .clone()
                .map(move |token| &q[(token * self.of.heads + head) * layer.head_dim..][..layer.head_dim])
        });
        Queries::new(self.table, group, tokens.len(), layer.head_dim, rows)
    }

    fn layer(&self) -> LayerLayout {
        self.layout.layer(self.of.layer)
    }

    fn find_queries(&self, item: &Item, queries: &mut Vec<Query>) {
        let (layer, group) = (self.layer(), self.division.shape.group);
        let query = |token: usize, head: usize| {
            let row = token * self.of.heads + head;
            Query {
                q: row * layer.head_dim,
                out: row * layer.value_dim,
                position: self.work.tokens[token].position,
                sink: self.sinks.map(|sinks| sinks[head]),
            }
        };
        let heads = item.heads.start + item.kv_head * group..item.heads.end + item.kv_head * group;
        queries.clear();
        for token in item.span.tokens.clone() {
            queries.extend(heads.clone().map(|head| query(token, head)));
        }
    }

    fn job<'b>(&'b self, item: &Item, queries: &'b [Query]) -> AttendJob<'b> {
        let (of, layer) = (self.of, self.layer());
        AttendJob {
            queries,
            // SAFETY: written in an earlier phase, and by none that runs now.
            q: unsafe { self.q.read(0..self.q.len()) },
            out: self.out,
            head_dim: layer.head_dim,
            value_dim: layer.value_dim,
            cache: self.layout.cache,
            pages: self.work.pages_of(self.work.tokens[item.span.tokens.start].entry),
            keys_at: layer.keys_at(item.kv_head),
            values_at: layer.values_at(item.kv_head),
            scale: of.scale,
            softcap: of.softcap,
            window: of.window,
            kept: None,
        }
    }
}
