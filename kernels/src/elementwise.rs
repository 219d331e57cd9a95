//! How work on independent rows is shared among threads; knows no operation.

use rayon::prelude::*;

/// Values of a task: some 20 µs of arithmetic, against 5 to wake a thread.
const TASK_VALUES: usize = 1 << 15;

/// Rows of `width` that make a task.
pub(crate) fn task_rows(width: usize) -> usize {
    (TASK_VALUES / width.max(1)).max(1)
}

/// `task(first row, piece)` over pieces of whole rows of `out`.
pub(crate) fn rows(out: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) {
    assert!(width > 0 && out.len().is_multiple_of(width), "rows of {width}");
    let rows = task_rows(width);
    if out.len() <= rows * width {
        task(0, out);
    } else {
        out.par_chunks_mut(rows * width).enumerate().for_each(|(i, piece)| task(i * rows, piece));
    }
}

/// The same over two outputs of one width.
pub(crate) fn rows_of_two(
    (a, b): (&mut [f32], &mut [f32]),
    width: usize,
    task: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    assert!(width > 0 && a.len().is_multiple_of(width) && a.len() == b.len(), "rows of {width}");
    let rows = task_rows(width);
    if a.len() <= rows * width {
        task(0, a, b);
    } else {
        let pieces = a.par_chunks_mut(rows * width).zip(b.par_chunks_mut(rows * width));
        pieces.enumerate().for_each(|(i, (a, b))| task(i * rows, a, b));
    }
}
