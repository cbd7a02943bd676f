//! Rows of Parquet files.

use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::Place;
use crate::{Error, Result};

/// Reads the rows of a Parquet file.
pub(super) fn rows(path: &Path) -> Result<Vec<(Place, Value)>> {
    // Zstandard and Brotli need C code, or much more code, for a rare case.
    let refused = |error: ParquetError| {
        let error = error.to_string();
        let advice = match error.contains("Disabled feature") {
            true => "; write it again with Snappy, gzip or LZ4 compression",
            false => "",
        };
        Error::file(path, format!("is not a Parquet file that can be read: {error}{advice}"))
    };
    let file = std::fs::File::open(path).map_err(|source| Error::io(path, "read", source))?;
    let reader = SerializedFileReader::new(file).map_err(refused)?;
    let rows = reader.get_row_iter(None).map_err(refused)?;
    rows.enumerate()
        .map(|(index, row)| {
            let place = Place::Row(index + 1);
            let value = object(&row.map_err(refused)?)
                .map_err(|message| Error::file_at(path, place.to_string(), message))?;
            Ok((place, value))
        })
        .collect()
}

fn object(row: &Row) -> std::result::Result<Value, String> {
    let fields = row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
    fields.collect::<std::result::Result<Map<_, _>, _>>().map(Value::Object)
}

/// The value of a field. Bytes without a type are the text that older writers do not mark as such.
fn value(field: &Field) -> std::result::Result<Value, String> {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err("has bytes that are not UTF-8 text; keep only columns of text".to_owned()),
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => {
            list.elements().iter().map(value).collect::<std::result::Result<Vec<_>, _>>().map(Value::Array)
        }
        other => Ok(other.to_json_value()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parquet::basic::{Compression, GzipLevel};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::metadata::ParquetMetaDataWriter;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use super::super::{Columns, Record, Row, read_rows};

    /// Texts of a column with their definition and repetition levels.
    type Leaf<'t> = (&'t [&'t str], &'t [i16], Option<&'t [i16]>);

    fn written(schema: &str, compression: Compression, leaves: &[Leaf<'_>]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (texts, definition, repetition) in leaves {
            let texts: Vec<ByteArray> = texts.iter().map(|text| (*text).into()).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts, Some(definition), *repetition).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.parquet");
        std::fs::write(&path, bytes).unwrap();
        let message =
            |error: crate::Error| error.to_string().replace(&*folder.path().to_string_lossy(), "DIR");
        read_rows(&path, &Columns::default()).map_err(message)
    }

    const PAIRS: &str = "message m { optional binary prompt (STRING); optional binary completion (STRING); optional binary text (STRING); }";
    const THREE: [Leaf<'static>; 3] =
        [(&["a", "b"], &[1, 1, 0], None), (&["c", "d"], &[1, 1, 0], None), (&["t"], &[0, 0, 1], None)];

    #[test]
    fn pairs_and_texts_are_read_in_each_compression() {
        let pair = |prompt: &str, completion: &str| Record::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ] {
            let rows = read(&written(PAIRS, compression, &THREE)).unwrap();
            let records: Vec<_> = rows.iter().map(|row| row.record.clone()).collect();
            assert_eq!(
                records,
                [pair("a", "c"), pair("b", "d"), Record::Text("t".into())],
                "{compression:?}"
            );
            assert_eq!(rows[2].place.to_string(), "row 3");
        }
    }

    #[test]
    fn messages_are_lists_of_groups_or_their_json() {
        let schema = "message m { optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (STRING); optional binary content (STRING); optional binary tool_calls (STRING); } } } }";
        let repetition: &[i16] = &[0, 1, 0, 1];
        let leaves: [Leaf<'_>; 3] = [
            (&["user", "assistant", "user", "assistant"], &[4, 4, 4, 4], Some(repetition)),
            (&["a", "b", "c"], &[4, 4, 4, 3], Some(repetition)),
            (&["[{\"name\": \"f\"}]"], &[3, 3, 3, 4], Some(repetition)),
        ];
        let rows = read(&written(schema, Compression::SNAPPY, &leaves)).unwrap();
        let messages = |row: &Row| match &row.record {
            Record::Chat { messages, tools: None } => serde_json::Value::from(messages.clone()),
            other => panic!("{other:?}"),
        };
        let first = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        assert_eq!(messages(&rows[0]), first);
        assert_eq!(messages(&rows[1])[1]["tool_calls"][0]["function"], json!({"name": "f"}));
        // Older writers do not mark texts as such.
        for kind in ["(STRING)", "(UTF8)", "(JSON)", ""] {
            let schema = format!("message m {{ required binary messages {kind}; }}");
            let text = first.to_string();
            let bytes = written(&schema, Compression::SNAPPY, &[(&[text.as_str()], &[0], None)]);
            assert_eq!(messages(&read(&bytes).unwrap()[0]), first, "{kind}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        let error = read(&written(
            PAIRS,
            Compression::SNAPPY,
            &[(&["a", "b"], &[1, 1], None), (&["c"], &[1, 0], None), (&[], &[0, 0], None)],
        ));
        assert_eq!(
            error.unwrap_err(),
            "DIR/train.parquet (row 2): has 'prompt', but 'completion' is missing or null"
        );
        let error = read(b"PAR1 and more").unwrap_err();
        assert!(error.starts_with("DIR/train.parquet: is not a Parquet file that can be read: "), "{error}");
    }

    #[test]
    fn zstandard_is_refused_with_what_to_do() {
        use parquet::file::reader::{FileReader, SerializedFileReader};

        // The crate cannot write it here, so the file only says that it is compressed so.
        let bytes = written(PAIRS, Compression::UNCOMPRESSED, &THREE);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let metadata = SerializedFileReader::new(file).unwrap().metadata().clone();
        let compressed = |column: parquet::file::metadata::ColumnChunkMetaData| {
            let zstandard = Compression::ZSTD(parquet::basic::ZstdLevel::default());
            column.into_builder().set_compression(zstandard).build().unwrap()
        };
        let groups = metadata.row_groups().iter().map(|group| {
            let columns = group.columns().iter().cloned().map(compressed).collect();
            group.clone().into_builder().set_column_metadata(columns).build().unwrap()
        });
        let groups = groups.collect();
        let metadata = metadata.into_builder().set_row_groups(groups).build();
        let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
        let mut changed = bytes[..bytes.len() - 8 - length as usize].to_vec();
        ParquetMetaDataWriter::new(&mut changed, &metadata).finish().unwrap();
        let error = read(&changed).unwrap_err();
        assert!(error.ends_with("; write it again with Snappy, gzip or LZ4 compression"), "{error}");
    }
}
