//! GGUF files: the header, read with every length checked against the file before it is believed.
//!
//! A file is the magic `GGUF`, a version, the numbers of tensors and of metadata entries, the entries, a
//! description of each tensor, padding, and the tensors' bytes. All numbers are little-endian. Arrays of the
//! metadata stay in the mapped file until they are asked for, so that a header cannot make the reader
//! allocate more than a small multiple of its own size.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::gguf_split;
use super::read::check_fetched;
use crate::tensor::{MappedFile, try_with_capacity};
use crate::{Error, Result};

/// More entries or tensors than any model has; a header that claims more is damaged.
const MAX_ENTRIES: u64 = 1 << 17;
const MAX_NAME: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file whose header has been checked, or all files of a split model.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The first one has the metadata.
    files: Vec<MappedFile>,
    metadata: BTreeMap<String, Entry>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// Where a tensor of a GGUF file lies and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufTensor {
    /// Row-major dimensions, the slowest first (the file has them the other way round).
    pub(crate) shape: Vec<usize>,
    /// The storage type.
    pub(crate) kind: GgufType,
    /// Index of its file.
    pub(crate) file: usize,
    /// The first byte in the file.
    pub(crate) start: usize,
    /// Number of bytes; 0 if the type's size is unknown.
    pub(crate) bytes: usize,
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GgufType {
    /// A type whose blocks can be read.
    Known(GgmlDType),
    /// The number of a type that this library cannot read.
    Unknown(u32),
}

impl std::fmt::Display for GgufType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(dtype) => write!(f, "{dtype:?}"),
            Self::Unknown(number) => write!(f, "{} (type {number})", foreign_type_name(*number)),
        }
    }
}

/// A metadata entry.
#[derive(Debug, Clone, PartialEq)]
enum Entry {
    Integer(i128),
    Real(f64),
    Bool(bool),
    Text(String),
    Array { kind: u32, count: usize, range: Range<usize> },
}

