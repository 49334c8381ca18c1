use super::super::{Column, find};
use super::*;

pub(crate) fn rows_of(name: &str, bytes: &[u8], source: Source, manner: Manner) -> Result<(Vec<Row>, Bad)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let source = Source { path, ..source };
    let mut all = vec![];
    let mut bad = Bad::default();
    for file in find(&source)? {
        let mut rows = Rows::open(&file, &source, manner, Mark::default())?;
        while let Some(row) = rows.next_row()? {
            all.push(row);
        }
        bad.add(&rows.bad);
        // From every mark on the same rows come again.
        for (number, row) in all.iter().enumerate() {
            let mut again = Rows::open(&file, &source, manner, row.mark)?;
            assert_eq!(again.next_row()?.as_ref(), Some(row));
            assert_eq!(again.next_row()?.as_ref(), all.get(number + 1));
        }
    }
    Ok((all, bad))
}

fn texts(name: &str, bytes: &[u8], source: Source) -> Vec<String> {
    let (rows, _) = rows_of(name, bytes, source, Manner::default()).unwrap();
    rows.into_iter().map(|row| row.text).collect()
}

fn named(column: &str) -> Source {
    Source { column: Some(Column::Name(column.into())), ..Source::default() }
}

#[test]
fn objects_give_their_field_whatever_stands_around_it() {
    let lines = "\u{feff}{\"text\": \"one\\nline\", \"id\": 1}\r\n\n{\"meta\": {\"text\": \"no\"}, \"text\": \"\u{e9}\"}\n{\"text\": \"\"}\n{\"text\":\"last\"}";
    assert_eq!(texts("a.jsonl", lines.as_bytes(), Source::default()), ["one\nline", "\u{e9}", "last"]);
    let inner = Source { field: Some("meta.body".into()), ..Source::default() };
    assert_eq!(texts("a.jsonl", b"{\"meta\": {\"body\": \"x\"}}\n{\"meta.body\": \"y\"}", inner), ["x", "y"]);
}

