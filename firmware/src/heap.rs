//! The allocator, and how much of it was used at most.

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

use embedded_alloc::LlffHeap;

/// Bytes of the heap. The 8,192 slots of the agent's own buffer take half of it.
const HEAP_BYTES: usize = 64 << 10;

#[global_allocator]
static HEAP: Counted = Counted { heap: LlffHeap::empty(), peak: AtomicUsize::new(0) };

/// A heap that remembers how much of it was used at most.
struct Counted {
    heap: LlffHeap,
    peak: AtomicUsize,
}

// SAFETY: `LlffHeap` allocates; this only looks at how much is used.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        let allocated = unsafe { self.heap.alloc(layout) };
        self.peak.fetch_max(self.heap.used(), Ordering::Relaxed);
        allocated
    }

    unsafe fn dealloc(&self, allocated: *mut u8, layout: Layout) {
        // SAFETY: likewise; what `alloc` gave came from this heap.
        unsafe { self.heap.dealloc(allocated, layout) }
    }
}

/// Gives the allocator its memory. To be called once, before anything is allocated.
pub(crate) fn init() {
    static mut MEMORY: [MaybeUninit<u8>; HEAP_BYTES] = [MaybeUninit::uninit(); HEAP_BYTES];
    // SAFETY: nothing else names MEMORY, and `main` calls this once, before it allocates.
    unsafe { HEAP.heap.init(&raw mut MEMORY as usize, HEAP_BYTES) }
}

/// Bytes that are allocated.
pub(crate) fn used() -> usize {
    HEAP.heap.used()
}

/// Bytes that were allocated at most since the last call. The next peak counts from what is allocated now.
pub(crate) fn take_peak() -> usize {
    HEAP.peak.swap(used(), Ordering::Relaxed)
}
