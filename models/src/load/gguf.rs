//! A GGUF file: its header, read with every length checked against the file, and the place of each tensor.
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Knows no architecture.

use super::{Stored, cursor::Cursor, encoding::Encoding, map::Mapped, metadata::Metadata};
use crate::{ModelError, families::GGUF_ROPE_FACTORS};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// The first four bytes of every GGUF file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Tensors have at most so many dimensions.
const DIMENSIONS_MAX: u32 = 4;

/// No head is wider: a bound on what is read before shapes are checked.
const HEAD_DIM_MAX: usize = 1 << 16;

/// A mapped GGUF file, of whatever content: metadata, and tensors by name.
#[derive(Debug)]
pub struct Gguf {
    pub(super) file: Arc<Mapped>,
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Gguf {
    /// Maps the file and checks its header.
    ///
    /// # Errors
    /// Names what is malformed: everything that the other functions rely on is checked here.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = Arc::new(Mapped::open(path)?);
        let (metadata, tensors) = read(&file).map_err(|what| file.error(what))?;
        Ok(Self { file, metadata, tensors })
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names and shapes, the slowest dimension first, in alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), &*stored.shape))
    }

    /// A tensor's values as f32, row by row; none if there is no such tensor.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let stored = self.tensors.get(name)?;
        Some(stored.encoding.decode(&self.file.bytes()[stored.range.clone()]))
    }

    /// The values of [`GGUF_ROPE_FACTORS`], if the file has them.
    pub(super) fn rope_factors(&self) -> Result<Option<Vec<f64>>, ModelError> {
        match self.tensors.get(GGUF_ROPE_FACTORS).map(|stored| &*stored.shape) {
            Some(shape) if !matches!(shape, [count] if *count <= HEAD_DIM_MAX) => {
                let what = format!("tensor {GGUF_ROPE_FACTORS} has shape {shape:?}; one factor a pair is expected");
                Err(self.file.error(what))
            }
            _ => Ok(self.values(GGUF_ROPE_FACTORS).map(|values| values.into_iter().map(f64::from).collect())),
        }
    }
}

fn read(file: &Arc<Mapped>) -> Result<(Metadata, BTreeMap<String, Stored>), String> {
    let mut cursor = Cursor::new(file.bytes(), 0);
    let magic = cursor.bytes(4)?;
    if magic != MAGIC {
        return Err(format!("starts with {magic:02x?}; a GGUF file starts with {MAGIC:02x?}"));
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("is big-endian; little-endian is expected".into());
        }
        version => return Err(format!("GGUF version {version} is not supported; 2 or 3 is expected")),
    }
    let tensors = cursor.length("the number of tensors")?;
    let pairs = cursor.length("the number of metadata keys")?;
    let metadata = Metadata::read(file, &mut cursor, pairs)?;
    refuse_parts(&metadata)?;
    let alignment = alignment(&metadata)?;
    let headers = read_headers(&mut cursor, tensors)?;
    let data = cursor.at().next_multiple_of(alignment);
    let tensors = place(headers, &Place { data, alignment, file_bytes: file.bytes().len() })?;
    Ok((metadata, tensors))
}

/// A tensor as the header describes it.
struct Header {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
}

fn read_headers(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Header>, String> {
    let mut headers = Vec::new();
    for index in 0..count {
        let name = cursor.text().map_err(|e| format!("name of tensor {index} of {count}: {e}"))?.to_owned();
        headers.push(read_header(cursor, name.clone()).map_err(|e| format!("tensor {name}: {e}"))?);
    }
    Ok(headers)
}

fn read_header(cursor: &mut Cursor<'_>, name: String) -> Result<Header, String> {
    let dimensions = cursor.u32()?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(format!("has {dimensions} dimensions; 1 to {DIMENSIONS_MAX} are expected"));
    }
    // GGUF writes the fastest dimension first.
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = cursor.u64()?;
        shape.insert(0, usize::try_from(size).map_err(|_| format!("dimension {size} is too large"))?);
    }
    let encoding = Encoding::from_gguf(cursor.u32()?)?;
    Ok(Header { name, shape, encoding, offset: cursor.u64()? })
}

/// Where the data section is.
struct Place {
    data: usize,
    alignment: usize,
    file_bytes: usize,
}

fn place(headers: Vec<Header>, place: &Place) -> Result<BTreeMap<String, Stored>, String> {
    let mut tensors = BTreeMap::new();
    for header in headers {
        let name = header.name.clone();
        let stored = place_one(header, place).map_err(|e| format!("tensor {name}: {e}"))?;
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(format!("tensor {name} stands twice"));
        }
    }
    Ok(tensors)
}

fn place_one(header: Header, place: &Place) -> Result<Stored, String> {
    let Header { shape, encoding, offset, .. } = header;
    let bytes = encoding.bytes(&shape).ok_or_else(|| {
        format!("shape {shape:?} is not one of {encoding:?}: rows are whole blocks of {} values", encoding.block())
    })?;
    let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(place.alignment));
    let offset = offset.ok_or_else(|| format!("its offset is not a multiple of {}", place.alignment))?;
    let start = place.data.checked_add(offset);
    let end = start.and_then(|start| start.checked_add(bytes)).filter(|end| *end <= place.file_bytes);
    match (start, end) {
        (Some(start), Some(end)) => Ok(Stored { file: 0, range: start..end, shape, encoding }),
        _ => Err(format!(
            "{bytes} bytes at offset {offset} of the data end after the file's {} bytes: it is truncated",
            place.file_bytes
        )),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, String> {
    let alignment = metadata.unsigned("general.alignment").map_err(|e| e.to_string())?.unwrap_or(32);
    match alignment {
        8..=65536 if alignment.is_multiple_of(8) => Ok(alignment as usize),
        _ => Err(format!("general.alignment is {alignment}; a multiple of 8 up to 65536 is expected")),
    }
}

fn refuse_parts(metadata: &Metadata) -> Result<(), String> {
    match metadata.unsigned("split.count").map_err(|e| e.to_string())? {
        Some(parts @ 2..) => Err(format!("is one of {parts} parts (split.count); join them with gguf-split --merge")),
        _ => Ok(()),
    }
}
