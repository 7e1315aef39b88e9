//! The allocator of plugins.
//!
//! A plugin allocates and frees many small blocks for each record, such as the texts of a JSON
//! value. The allocator of Rust's library searches, splits and joins blocks, in functions that are
//! not inlined, and each call of a function checks the time limit. Here a block that is freed goes
//! into the list of its size, and the next block of this size comes from there: a few instructions
//! at the place of the call.
//!
//! The memory of a small block is only used again for blocks of its size. Large blocks come from
//! the allocator of Rust's library, and go back to it.

#![cfg_attr(test, allow(unreachable_pub, reason = "`export!` uses it in plugins"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;

/// Sizes and alignments of small blocks are multiples of this: 1 << 4.
const UNIT_BITS: usize = 4;
const UNIT: usize = 1 << UNIT_BITS;
/// Size of the largest small block.
const LARGEST: usize = 1024;
/// Small blocks are cut from chunks of this size. A multiple of the unit.
const CHUNK: usize = 16 << 10;

/// Lists of free blocks by size. Only for programs with one thread.
#[derive(Debug)]
pub struct Allocator(UnsafeCell<Blocks>);

#[derive(Debug)]
struct Blocks {
    /// The first free block of each size in units, or null.
    free: [*mut Free; (LARGEST >> UNIT_BITS) + 1],
    /// The part of the newest chunk that was not used yet.
    rest: *mut u8,
    rest_bytes: usize,
}

/// The start of a free block.
#[derive(Debug)]
struct Free {
    next: *mut Free,
}

// SAFETY: the program has one thread, and no method calls code that allocates.
unsafe impl Sync for Allocator {}

impl Allocator {
    /// Creates an allocator without blocks.
    #[allow(clippy::new_without_default, reason = "a static needs a constant function")]
    pub const fn new() -> Self {
        let free = [ptr::null_mut(); (LARGEST >> UNIT_BITS) + 1];
        Self(UnsafeCell::new(Blocks { free, rest: ptr::null_mut(), rest_bytes: 0 }))
    }
}

impl Blocks {
    /// A block of this many units, 1 to 64, that was never used; null if there is no memory.
    #[cold]
    #[inline(never)]
    fn cut(&mut self, units: usize) -> *mut u8 {
        let size = units << UNIT_BITS;
        if self.rest_bytes < size {
            // SAFETY: the size is not 0, and the alignment is a power of two.
            let chunk = unsafe { System.alloc(Layout::from_size_align_unchecked(CHUNK, UNIT)) };
            if chunk.is_null() {
                // There may be room for this block.
                // SAFETY: as above.
                return unsafe { System.alloc(Layout::from_size_align_unchecked(size, UNIT)) };
            }
            if self.rest_bytes > 0 {
                // SAFETY: the rest is unused, has at least one unit, and is smaller than a block of
                // `units`.
                unsafe { self.push(self.rest, self.rest_bytes) };
            }
            (self.rest, self.rest_bytes) = (chunk, CHUNK);
        }
        let block = self.rest;
        // SAFETY: the rest has at least `size` bytes.
        self.rest = unsafe { block.add(size) };
        self.rest_bytes -= size;
        block
    }

    /// # Safety
    /// The block is small, has at least the units of this size, and is not used any more.
    #[inline]
    unsafe fn push(&mut self, block: *mut u8, size: usize) {
        let block = block.cast::<Free>();
        let first = &mut self.free[units(size)];
        // SAFETY: the caller guarantees that the block is unused and has a unit, which is aligned.
        unsafe { block.write(Free { next: *first }) };
        *first = block;
    }
}

#[inline]
fn is_small(size: usize, align: usize) -> bool {
    size <= LARGEST && align <= UNIT
}

#[inline]
fn units(size: usize) -> usize {
    (size + (UNIT - 1)) >> UNIT_BITS
}

/// Not inlined, so that calls for small blocks are.
///
/// # Safety
/// As for [`System`].
#[inline(never)]
unsafe fn alloc_large(layout: Layout) -> *mut u8 {
    // SAFETY: the caller guarantees it.
    unsafe { System.alloc(layout) }
}

/// # Safety
/// As for [`System`].
#[inline(never)]
unsafe fn dealloc_large(block: *mut u8, layout: Layout) {
    // SAFETY: the caller guarantees it.
    unsafe { System.dealloc(block, layout) }
}