impl Gguf {
    /// Maps the file and checks its header. Of a split model all files are opened, whichever of them is named.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = Self::open_one(path)?;
        match gguf.integer(gguf_split::COUNT)? {
            Some(count) if count > 1 => gguf_split::open(path, count),
            _ => Ok(gguf),
        }
    }

    /// Opens one file, also if it holds a part of a model only.
    pub(super) fn open_one(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        check_fetched(path, &file)?;
        let mut reader = Reader { path, bytes: &file, at: 0, place: "header".to_owned() };
        let (tensor_count, entry_count) = read_preamble(&mut reader)?;
        let metadata = read_metadata(&mut reader, entry_count)?;
        let alignment = alignment(&reader, &metadata)?;
        let tensors = read_tensors(&mut reader, tensor_count, alignment)?;
        Ok(Self { files: vec![file], metadata, tensors })
    }

    /// Adds the tensors of the next file of a split model.
    pub(super) fn append(&mut self, part: Self) -> Result<()> {
        let path = part.path().to_owned();
        let first = self.files.len();
        self.files.extend(part.files);
        for (name, mut tensor) in part.tensors {
            tensor.file += first;
            if self.tensors.contains_key(&name) {
                return Err(Error::file_at(
                    path,
                    name,
                    "is in an earlier file of the split model too; fetch it again",
                ));
            }
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    /// The file; of a split model the first one.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// The mapped files, by whose index tensors name theirs.
    pub(crate) fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// The tensors by the names that the file gives them.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Whether the metadata has this key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// All keys of the metadata.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A text; `None` if the key is absent, an error if it holds something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Entry::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_kind(key, other, "text")),
        }
    }

    /// A whole number that is not negative.
    pub fn integer(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Entry::Integer(value)) => usize::try_from(*value)
                .map(Some)
                .map_err(|_| Error::file_at(self.path(), key, format!("{value} is out of range"))),
            Some(other) => Err(self.wrong_kind(key, other, "a whole number")),
        }
    }

    /// A token's id; `None` if the key is absent or its value is -1, also as an unsigned number, by which converters
    /// mean that there is no such token. Whether there is a token of this id is still to be checked.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        if let Some(Entry::Integer(-1 | 0xffff_ffff | 0xffff_ffff_ffff_ffff)) = self.metadata.get(key) {
            tracing::warn!("{} ({key}): is -1, so the model has no such token", self.path().display());
            return Ok(None);
        }
        let id = self.integer(key)?;
        let too_large = |_| Error::file_at(self.path(), key, "is out of range; the file is damaged");
        id.map(|id| u32::try_from(id).map_err(too_large)).transpose()
    }

    /// A number.
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Entry::Real(value)) => Ok(Some(*value)),
            Some(Entry::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.wrong_kind(key, other, "a number")),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Entry::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_kind(key, other, "true or false")),
        }
    }

    /// Number of elements of an array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key) {
            Some(Entry::Array { count, .. }) => Some(*count),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some((kind, count, range)) = self.array(key)? else { return Ok(None) };
        if kind != kind::TEXT {
            return Err(Error::file_at(
                self.path(),
                key,
                format!("holds {}, expected texts", kind::name(kind)),
            ));
        }
        let mut reader = self.reader(key, range);
        // Each text takes at least its length's 8 bytes, which opening checked.
        let mut texts = self.room(key, count)?;
        for _ in 0..count {
            let len = reader.u64()?;
            texts.push(reader.text(len)?);
        }
        Ok(Some(texts))
    }

    /// An array of whole numbers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some((kind, count, range)) = self.array(key)? else { return Ok(None) };
        let mut reader = self.reader(key, range);
        let mut values = self.room(key, count)?;
        for _ in 0..count {
            match reader.scalar(kind)? {
                Entry::Integer(value) => values.push(value as i64),
                Entry::Bool(value) => values.push(i64::from(value)),
                other => return Err(self.wrong_kind(key, &other, "whole numbers")),
            }
        }
        Ok(Some(values))
    }

    /// An array of numbers.
    pub fn reals(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some((kind, count, range)) = self.array(key)? else { return Ok(None) };
        let mut reader = self.reader(key, range);
        let mut values = self.room(key, count)?;
        for _ in 0..count {
            match reader.scalar(kind)? {
                Entry::Real(value) => values.push(value as f32),
                Entry::Integer(value) => values.push(value as f32),
                other => return Err(self.wrong_kind(key, &other, "numbers")),
            }
        }
        Ok(Some(values))
    }

    /// The values of a vector stored as F32: the factors of the rotary frequencies.
    pub(crate) fn rope_factors(&self, tensor: &GgufTensor) -> Result<Vec<f32>> {
        if tensor.kind != GgufType::Known(GgmlDType::F32) {
            let message = format!("is stored as {}, expected F32", tensor.kind);
            return Err(Error::file_at(self.path(), "tensor 'rope_freqs.weight'", message));
        }
        let bytes = &self.files[tensor.file][tensor.start..tensor.start + tensor.bytes];
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// An empty vector for the elements of an array. A byte of the file may become 16 bytes of memory.
    fn room<T>(&self, key: &str, count: usize) -> Result<Vec<T>> {
        try_with_capacity(count, || format!("{count} elements of '{key}' of {}", self.path().display()))
    }

    fn array(&self, key: &str) -> Result<Option<(u32, usize, Range<usize>)>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Entry::Array { kind, count, range }) => Ok(Some((*kind, *count, range.clone()))),
            Some(other) => Err(self.wrong_kind(key, other, "an array")),
        }
    }

    fn reader<'a>(&'a self, key: &str, range: Range<usize>) -> Reader<'a> {
        Reader {
            path: self.path(),
            bytes: &self.files[0][..range.end],
            at: range.start,
            place: key.to_owned(),
        }
    }

    fn wrong_kind(&self, key: &str, found: &Entry, expected: &str) -> Error {
        let found = match found {
            Entry::Integer(_) => "a whole number",
            Entry::Real(_) => "a number",
            Entry::Bool(_) => "true or false",
            Entry::Text(_) => "text",
            Entry::Array { .. } => "an array",
        };
        Error::file_at(self.path(), key, format!("holds {found}, expected {expected}"))
    }
}

