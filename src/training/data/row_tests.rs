use serde_json::{Value, json};

use super::rows::record;
use super::*;

fn chat_of(value: Value) -> (Value, Option<Value>) {
    match record(value).unwrap() {
        Record::Chat { messages, tools } => (messages.into(), tools),
        other => panic!("{other:?}"),
    }
}

fn refused(value: Value) -> String {
    record(value).unwrap_err()
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

#[test]
fn null_columns_are_absent() {
    let both = json!({"messages": null, "prompt": "p", "completion": "c", "text": null, "chosen": null, "rejected": null});
    assert_eq!(record(both).unwrap(), Record::Completion { prompt: "p".into(), completion: "c".into() });
    assert_eq!(record(json!({"messages": null, "text": "t"})).unwrap(), Record::Text("t".into()));
    assert_eq!(
        refused(json!({"prompt": "p", "completion": null})),
        "has 'prompt', but 'completion' is missing or null"
    );
    assert!(refused(json!({"text": null})).starts_with("has no columns with a value"));
    assert!(refused(json!({"question": "q"})).starts_with("has the keys [question]; expected"));
    let (messages, _) =
        chat_of(json!({"messages": [{"role": "user", "content": "a", "name": null, "tool_calls": null}]}));
    assert_eq!(messages, json!([user("a")]));
}

#[test]
fn text_parts_are_joined_and_others_refused() {
    let parts = json!([{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}, "c"]);
    let (messages, _) = chat_of(json!({"messages": [{"role": "user", "content": parts}]}));
    assert_eq!(messages, json!([user("a bc")]));
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    assert_eq!(refused(image), "message 1 has a content part of type 'image_url'; only text can be trained");
}

#[test]
fn null_content_is_for_calls_of_tools_only() {
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
    let with = json!({"messages": [user("a"), {"role": "assistant", "content": null, "tool_calls": call}]});
    assert_eq!(chat_of(with).0[1], json!({"role": "assistant", "tool_calls": call, "content": null}));
    for calls in [json!(null), json!([])] {
        let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
        let error = refused(json!({"messages": [user("a"), message]}));
        assert!(error.starts_with("message 2 has null as its 'content'"), "{error}");
    }
    assert_eq!(refused(json!({"messages": [{"role": "user"}]})), "message 1 has no 'content'");
    assert!(
        refused(json!({"messages": [{"role": "user", "content": 5}]}))
            .contains("a 'content' that is a number")
    );
    assert_eq!(refused(json!({"messages": [{"content": "x"}]})), "message 1 has no 'role'");
    assert!(refused(json!({"messages": []})).contains("at least one message"));
}

#[test]
fn json_texts_are_decoded() {
    let call =
        |arguments: Value| json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
    let row = |calls: Value, tools: Value| json!({"messages": [user("a"), {"role": "assistant", "content": "", "tool_calls": calls}], "tools": tools});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let expected = chat_of(row(call(json!({"city": "Rome"})), tools.clone()));
    for calls in [call(json!("{\"city\": \"Rome\"}")), call(json!({"city": "Rome"})).to_string().into()] {
        for tools in [tools.clone(), tools.to_string().into(), json!([tools[0].to_string()])] {
            assert_eq!(chat_of(row(calls.clone(), tools)), expected);
        }
    }
    assert_eq!(expected.0[1]["tool_calls"][0]["function"]["arguments"], json!({"city": "Rome"}));
    assert_eq!(chat_of(row(call(json!("Rome")), Value::Null)).0[1]["tool_calls"], call(json!("Rome")));
    assert!(
        refused(row(call(json!("{'city': 1}")), Value::Null))
            .contains("message 2 has tool-call arguments that look like JSON")
    );
    assert!(refused(row(call(json!({})), "[oops".into())).starts_with("'tools' is a text that is not JSON"));
    assert_eq!(chat_of(json!({"messages": [user("a")], "tools": []})).1, None);
    let text = json!([user("a"), assistant("b")]).to_string();
    assert_eq!(chat_of(json!({"messages": text})).0, json!([user("a"), assistant("b")]));
    assert!(refused(json!({"messages": "hello"})).starts_with("'messages' is a text that is not JSON"));
}

#[test]
fn older_function_calls_become_calls_of_tools() {
    let row = json!({"messages": [user("a"),
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"role": "function", "name": "f", "content": "2"}], "functions": [{"name": "f"}]});
    let (messages, tools) = chat_of(row);
    assert_eq!(
        messages[1]["tool_calls"],
        json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
    );
    assert_eq!(messages[2], json!({"role": "tool", "name": "f", "content": "2"}));
    assert_eq!(tools, Some(json!([{"type": "function", "function": {"name": "f"}}])));
}