// SAFETY: a block has its layout's size and alignment, and belongs to the caller until it is freed.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_small(layout.size(), layout.align()) {
            // SAFETY: the caller guarantees a size other than 0.
            return unsafe { alloc_large(layout) };
        }
        // SAFETY: there is no other reference: one thread, and no call of the caller's code.
        let blocks = unsafe { &mut *self.0.get() };
        let units = units(layout.size());
        let block = blocks.free[units];
        if block.is_null() {
            return blocks.cut(units);
        }
        // SAFETY: the blocks of a list are free.
        blocks.free[units] = unsafe { (*block).next };
        block.cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_small(layout.size(), layout.align()) {
            // SAFETY: it came from there.
            return unsafe { dealloc_large(block, layout) };
        }
        // SAFETY: see `alloc`; the caller gives the block up.
        unsafe { (*self.0.get()).push(block, layout.size()) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_small(layout.size(), layout.align()) {
            // SAFETY: the caller guarantees a size other than 0.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as for `alloc`.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has this size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let was_small = is_small(layout.size(), layout.align());
        let becomes_small = is_small(size, layout.align());
        if was_small && becomes_small && units(layout.size()) == units(size) {
            return block;
        }
        if !was_small && !becomes_small {
            // SAFETY: it came from there.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller guarantees a valid size, and that the block has the size of `layout`.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    struct Block {
        at: *mut u8,
        layout: Layout,
        fill: u8,
    }

    impl Block {
        fn check(&self) {
            let bytes = unsafe { std::slice::from_raw_parts(self.at, self.layout.size()) };
            assert!(bytes.iter().all(|byte| *byte == self.fill), "a block was changed");
            assert_eq!(self.at.addr() % self.layout.align(), 0);
        }

        fn write(&mut self, fill: u8) {
            self.fill = fill;
            unsafe { self.at.write_bytes(fill, self.layout.size()) };
        }
    }

    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![8 => 1..200usize, 4 => 200..1_100usize, 1 => 1_000..40_000usize]
    }

    proptest! {
        /// Blocks keep their content until they are freed, whatever happens to others.
        #[test]
        fn blocks_do_not_overlap(
            steps in proptest::collection::vec((0..4u8, any::<prop::sample::Index>(), size(), 0..6u32), 1..400),
        ) {
            let allocator = Allocator::new();
            let mut blocks: Vec<Block> = Vec::new();
            for (turn, (kind, which, size, align)) in steps.into_iter().enumerate() {
                let fill = turn as u8 | 1;
                match kind {
                    0 | 1 => {
                        let layout = Layout::from_size_align(size, 1 << align).unwrap();
                        let zeroed = kind == 1;
                        let at = unsafe { if zeroed { allocator.alloc_zeroed(layout) } else { allocator.alloc(layout) } };
                        let mut block = Block { at, layout, fill: 0 };
                        if zeroed {
                            block.check();
                        }
                        block.write(fill);
                        blocks.push(block);
                    }
                    _ if blocks.is_empty() => {}
                    2 => {
                        let block = blocks.swap_remove(which.index(blocks.len()));
                        block.check();
                        unsafe { allocator.dealloc(block.at, block.layout) };
                    }
                    _ => {
                        let count = blocks.len();
                        let block = &mut blocks[which.index(count)];
                        block.check();
                        let kept = block.layout.size().min(size);
                        block.at = unsafe { allocator.realloc(block.at, block.layout, size) };
                        let align = block.layout.align();
                        block.layout = Layout::from_size_align(kept, align).unwrap();
                        block.check();
                        block.layout = Layout::from_size_align(size, align).unwrap();
                        block.write(fill);
                    }
                }
            }
            for block in blocks {
                block.check();
                unsafe { allocator.dealloc(block.at, block.layout) };
            }
        }
    }

    #[test]
    fn freed_blocks_are_used_again() {
        let allocator = Allocator::new();
        let layouts = [1, 16, 17, 300, 1_024].map(|size| Layout::from_size_align(size, 8).unwrap());
        let round = || {
            let blocks: Vec<_> = (0..1_000).map(|turn| layouts[turn % layouts.len()]).collect();
            let blocks: Vec<_> =
                blocks.into_iter().map(|layout| (unsafe { allocator.alloc(layout) }, layout)).collect();
            for (block, layout) in &blocks {
                unsafe { allocator.dealloc(*block, *layout) };
            }
            blocks.into_iter().map(|(block, _)| block).collect::<HashSet<_>>()
        };
        let first = round();
        assert_eq!(first.len(), 1_000);
        for _ in 0..10 {
            assert_eq!(round(), first);
        }
    }
}
