//! Work that is shared among threads, since the kernel has each wait.

use std::{
    io,
    thread::{self, ScopedJoinHandle},
};

/// Most threads that create rings. Putting one into the array waits some ten milliseconds for the kernel, but several
/// threads wait for the same thing.
pub(super) const MAX_THREADS: usize = 16;

/// Does `work` for each, shared among threads. One result stands for all those of a thread that could not be had.
pub(super) fn on_threads<I: Send, T: Send, E: Send>(
    items: Vec<I>,
    no_thread: impl Fn(io::Error) -> E,
    work: impl Fn(I) -> Result<T, E> + Sync,
) -> Vec<Result<T, E>> {
    let work = &work;
    let each = items.len().div_ceil(MAX_THREADS).max(1);
    let mut items = items.into_iter();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        loop {
            let part: Vec<I> = items.by_ref().take(each).collect();
            if part.is_empty() {
                break;
            }
            let work = move || part.into_iter().map(work).collect::<Vec<_>>();
            threads.push(thread::Builder::new().spawn_scoped(scope, work));
        }
        let done = threads.into_iter().flat_map(|thread| match thread {
            Ok(thread) => joined(thread),
            Err(error) => vec![Err(no_thread(error))],
        });
        done.collect()
    })
}

/// What a thread gives.
pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