#[test]
fn share_gpt_rows_become_chats() {
    let row = json!({"system": "s", "tools": "[{\"name\": \"f\"}]", "conversations": [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "b"}]});
    let (messages, tools) = chat_of(row);
    let call = json!({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]});
    let system = json!({"role": "system", "content": "s"});
    let tool = json!({"role": "tool", "content": "2"});
    assert_eq!(messages, json!([system, user("a"), call, tool, assistant("b")]));
    assert_eq!(tools, Some(json!([{"name": "f"}])));
    let error = refused(json!({"conversations": [{"from": "alien", "value": "a"}]}));
    assert!(error.starts_with("message 1 is from 'alien'"), "{error}");
    let error = refused(json!({"conversations": [{"from": "gpt", "value": null}]}));
    assert_eq!(error, "message 1 has no 'value', or null");
}

#[test]
fn alpaca_rows_become_chats() {
    let row =
        json!({"instruction": "add", "input": "1 2", "output": "3", "system": "s", "history": [["q", "r"]]});
    let system = json!({"role": "system", "content": "s"});
    assert_eq!(chat_of(row).0, json!([system, user("q"), assistant("r"), user("add\n1 2"), assistant("3")]));
    let row = json!({"instruction": "add", "input": "", "output": "3"});
    assert_eq!(chat_of(row).0, json!([user("add"), assistant("3")]));
    assert!(refused(json!({"instruction": "a", "output": 3})).starts_with("'output' is a number"));
}

