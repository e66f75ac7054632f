//! Work split over threads (natively; on wasm32 everything runs on the caller's thread).
//!
//! A decoded token is some hundred products of tens to hundreds of microseconds, with a few of serial
//! work between them. A pool that puts its threads to sleep in those gaps loses more by waking them
//! (a third of the time of the shorter products with two threads) than some of the products take, so
//! that the threads of a step stay awake, and look for work, from its beginning to its end.

use crate::backend::BackendError;
use std::ops::Range;

/// Tasks a thread gets on average: more balance an uneven machine, fewer cost less to hand out.
#[cfg(not(target_arch = "wasm32"))]
const TASKS_PER_THREAD: usize = 4;

/// A pool of threads.
pub(super) struct Threads {
    #[cfg(not(target_arch = "wasm32"))]
    pool: rayon::ThreadPool,
    #[cfg(not(target_arch = "wasm32"))]
    team: team::Team,
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
        Ok(Threads { pool, team: team::Team::default() })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `f` on the pool, all of whose threads help with every [`Threads::split`] inside. (Outside,
    /// the caller does all the work.)
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.scope(|scope| {
            let _step = self.team.begin();
            for _ in 1..self.count() {
                scope.spawn(|_| self.team.help());
            }
            f()
        })
    }

    /// Calls `f` with ranges that cover `0..n` once, each (but the last) a multiple of `align` and
    /// none much smaller than `least`.
    pub fn split(&self, n: usize, align: usize, least: usize, f: impl Fn(Range<usize>) + Sync) {
        let tasks = (self.count() * TASKS_PER_THREAD).min(n / least.max(1));
        if self.count() == 1 || tasks <= 1 {
            return f(0..n);
        }
        let len = n.div_ceil(tasks).next_multiple_of(align);
        self.team.share(n.div_ceil(len), &|i| f(i * len..((i + 1) * len).min(n)));
    }

    /// Calls `f` with each item, at least `least` of them a task.
    pub fn each<T: Send>(
        &self,
        least: usize,
        items: impl Iterator<Item = T>,
        f: impl Fn(T) + Sync,
    ) {
        use std::sync::{Mutex, PoisonError};
        let items: Vec<_> = items.map(|item| Mutex::new(Some(item))).collect();
        self.split(items.len(), 1, least, |range| {
            for item in &items[range] {
                let item = item.lock().unwrap_or_else(PoisonError::into_inner).take();
                item.into_iter().for_each(&f);
            }
        });
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod team {
    //! Threads that wait for work without sleeping.

    use std::cell::UnsafeCell;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

    /// Looks for work until a thread lets others run between two of them, in case there are more
    /// threads than processors.
    const SPINS: u32 = 2000;

    /// Work that is shared: called with each number below the count of tasks.
    type Job = *const (dyn Fn(usize) + Sync);

    /// What threads that work together share.
    #[derive(Default)]
    pub struct Team {
        /// Steps that run: helpers stay as long as there are any.
        steps: AtomicUsize,
        /// Whether somebody shares work.
        busy: AtomicBool,
        /// Whether `job` may be taken.
        open: AtomicBool,
        /// Helpers that may be looking at `job`.
        inside: AtomicUsize,
        /// The next task, and how many there are.
        next: AtomicUsize,
        tasks: AtomicUsize,
        /// Written by who set `busy`, while `open` is not set and `inside` is 0.
        job: UnsafeCell<Option<Job>>,
    }

    // SAFETY: `job` is written and read by the protocol above, and what it points to is `Sync`.
    unsafe impl Sync for Team {}
    // SAFETY: `job` is `None` or unused while the team is not borrowed.
    unsafe impl Send for Team {}

    /// Runs a function when dropped, after a panic as well.
    struct Finally<F: Fn()>(F);

    impl<F: Fn()> Drop for Finally<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    /// Waits a moment, the `spins`th in a row.
    fn pause(spins: u32) {
        if spins.is_multiple_of(SPINS) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }

    impl Team {
        /// Keeps helpers until what it returns is dropped.
        pub fn begin(&self) -> impl Drop + '_ {
            self.steps.fetch_add(1, SeqCst);
            Finally(|| {
                self.steps.fetch_sub(1, SeqCst);
            })
        }

        /// Works on what is shared as long as there are steps.
        pub fn help(&self) {
            let mut spins = 0;
            while self.steps.load(Relaxed) > 0 {
                if self.open.load(Relaxed) && self.join_in() {
                    spins = 0;
                } else {
                    spins += 1;
                    pause(spins);
                }
            }
        }

        /// Takes tasks of an open job; whether there were any.
        fn join_in(&self) -> bool {
            self.inside.fetch_add(1, SeqCst);
            let _leave = Finally(|| {
                self.inside.fetch_sub(1, Release);
            });
            // The owner closes before it looks inside, and we are inside before we look whether it is
            // open: one sees the other, or both.
            if !self.open.load(SeqCst) {
                return false;
            }
            // SAFETY: written before it was opened, and not again before we have left.
            match unsafe { *self.job.get() } {
                // SAFETY: the owner waits for us before it lets go of the closure.
                Some(job) => self.work(unsafe { &*job }),
                None => false,
            }
        }

        fn work(&self, job: &(dyn Fn(usize) + Sync)) -> bool {
            let tasks = self.tasks.load(Relaxed);
            let mut any = false;
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= tasks {
                    return any;
                }
                job(i);
                any = true;
            }
        }

        /// Calls `job` with each number below `tasks`, with the helpers' help. They need not come:
        /// only who has begun a task is waited for.
        pub fn share(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
            if self.busy.swap(true, Acquire) {
                // Within a shared task, or of another thread's: alone.
                return (0..tasks).for_each(job);
            }
            // SAFETY: only the lifetime changes; it is not called after this function.
            let erased = unsafe {
                std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job)
            };
            // SAFETY: we are the owner, and nobody is inside and has seen it open.
            unsafe { *self.job.get() = Some(erased) };
            self.tasks.store(tasks, Relaxed);
            self.next.store(0, Relaxed);
            let _close = Finally(|| {
                self.open.store(false, SeqCst);
                let mut spins = 0;
                while self.inside.load(SeqCst) > 0 {
                    spins += 1;
                    pause(spins);
                }
                self.busy.store(false, Release);
            });
            self.open.store(true, SeqCst);
            self.work(job);
        }
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

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn ranges_cover_everything_once() {
        let threads = Threads::new(Some(3)).unwrap();
        threads.run(|| {
            for n in [0, 1, 5, 64, 1000, 1003] {
                for align in [1, 4, 16] {
                    let seen: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                    threads.split(n, align, 2, |range| {
                        assert!(range.start % align == 0);
                        seen[range].iter().for_each(|v| v.store(v.load(Relaxed) + 1, Relaxed));
                    });
                    assert!(seen.iter().all(|v| v.load(Relaxed) == 1), "{n} {align}");
                }
            }
        });
    }