/// Checks magic and version; the numbers of tensors and of metadata entries.
fn read_preamble(reader: &mut Reader<'_>) -> Result<(u64, u64)> {
    let magic = reader.u32()?;
    if magic != u32::from_le_bytes(*b"GGUF") {
        return Err(reader.error("not a GGUF file: it does not begin with 'GGUF'"));
    }
    let version = reader.u32()?;
    if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
        return Err(reader.error("the file is big-endian; convert it on a little-endian machine"));
    }
    if !(2..=3).contains(&version) {
        return Err(reader.error(format!("GGUF version {version} is not supported; versions 2 and 3 are")));
    }
    let counts = (reader.u64()?, reader.u64()?);
    if counts.0 > MAX_ENTRIES || counts.1 > MAX_ENTRIES {
        return Err(reader.error(format!(
            "claims {} tensors and {} metadata entries, at most {MAX_ENTRIES} are plausible; the file is damaged",
            counts.0, counts.1
        )));
    }
    Ok(counts)
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Entry>> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        reader.place = format!("metadata entry {index}");
        let key = reader.name()?;
        reader.place.clone_from(&key);
        let kind = reader.u32()?;
        let entry = match kind {
            kind::TEXT => {
                let len = reader.u64()?;
                Entry::Text(reader.text(len)?.to_owned())
            }
            kind::ARRAY => reader.array()?,
            _ => reader.scalar(kind)?,
        };
        if metadata.insert(key, entry).is_some() {
            return Err(reader.error("the key occurs twice; the file is damaged"));
        }
    }
    Ok(metadata)
}

fn alignment(reader: &Reader<'_>, metadata: &BTreeMap<String, Entry>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Entry::Integer(value)) if (8..=1 << 20).contains(value) && value % 8 == 0 => Ok(*value as u64),
        Some(_) => Err(Error::file_at(
            reader.path,
            "general.alignment",
            "must be a multiple of 8 and at most 1048576; the file is damaged",
        )),
    }
}

fn read_tensors(reader: &mut Reader<'_>, count: u64, alignment: u64) -> Result<BTreeMap<String, GgufTensor>> {
    let mut described = Vec::new();
    for index in 0..count {
        reader.place = format!("tensor {index}");
        let name = reader.name()?;
        reader.place.clone_from(&name);
        let rank = reader.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(reader.error(format!("has {rank} dimensions, expected 1 to 4; the file is damaged")));
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let dim = reader.u64()?;
            shape.push(
                usize::try_from(dim).map_err(|_| reader.error(format!("dimension {dim} is too large")))?,
            );
        }
        shape.reverse();
        let kind = GgufType::from_number(reader.u32()?);
        let offset = reader.u64()?;
        described.push((name, shape, kind, offset));
    }
    let base = (reader.at as u64).next_multiple_of(alignment);
    let file_len = reader.bytes.len();
    let mut tensors = BTreeMap::new();
    for (name, shape, kind, offset) in described {
        reader.place.clone_from(&name);
        if offset % alignment != 0 {
            return Err(reader
                .error(format!("offset {offset} is not a multiple of {alignment}; the file is damaged")));
        }
        let bytes = kind.bytes(&shape).map_err(|message| reader.error(message))?;
        let start = base.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(reader.error(format!("offset {offset} is too large; the file is damaged")));
        };
        if end > file_len {
            return Err(reader.error(format!(
                "ends at byte {end}, but the file has {file_len}; the file is truncated: fetch it again"
            )));
        }
        if tensors.insert(name, GgufTensor { shape, kind, file: 0, start, bytes }).is_some() {
            return Err(reader.error("occurs twice; the file is damaged"));
        }
    }
    Ok(tensors)
}

impl GgufType {
    fn from_number(number: u32) -> Self {
        use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        Self::Known(match number {
            0 => F32,
            1 => F16,
            2 => Q4_0,
            3 => Q4_1,
            6 => Q5_0,
            7 => Q5_1,
            8 => Q8_0,
            10 => Q2K,
            11 => Q3K,
            12 => Q4K,
            13 => Q5K,
            14 => Q6K,
            30 => BF16,
            other => return Self::Unknown(other),
        })
    }

