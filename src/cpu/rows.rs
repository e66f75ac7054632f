//! Rows of a buffer, shared between threads that write different parts of them.

use crate::plan::Slice;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows to read: row `r` is `data[r·stride + at ..][..dim]`.
#[derive(Clone, Copy)]
pub(super) struct RowsRef<'a> {
    data: &'a [f32],
    stride: usize,
    at: usize,
    pub dim: usize,
    pub rows: usize,
}

impl<'a> RowsRef<'a> {
    /// `slice` of the first `rows` rows of a buffer of rows of `stride` values.
    pub fn new(data: &'a [f32], stride: usize, slice: Slice, rows: usize) -> Self {
        let (at, dim) = (slice.at as usize, slice.dim as usize);
        debug_assert!(at + dim <= stride && rows * stride <= data.len());
        RowsRef { data, stride, at, dim, rows }
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> &'a [f32] {
        &self.data[r * self.stride + self.at..][..self.dim]
    }
}

/// Rows to write.
pub(super) struct RowsMut<'a> {
    start: *mut f32,
    stride: usize,
    at: usize,
    pub dim: usize,
    pub rows: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `part`, whose callers promise that parts in use do not overlap.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// `slice` of the first `rows` rows of a buffer of rows of `stride` values.
    pub fn new(data: &'a mut [f32], stride: usize, slice: Slice, rows: usize) -> Self {
        let (at, dim) = (slice.at as usize, slice.dim as usize);
        assert!(at + dim <= stride && rows * stride <= data.len());
        RowsMut { start: data.as_mut_ptr(), stride, at, dim, rows, borrowed: PhantomData }
    }

    /// Some of the columns of every row.
    pub fn columns(&self, range: Range<usize>) -> RowsMut<'_> {
        assert!(range.start <= range.end && range.end <= self.dim);
        RowsMut { at: self.at + range.start, dim: range.len(), ..*self }
    }

    /// Elements `range` of row `r`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, r: usize, range: Range<usize>) -> &mut [f32] {
        assert!(r < self.rows && range.start <= range.end && range.end <= self.dim);
        // SAFETY: inside the buffer by the assertions here and in `new`; not aliased by contract.
        unsafe {
            let start = self.start.add(r * self.stride + self.at + range.start);
            std::slice::from_raw_parts_mut(start, range.len())
        }
    }

    /// All of row `r`.
    ///
    /// # Safety
    /// As for [`RowsMut::part`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, r: usize) -> &mut [f32] {
        // SAFETY: by contract.
        unsafe { self.part(r, 0..self.dim) }
    }
}