    #[test]
    fn many_short_splits_see_their_own_work() {
        let threads = Threads::new(Some(4)).unwrap();
        for steps in 0..50 {
            threads.run(|| {
                for round in 0..200 {
                    // What the closures borrow is gone after each round.
                    let sums: Vec<_> = (0..8).map(|_| AtomicUsize::new(0)).collect();
                    threads.split(8, 1, 1, |range| {
                        range.for_each(|i| sums[i].store(round + i + steps, Relaxed));
                    });
                    let sums = sums.into_iter().map(AtomicUsize::into_inner);
                    assert!(sums.enumerate().all(|(i, v)| v == round + i + steps));
                }
            });
        }
    }

    #[test]
    fn all_threads_help_and_work_within_work_is_done() {
        let threads = Threads::new(Some(3)).unwrap();
        let ids = Mutex::new(HashSet::new());
        threads.run(|| {
            // Each of three tasks waits until all have been begun.
            let begun = AtomicUsize::new(0);
            threads.each(1, 0..3, |_: usize| {
                ids.lock().unwrap().insert(std::thread::current().id());
                begun.fetch_add(1, Relaxed);
                while begun.load(Relaxed) < 3 {
                    std::thread::yield_now();
                }
                let inner = AtomicUsize::new(0);
                threads.split(100, 1, 1, |range| {
                    inner.fetch_add(range.len(), Relaxed);
                });
                assert_eq!(inner.into_inner(), 100);
            });
        });
        assert_eq!(ids.into_inner().unwrap().len(), 3);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let threads = Threads::new(Some(2)).unwrap();
        let panics = || threads.run(|| threads.split(10, 1, 1, |r| assert!(!r.contains(&7))));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        // And leaves nothing behind.
        let sum = AtomicUsize::new(0);
        threads.run(|| {
            threads.split(10, 1, 1, |range| {
                sum.fetch_add(range.len(), Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 10);
    }
}