    /// Bytes of a tensor: rows are whole blocks. 0 for an unknown type.
    fn bytes(self, shape: &[usize]) -> std::result::Result<usize, String> {
        let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let Some(elements) = elements.filter(|&n| n > 0 && n <= isize::MAX as usize / 8) else {
            return Err(format!("shape {shape:?} is not plausible; the file is damaged"));
        };
        let Self::Known(dtype) = self else { return Ok(0) };
        let (block, size) = (dtype.block_size(), dtype.type_size());
        let row = shape.last().copied().unwrap_or(1);
        if row % block != 0 {
            return Err(format!("rows of {row} elements are not whole {dtype:?} blocks of {block}"));
        }
        (elements / block).checked_mul(size).ok_or_else(|| format!("shape {shape:?} is not plausible"))
    }
}

/// Names of types that exist but are not read here.
fn foreign_type_name(number: u32) -> &'static str {
    match number {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "integer",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    }
}

/// Numbers of the metadata's types.
mod kind {
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;

    /// Bytes of one value on disk; for a text, of its length.
    pub(super) fn size(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            TEXT | 10..=12 => Some(8),
            _ => None,
        }
    }

    pub(super) fn name(kind: u32) -> &'static str {
        match kind {
            0..=5 | 10 | 11 => "whole numbers",
            6 | 12 => "numbers",
            7 => "truth values",
            TEXT => "texts",
            ARRAY => "arrays",
            _ => "values of an unknown type",
        }
    }
}

/// A cursor that cannot leave the bytes.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// What is being read, for messages.
    place: String,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::file_at(self.path, format!("{}, byte {}", self.place, self.at), message)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.error(format!(
                "{len} bytes expected, but {} are left; the file is truncated or damaged: fetch it again",
                self.bytes.len() - self.at
            )));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn text(&mut self, len: u64) -> Result<&'a str> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.error("text is not UTF-8; the file is damaged"))
    }

    fn name(&mut self) -> Result<String> {
        let len = self.u64()?;
        if len > MAX_NAME {
            return Err(self.error(format!("a name of {len} bytes is not plausible; the file is damaged")));
        }
        Ok(self.text(len)?.to_owned())
    }

    fn scalar(&mut self, kind: u32) -> Result<Entry> {
        Ok(match kind {
            0 => Entry::Integer(u8::from_le_bytes(self.fixed()?).into()),
            1 => Entry::Integer(i8::from_le_bytes(self.fixed()?).into()),
            2 => Entry::Integer(u16::from_le_bytes(self.fixed()?).into()),
            3 => Entry::Integer(i16::from_le_bytes(self.fixed()?).into()),
            4 => Entry::Integer(self.u32()?.into()),
            5 => Entry::Integer(i32::from_le_bytes(self.fixed()?).into()),
            6 => Entry::Real(f32::from_le_bytes(self.fixed()?).into()),
            7 => Entry::Bool(self.fixed::<1>()?[0] != 0),
            10 => Entry::Integer(self.u64()?.into()),
            11 => Entry::Integer(i64::from_le_bytes(self.fixed()?).into()),
            12 => Entry::Real(f64::from_le_bytes(self.fixed()?)),
            other => return Err(self.error(format!("value type {other} is unknown; the file is damaged"))),
        })
    }

    /// Steps over an array, whose elements must all lie in the file.
    fn array(&mut self) -> Result<Entry> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let Some(size) = kind::size(kind) else {
            return Err(self.error(format!("an array of {} is not supported", kind::name(kind))));
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let start = self.at;
        let fixed = count.saturating_mul(size);
        if fixed > self.bytes.len() - self.at {
            return Err(self.error(format!(
                "claims {count} elements, which do not fit in the file; the file is truncated or damaged"
            )));
        }
        if kind == kind::TEXT {
            for _ in 0..count {
                let len = self.u64()?;
                self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
            }
        } else {
            self.take(fixed)?;
        }
        Ok(Entry::Array { kind, count, range: start..self.at })
    }
}
