//! Memory of packed weights: a vector each, or pieces of one mapping in large pages. Knows no panel.

use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// A large page of x86-64 and of most arm64.
const LARGE_PAGE: usize = 2 << 20;

/// Words for several weights that are read one after another. From small pages 18 kB pieces are read at a third of the memory's speed:
/// every fourth kilobyte costs a walk through the page tables, and the processor's own prefetching ends with the page.
pub(crate) struct Slab {
    map: MmapMut,
    /// Where the first large page starts.
    start: usize,
}

impl Slab {
    /// Zeros; none where the system has no such memory, or where large pages would be mostly empty.
    pub(crate) fn new(words: usize) -> Option<Self> {
        let bytes = words * size_of::<u32>();
        if bytes < LARGE_PAGE {
            return None;
        }
        let map = MmapMut::map_anon(bytes + LARGE_PAGE).ok()?;
        let start = map.as_ptr().align_offset(LARGE_PAGE);
        // Without large pages it is memory all the same.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Self { map, start })
    }

    /// All of them, and what the mapping holds beyond.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        let bytes = &mut self.map[self.start..];
        // SAFETY: the start is aligned, a word is any four bytes.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<u32>()) }
    }

    /// `len` words from `at`.
    pub(crate) fn piece(self: &Arc<Self>, at: usize, len: usize) -> Words<u32> {
        assert!(self.start + (at + len) * size_of::<u32>() <= self.map.len(), "a piece of the slab");
        let words = self.map[self.start..].as_ptr().cast::<u32>().wrapping_add(at);
        Words { words, len, _kept: Kept::Slab(self.clone()), _type: PhantomData }
    }
}

/// Words that never change.
pub(crate) struct Words<T> {
    words: *const T,
    len: usize,
    _kept: Kept,
    _type: PhantomData<T>,
}

/// What the words lie in.
enum Kept {
    Own(#[expect(dead_code, reason = "kept for the words inside")] Vec<u32>),
    Slab(#[expect(dead_code, reason = "kept for the words inside")] Arc<Slab>),
}

// SAFETY: the words belong to what is kept beside them, and nobody writes them.
unsafe impl<T: Send> Send for Words<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Words<T> {}

impl From<Vec<u32>> for Words<u32> {
    fn from(own: Vec<u32>) -> Self {
        Self { words: own.as_ptr(), len: own.len(), _kept: Kept::Own(own), _type: PhantomData }
    }
}

impl Words<u32> {
    /// The same words as f32.
    pub(super) fn into_floats(self) -> Words<f32> {
        Words { words: self.words.cast(), len: self.len, _kept: self._kept, _type: PhantomData }
    }
}

// `T` is u32 or f32: of the same size and alignment, and any bits are a value of both.
impl<T> Deref for Words<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `words` are `len` words of what is kept, which neither moves nor changes.
        unsafe { std::slice::from_raw_parts(self.words, self.len) }
    }
}
