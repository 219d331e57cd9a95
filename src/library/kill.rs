//! Where a kill may strike: in tests a thread can be made to fail at each of these points in turn, as if its process had ended there. In
//! the program there are none.

/// A point before or after something that a kill would leave behind.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn point() -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use tests::point;

#[cfg(test)]
mod tests;
