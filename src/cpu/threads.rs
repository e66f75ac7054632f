//! Work split over threads (natively; on wasm32 everything runs on the caller's thread).

use crate::backend::BackendError;
use std::ops::Range;

/// Tasks a thread gets on average: more balance an uneven machine, fewer cost less to hand out.
#[cfg(not(target_arch = "wasm32"))]
const TASKS_PER_THREAD: usize = 4;

/// A pool of threads.
pub(super) struct Threads {
    #[cfg(not(target_arch = "wasm32"))]
    pool: rayon::ThreadPool,
}

#[cfg(not(target_arch = "wasm32"))]
impl Threads {
    /// `count` threads; by default one a processor.
    pub fn new(count: Option<usize>) -> Result<Self, BackendError> {
        let count =
            count.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count.max(1))
            .thread_name(|i| format!("bitnet-cpu-{i}"))
            .build()
            .map_err(|e| BackendError::Unavailable { reason: e.to_string() })?;
        Ok(Threads { pool })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `f` on the pool, so that every [`Threads::split`] inside starts there.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Calls `f` with ranges that cover `0..n` once, each (but the last) a multiple of `align` and
    /// none much smaller than `least`.
    pub fn split(&self, n: usize, align: usize, least: usize, f: impl Fn(Range<usize>) + Sync) {
        use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
        let tasks = (self.count() * TASKS_PER_THREAD).min(n / least.max(1));
        if self.count() == 1 || tasks <= 1 {
            return f(0..n);
        }
        let len = n.div_ceil(tasks).next_multiple_of(align);
        (0..n.div_ceil(len)).into_par_iter().with_max_len(1).for_each(|i| {
            f(i * len..((i + 1) * len).min(n));
        });
    }

    /// Calls `f` with each item, at least `least` of them a task.
    pub fn each<T: Send>(
        &self,
        least: usize,
        items: impl Iterator<Item = T> + Send,
        f: impl Fn(T) + Sync + Send,
    ) {
        use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
        let items: Vec<T> = items.collect();
        items.into_par_iter().with_min_len(least).for_each(f);
    }
}

#[cfg(target_arch = "wasm32")]
impl Threads {
    pub fn new(_count: Option<usize>) -> Result<Self, BackendError> {
        Ok(Threads {})
    }

    pub fn count(&self) -> usize {
        1
    }

    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }

    pub fn split(&self, n: usize, _align: usize, _least: usize, f: impl Fn(Range<usize>)) {
        f(0..n);
    }

    pub fn each<T>(&self, _least: usize, items: impl Iterator<Item = T>, f: impl Fn(T)) {
        items.for_each(f);
    }
}