#[test]
fn a_prompt_of_messages_is_only_read() {
    let row = json!({"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]});
    let (messages, _) = chat_of(row);
    let weights: Vec<&Value> =
        messages.as_array().unwrap().iter().map(|message| &message["weight"]).collect();
    assert_eq!(weights, [&json!(0), &json!(0), &json!(0), &Value::Null]);
}

#[test]
fn preference_rows_are_refused_with_the_reason() {
    let error = refused(json!({"prompt": "p", "chosen": "a", "rejected": "b"}));
    assert!(error.contains("DPO") && error.contains("keep the preferred answer"), "{error}");
}

mod files {
    use super::*;

    fn read_as(name: &str, bytes: &[u8], columns: &str) -> std::result::Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let rows = read_rows(&path, &columns.parse().unwrap()).map_err(|error| error.to_string());
        rows.map_err(|error| error.replace(&*folder.path().to_string_lossy(), "DIR"))
    }

    fn read(name: &str, text: &str) -> std::result::Result<Vec<Row>, String> {
        read_as(name, text.as_bytes(), "")
    }

    fn places(rows: &[Row]) -> Vec<String> {
        rows.iter().map(|row| row.place.to_string()).collect()
    }

    fn texts(rows: &[Row]) -> Vec<&str> {
        fn text(row: &Row) -> &str {
            match &row.record {
                Record::Text(text) => text,
                other => panic!("{other:?}"),
            }
        }
        rows.iter().map(text).collect()
    }

    #[test]
    fn lines_are_counted_as_an_editor_does() {
        for end in ["\n", "\r\n"] {
            let text = ["\u{feff}{\"text\": \"a\"}", "", "{\"text\": \"b\"}", ""].join(end);
            for name in ["a.jsonl", "A.JSONL", "a.ndjson", "a.NdJson", "a.json"] {
                let rows = read(name, &text).unwrap();
                assert_eq!(
                    (texts(&rows), places(&rows)),
                    (vec!["a", "b"], vec!["line 1".into(), "line 3".into()])
                );
            }
        }
        assert_eq!(texts(&read("a.jsonl", "{\"text\": \"a\"}\r{\"text\": \"b\"}").unwrap()), ["a", "b"]);
        let error = read("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": 5}\n").unwrap_err();
        assert_eq!(error, "DIR/a.jsonl (line 3): 'text' is a number; it must be a text");
        let error = read("a.jsonl", "{\"text\": \"a\"}\n{\"text\": NaN}\n").unwrap_err();
        assert_eq!(
            error,
            "DIR/a.jsonl (line 2): is not valid JSON: NaN is not JSON; write null or a number (column 10)"
        );
        let error = read("a.jsonl", "{\"text\":\n\"a\"}\n").unwrap_err();
        assert!(error.contains("(line 1)") && error.contains("a row must be on one line"), "{error}");
        assert!(read("a.jsonl", "[1]").unwrap_err().contains("(line 1): is a number"));
        for empty in ["", "\n\n", "[]", "\u{feff}"] {
            assert_eq!(read("a.jsonl", empty).unwrap_err(), "DIR/a.jsonl: contains no rows");
        }
    }

    #[test]
    fn json_lists_and_objects_of_rows_are_read() {
        let rows = read("a.json", "[\n{\"text\": \"a\"},\n\n{\"text\":\n \"b\"}]").unwrap();
        assert_eq!((texts(&rows), places(&rows)), (vec!["a", "b"], vec!["line 2".into(), "line 4".into()]));
        let rows =
            read("a.json", "{\"version\": 1, \"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}]}").unwrap();
        assert_eq!((texts(&rows), places(&rows)), (vec!["a", "b"], vec!["row 1".into(), "row 2".into()]));
        assert_eq!(texts(&read("a.json", "{\n\"text\":\n\"a\"}").unwrap()), ["a"]);
        let error = read("a.json", "[{\"text\": \"a\"},\n]").unwrap_err();
        assert_eq!(error, "DIR/a.json (line 2): is not valid JSON: a comma follows the last item");
    }

    #[test]
    fn csv_cells_are_texts_and_empty_ones_absent() {
        let text = "\u{feff}prompt,completion,id\r\n\"a, \"\"b\"\"\",\"c\nd\",1\r\n\r\ne,f,2\r\n";
        let rows = read("a.CSV", text).unwrap();
        let pair = |prompt: &str, completion: &str| Record::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        assert_eq!(rows[0].record, pair("a, \"b\"", "c\nd"));
        assert_eq!(rows[1].record, pair("e", "f"));
        assert_eq!(places(&rows), ["line 2", "line 5"]);
        for text in ["prompt;completion\na;b\n", "prompt\tcompletion\na\tb\n"] {
            assert_eq!(read("a.csv", text).unwrap()[0].record, pair("a", "b"));
        }
        let error = read("a.csv", "prompt,completion\na,b\nc,\n").unwrap_err();
        assert_eq!(error, "DIR/a.csv (line 3): has 'prompt', but 'completion' is missing or null");
        let error = read("a.csv", "prompt,completion\na,b\nc,d,e\n").unwrap_err();
        assert!(error.starts_with("DIR/a.csv (line 3): has 3 cells, but the header has 2"), "{error}");
        assert!(read("a.csv", "text,text\na,b\n").unwrap_err().contains("the column 'text' appears twice"));
    }

    #[test]
    fn columns_are_renamed() {
        let text = "{\"q\": \"a\", \"r\": \"b\", \"text\": \"c\"}\n";
        let rows = read_as("a.jsonl", text.as_bytes(), "prompt=q, completion=r").unwrap();
        assert_eq!(rows[0].record, Record::Completion { prompt: "a".into(), completion: "b".into() });
        let error = read_as("a.jsonl", text.as_bytes(), "prompt=x,completion=r").unwrap_err();
        assert!(error.contains("(line 1): has no column 'x'; it has [q, r, text]"), "{error}");
        let wrong = |text: &str| text.parse::<Columns>().unwrap_err().to_string();
        assert!(wrong("prompt").contains("'prompt' is not OURS=THEIRS"));
        assert!(wrong("answer=x").contains("must name one of messages, prompt"));
    }

    #[test]
    fn files_of_other_kinds_are_refused_by_name() {
        for (name, words) in [
            ("a.jsonl.gz", "unpack"),
            ("a.arrow", "Arrow"),
            ("a.xlsx", "spreadsheet"),
            ("a.txt", "must end in"),
        ] {
            let error = read(name, "x").unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(
            read_as("a.jsonl", b"{\"text\": \"\xff\"}", "").unwrap_err().contains("(line 1): is not UTF-8")
        );
    }

    #[test]
    fn a_folder_needs_a_train_file_and_a_file_gives_rows_for_validation() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, count: usize| {
            let lines: String = (0..count).map(|i| format!("{{\"text\": \"{name} {i}\"}}\n")).collect();
            std::fs::write(folder.path().join(name), lines).unwrap();
        };
        let open = || DataSet::open(folder.path(), &Columns::default()).map_err(|error| error.to_string());
        assert!(open().unwrap_err().contains("contains no train file"));
        write("Train.JSONL", 40);
        let set = open().unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.split_off), (40, 0, 0));
        write("validation.jsonl", 3);
        write("test.ndjson", 2);
        let set = open().unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.test.len()), (40, 3, 2));
        write("train.csv", 1);
        assert!(open().unwrap_err().contains("several files for one split: Train.JSONL, train.csv"));

        let file = |count: usize| {
            write("one.jsonl", count);
            DataSet::open(&folder.path().join("one.jsonl"), &Columns::default()).unwrap()
        };
        let set = file(45);
        assert_eq!((set.train.len(), set.valid.len(), set.split_off), (43, 2, 2));
        assert!(set.valid.iter().all(|row| !set.train.contains(row)));
        assert_eq!((file(19).valid.len(), file(4000).valid.len()), (0, 100));
    }
}