#[test]
fn a_line_without_text_is_an_error_with_its_number_or_counted() {
    for (line, part) in [
        ("{\"text\": \"a\"", "JSON object"),
        ("[1]", "object in braces"),
        ("{\"text\": \"a\"} x", "trailing"),
        ("{\"text\": 7}", "expected text for `text`, got 7"),
        ("{\"body\": \"a\", \"id\": 1}", "no `text`, only body, id"),
        ("{}", "the object is empty"),
    ] {
        let lines = format!("{{\"text\": \"first\"}}\n\n{line}\n{{\"text\": \"last\"}}\n");
        let error = rows_of("a.jsonl", lines.as_bytes(), Source::default(), Manner::default()).unwrap_err();
        let Error::Row { line: 3, reason, .. } = &error else { panic!("{error}") };
        assert!(reason.contains(part), "{error}");
        let skips = Manner { skip_bad: true, ..Manner::default() };
        let (rows, bad) = rows_of("a.jsonl", lines.as_bytes(), Source::default(), skips).unwrap();
        assert_eq!((rows.len(), bad.count), (2, 1));
        assert!(bad.told().unwrap().contains("line 3"), "{bad:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_placed_in_the_file() {
    let bytes = b"\xef\xbb\xbf{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n";
    let error = rows_of("a.jsonl", bytes, Source::default(), Manner::default()).unwrap_err();
    assert!(matches!(error, Error::NotUtf8 { offset_bytes: 27, byte: 0xe9, .. }), "{error:?}");
    let lines = Source { sample_by: Some(SampleBy::Line), ..Source::default() };
    let error = rows_of("a.txt", b"one\ntw\0o\n", lines, Manner::default()).unwrap_err();
    assert!(matches!(error, Error::Binary { offset_bytes: 6, .. }), "{error:?}");
}

#[test]
fn tables_give_a_column_by_name_or_number_with_quotes_and_line_ends_in_it() {
    let table = b"\xef\xbb\xbfid,text,more\r\n1,\"a, \"\"b\"\"\nc\",x\r\n2,plain,y\r\n3,,z\r\n";
    assert_eq!(texts("a.csv", table, Source::default()), ["a, \"b\"\nc", "plain"]);
    assert_eq!(texts("a.csv", table, named("more")), ["x", "y", "z"]);
    let second = Source { column: Some(Column::Number(2)), ..Source::default() };
    assert_eq!(texts("a.tsv", b"1\ta b\n2\tc\n", second.clone()), ["a b", "c"]);
    let headed = Source { header: Some(true), ..second };
    assert_eq!(texts("a.tsv", b"1\ta b\n2\tc\n", headed), ["c"]);
}

#[test]
fn a_table_without_the_column_and_a_row_of_another_width_are_refused() {
    let error = rows_of("a.csv", b"id,txt\n1,a\n", Source::default(), Manner::default()).unwrap_err();
    let Error::NoColumn { column, hint, .. } = &error else { panic!("{error}") };
    assert!(column.contains("text") && hint.contains("did you mean `txt`"), "{error}");
    let far = Source { column: Some(Column::Number(3)), ..Source::default() };
    let error = rows_of("a.csv", b"1,a\n", far, Manner::default()).unwrap_err();
    assert!(matches!(&error, Error::NoColumn { .. }), "{error}");
    let ragged = b"id,text\n1,a\n2\n3,c\n4,\xff\n5,e\n6,\"open\n";
    let error = rows_of("a.csv", ragged, Source::default(), Manner::default()).unwrap_err();
    assert!(matches!(&error, Error::Row { line: 3, .. }), "{error}");
    let skips = Manner { skip_bad: true, ..Manner::default() };
    let (rows, bad) = rows_of("a.csv", ragged, Source::default(), skips).unwrap();
    assert_eq!((rows.len(), bad.count), (3, 3));
}

#[test]
fn a_text_is_one_document_or_its_lines_or_its_paragraphs() {
    let text = b"one\r\ntwo\n\n \nthree\n";
    assert_eq!(texts("a.txt", text, Source::default()), ["one\r\ntwo\n\n \nthree\n"]);
    let by = |sample_by| Source { sample_by: Some(sample_by), ..Source::default() };
    assert_eq!(texts("a.txt", text, by(SampleBy::Line)), ["one", "two", "three"]);
    assert_eq!(texts("a.txt", text, by(SampleBy::Paragraph)), ["one\ntwo", "three"]);
}

#[test]
fn pieces_of_a_text_join_to_it_and_end_with_lines_and_whole_characters() {
    let line = "many words and \u{65e5}\n".repeat(9000);
    for text in [format!("\u{feff}{line}end"), "\u{65e5}".repeat(100_000), "x".to_string()] {
        let manner = Manner { in_pieces: true, ..Manner::default() };
        let (rows, _) = rows_of("a.txt", text.as_bytes(), Source::default(), manner).unwrap();
        let joined: String = rows.iter().map(|row| row.text.as_str()).collect();
        assert_eq!(joined, text.trim_start_matches('\u{feff}'));
        assert!(rows.iter().rev().skip(1).all(|row| !row.ends && row.text.len() >= PIECE_BYTES - 3));
        assert!(rows.last().unwrap().ends);
    }
}

/// As gzip packs it, in two members: what `cat a.gz b.gz` gives.
fn packed(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let pack = |part: &[u8]| {
        let mut packing = flate2::write::GzEncoder::new(vec![], Default::default());
        packing.write_all(part).unwrap();
        packing.finish().unwrap()
    };
    let (one, two) = bytes.split_at(bytes.len() / 3);
    [pack(one), pack(two)].concat()
}

#[test]
fn a_packed_file_gives_the_rows_and_marks_of_the_file_within() {
    let objects: String = (0..9).map(|n| format!("{{\"text\": \"{n} \u{65e5}\"}}\r\n")).collect();
    let lines = Source { sample_by: Some(SampleBy::Line), ..Source::default() };
    let pieces = Manner { in_pieces: true, ..Manner::default() };
    let long = "many words \u{65e5}\n".repeat(9000);
    for (name, bytes, source, manner) in [
        ("a.jsonl", objects.as_str(), Source::default(), Manner::default()),
        ("a.csv", "id,text\n1,\"a\n\"\n2,b\n", Source::default(), Manner::default()),
        ("a.tsv", "text\tid\na\t1\n", Source::default(), Manner::default()),
        ("a.txt", "\u{feff}one\ntwo\n\nthree", lines, Manner::default()),
        ("a.txt", "one\ntwo\n", Source::default(), Manner::default()),
        ("a.txt", &long, Source::default(), pieces),
    ] {
        let plain = rows_of(name, bytes.as_bytes(), source.clone(), manner).unwrap();
        let of_packed = rows_of(&format!("{name}.gz"), &packed(bytes.as_bytes()), source, manner).unwrap();
        assert_eq!(plain, of_packed, "{name}");
        assert!(!plain.0.is_empty());
    }
}

#[test]
fn a_packed_file_that_is_cut_or_none_is_an_error_and_never_fewer_rows() {
    let objects: String = (0..99).map(|n| format!("{{\"text\": \"{n}\"}}\n")).collect();
    let whole = packed(objects.as_bytes());
    let skips = Manner { skip_bad: true, ..Manner::default() };
    for bytes in [&whole[..whole.len() - 9], &whole[..40], b"{\"text\": \"not packed\"}\n"] {
        for name in ["a.jsonl.gz", "a.txt.gz"] {
            let error = rows_of(name, bytes, Source::default(), skips).unwrap_err();
            assert!(matches!(error, Error::Unreadable { .. }), "{error:?}");
            assert!(error.to_string().contains("gzip"), "{error}");
        }
    }
}
