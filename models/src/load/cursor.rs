//! Reads little-endian fields from bytes, never past their end; knows no format.

/// A place in a slice.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            format!(
                "{count} bytes at byte {} end after the file's {} bytes: it is truncated",
                self.at,
                self.bytes.len()
            )
        })?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.bytes(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.bytes(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// A count of things that follow, each of at least a byte: so no more than there are bytes left.
    pub(super) fn length(&mut self, what: &str) -> Result<usize, String> {
        let length = self.u64()?;
        let left = self.bytes.len() - self.at;
        usize::try_from(length)
            .ok()
            .filter(|n| *n <= left)
            .ok_or_else(|| format!("{what} is {length}, but only {left} bytes follow"))
    }

    /// A string after its length.
    pub(super) fn text(&mut self) -> Result<&'a str, String> {
        let length = self.length("string length")?;
        let at = self.at;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| format!("the string at byte {at} is not UTF-8"))
    }
}
