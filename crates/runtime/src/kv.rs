//! The paged key/value cache: a page holds 64 positions of every layer, in F16 or Q8_0.

use crate::error::{Error, Result};
use crate::plan::KvLayer;
use kernels::kernels::attention::{BLOCK, CacheType};
use kernels::view::{Aligned, Shared};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where each layer's keys and values start in a page, in words of 16 bits.
pub struct KvLayout {
    pub cache: CacheType,
    layers: Vec<LayerLayout>,
    page_len: usize,
}

#[derive(Clone, Copy)]
pub struct LayerLayout {
    cache: CacheType,
    start: usize,
    pub kv_heads: usize,
    /// KV heads of the layers before it.
    pub heads_before: usize,
    pub head_dim: usize,
    pub value_dim: usize,
}

impl LayerLayout {
    pub fn keys_at(&self, head: usize) -> usize {
        let (keys, values) = (self.cache.key_words(self.head_dim), self.cache.value_words(self.value_dim));
        self.start + head * (keys + values)
    }

    pub fn values_at(&self, head: usize) -> usize {
        self.keys_at(head) + self.cache.key_words(self.head_dim)
    }
}

impl KvLayout {
    /// None where a page would be larger than memory can be.
    pub fn new(cache: CacheType, kv_layers: &[KvLayer]) -> Option<Self> {
        let mut start = 0usize;
        let mut layers = Vec::with_capacity(kv_layers.len());
        let mut heads_before = 0usize;
        for layer in kv_layers {
            let (kv_heads, head_dim, value_dim) = (layer.kv_heads, layer.head_dim, layer.values());
            layers.push(LayerLayout { cache, start, kv_heads, heads_before, head_dim, value_dim });
            heads_before = heads_before.checked_add(kv_heads)?;
            let head = cache.key_words(head_dim) + cache.value_words(value_dim);
            start = start.checked_add(head.checked_mul(kv_heads)?)?;
        }
        start.checked_mul(size_of::<u16>())?;
        Some(Self { cache, layers, page_len: start })
    }

    /// KV heads of all layers.
    pub fn heads(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.heads_before + layer.kv_heads)
    }

    /// KV heads of the layer that has most.
    pub fn most_heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.kv_heads).max().unwrap_or(0)
    }

    pub fn layer(&self, layer: usize) -> LayerLayout {
        self.layers[layer]
    }
}

/// One sequence's cache and length.
pub struct KvCache {
    pages: Vec<Aligned<u16>>,
    len: usize,
    /// Bytes of the pages, as far as `total` has them.
    counted: usize,
    /// Bytes of all caches of the model.
    total: Arc<AtomicUsize>,
}

impl KvCache {
    pub fn new(total: Arc<AtomicUsize>) -> Self {
        Self { pages: Vec::new(), len: 0, counted: 0, total }
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.len
    }

    /// Makes room for `tokens` more without counting them yet.
    pub fn reserve(&mut self, layout: &KvLayout, tokens: usize) -> Result<()> {
        let missing = (self.len + tokens).div_ceil(BLOCK).saturating_sub(self.pages.len());
        // Where large blocks lie in huge pages, those of a prompt's chunk share one: a page alone may be too small.
        let at_once = if cfg!(target_os = "linux") { missing } else { 1 };
        for first in (0..missing).step_by(at_once.max(1)) {
            let lens = vec![layout.page_len; at_once.min(missing - first)];
            let bytes = layout.page_len.checked_mul(size_of::<u16>() * lens.len());
            let pages = Aligned::streamed_parts(&lens)
                .ok_or_else(|| Error::memory("pages of the key/value cache", bytes))?;
            let bytes = pages.iter().map(Aligned::bytes).sum();
            self.total.fetch_add(bytes, Ordering::Relaxed);
            self.counted += bytes;
            self.pages.extend(pages);
        }
        Ok(())
    }

    /// Counts tokens that a step has stored.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Leaves the first tokens; what the others have stored is stored over.
    pub fn truncate(&mut self, tokens: usize) {
        self.len = self.len.min(tokens);
    }

    pub fn shared(&mut self) -> impl ExactSizeIterator<Item = Shared<'_, u16>> {
        self.pages.iter_mut().map(Aligned::shared)
    }

    /// No longer counts the cache's memory, which is about to be freed.
    pub fn discount(&mut self) {
        self.total.fetch_sub(std::mem::take(&mut self.counted), Ordering::Relaxed);
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.discount();
    }
}
