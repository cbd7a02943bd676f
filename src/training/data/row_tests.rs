use serde_json::{Value, json};

use super::*;

fn record(value: Value) -> std::result::Result<Record, String> {
    rows::record(value).map(|(record, _)| record)
}

/// The columns of a row that are not used.
fn unused(value: Value) -> Vec<String> {
    rows::record(value).unwrap().1
}

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
    let mixed = json!({"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]});
    assert_eq!(chat_of(mixed).0, json!([user("a"), assistant("b")]));
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
fn the_columns_of_dolly_are_those_of_alpaca() {
    let row = json!({"instruction": "add", "context": "1 2", "response": "3", "category": "math"});
    assert_eq!(chat_of(row.clone()).0, json!([user("add\n1 2"), assistant("3")]));
    assert_eq!(unused(row), ["category"]);
    // What was not read was dropped in silence.
    let both = json!({"instruction": "add", "input": "1 2", "context": "x", "output": "3", "response": "4"});
    assert_eq!(chat_of(both.clone()).0, json!([user("add\n1 2"), assistant("3")]));
    assert_eq!(unused(both), ["context", "response"]);
}

#[test]
fn a_system_prompt_of_either_name_begins_the_chat() {
    let system = json!({"role": "system", "content": "s"});
    let pair = json!([system, user("p"), assistant("c")]);
    for key in ["system", "system_prompt"] {
        for (row, expected) in [
            (json!({"prompt": "p", "completion": "c"}), &pair),
            (json!({"instruction": "p", "output": "c"}), &pair),
            (json!({"messages": [user("p"), assistant("c")]}), &pair),
        ] {
            let mut row = row;
            row[key] = "s".into();
            assert_eq!(chat_of(row.clone()).0, *expected);
            assert_eq!(unused(row), [""; 0]);
        }
    }
    let own =
        |first: &str| json!({"messages": [{"role": "system", "content": first}, user("p")], "system": "s"});
    assert_eq!(unused(own("s")), [""; 0]);
    assert_eq!(unused(own("other")), ["system"]);
    let error = refused(json!({"prompt": "p", "completion": "c", "system": "s", "system_prompt": "t"}));
    assert_eq!(error, "has different texts in 'system' and 'system_prompt'; keep one of the columns");
}

#[test]
fn columns_that_are_not_used_are_named_and_media_refused() {
    let row = json!({"prompt": "p", "completion": "c", "text": "t", "messages": [user("a")], "id": 5, "empty": "", "tags": []});
    assert_eq!(
        record(row.clone()).unwrap(),
        Record::Completion { prompt: "p".into(), completion: "c".into() }
    );
    assert_eq!(unused(row), ["text", "messages", "id"]);
    assert_eq!(unused(json!({"text": "t", "system": "s", "url": "u"})), ["system", "url"]);
    assert_eq!(unused(json!({"messages": [user("a")], "tools": "[]", "functions": [1]})), ["functions"]);
    let error = refused(json!({"messages": [user("what is this?")], "images": ["a.png"]}));
    assert!(error.starts_with("has 'images', and only text can be trained; leave the row out"), "{error}");
    chat_of(json!({"messages": [user("a")], "images": []}));
}

#[test]
fn roles_are_read_in_any_spelling_and_unknown_ones_refused() {
    for (name, role) in [
        ("Assistant", "assistant"),
        ("AI", "assistant"),
        ("bot", "assistant"),
        ("chatbot", "assistant"),
        ("ChatGPT", "assistant"),
        ("GPT", "assistant"),
        (" assistant ", "assistant"),
        ("USER", "user"),
        ("Human", "user"),
        ("System", "system"),
        ("tool_response", "tool"),
        ("developer", "developer"),
        ("ipython", "ipython"),
    ] {
        let open_ai = json!({"messages": [{"role": name, "content": "x"}]});
        let share_gpt = json!({"conversations": [{"from": name, "value": "x"}]});
        for row in [open_ai, share_gpt] {
            assert_eq!(chat_of(row).0, json!([{"role": role, "content": "x"}]), "{name}");
        }
    }
    let error = refused(json!({"messages": [user("a"), {"role": "narrator", "content": "b"}]}));
    assert_eq!(error, "message 2 has the role 'narrator'; it must be system, user, assistant or tool");
    let call =
        json!({"messages": [{"role": "tool_call", "content": "{\"name\": \"f\", \"arguments\": {}}"}]});
    assert_eq!(chat_of(call).0[0]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {}}));
}

#[test]
fn a_message_in_place_of_a_row_is_called_one() {
    for message in [user("a"), json!({"from": "human", "value": "a"})] {
        assert!(
            refused(message)
                .starts_with("is a message of a chat, not a row; a row has the messages of one chat")
        );
    }
}

#[test]
fn a_missing_column_is_named_with_how_to_rename_another() {
    let error = refused(json!({"prompt": "p", "response": "r"}));
    let expected = "has 'prompt', but 'completion' is missing or null; it also has [response], which --columns \
                    prompt=prompt,completion=response would use";
    assert_eq!(error, expected);
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
fn weights_select_answers_and_all_else_is_refused() {
    let with = |role: &str, key: &str, value: Value| json!({"messages": [user("a"), {"role": role, "content": "b", key: value}]});
    for (key, value) in [
        ("weight", json!(0)),
        ("weight", json!(1)),
        ("weight", json!(0.0)),
        ("train", json!(false)),
        ("train", json!(1)),
        ("loss", json!(true)),
        ("train_detail", json!([])),
        ("train_detail", Value::Null),
        ("weight", Value::Null),
    ] {
        chat_of(with("assistant", key, value));
    }
    for (role, key, value, expected) in [
        (
            "assistant",
            "weight",
            json!(0.5),
            "message 2 has 'weight': 0.5; write 1 for an answer that is trained, 0 for one that is only read",
        ),
        ("assistant", "weight", json!(-1), "message 2 has 'weight': -1; write"),
        ("assistant", "train", json!("no"), "message 2 has 'train': \"no\"; write"),
        (
            "assistant",
            "train_detail",
            json!([{"begin_offset": 0, "end_offset": 1, "train": false}]),
            "message 2 has 'train_detail', which trains parts of an answer",
        ),
        (
            "user",
            "train",
            json!(true),
            "message 2 has 'train': true, but only the assistant's messages are trained",
        ),
    ] {
        let error = refused(with(role, key, value));
        assert!(error.starts_with(expected), "{error}");
    }
    chat_of(with("user", "weight", json!(0)));
}

#[test]
fn variables_of_the_template_in_a_row_are_refused() {
    let row = |variables: Value| json!({"messages": [user("a"), assistant("b")], "chat_template_kwargs": variables});
    chat_of(row(json!({})));
    let error = refused(row(json!({"enable_thinking": false})));
    assert!(error.contains("'chat_template_kwargs'") && error.contains("--template-var"), "{error}");
}

#[test]
fn numbers_of_any_length_are_numbers() {
    let value = |text: &str| super::json::parse(text).unwrap();
    assert_eq!(refused(value(r#"{"text": 18446744073709551616}"#)), "'text' is a number; it must be a text");
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": "{\"id\": 123456789012345678901234567890, \"zero\": -0}"}}]}]}"#;
    let (messages, _) = chat_of(value(row));
    let arguments = &messages[1]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(
        crate::models::write_json(arguments, false),
        r#"{"id":123456789012345678901234567890,"zero":0}"#
    );
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
        let error = read("a.jsonl", "{\"text\": \"a\"},\n{\"text\": \"b\"}\n").unwrap_err();
        assert!(
            error.contains("(line 1)") && error.ends_with("; JSON lines have no comma at their end"),
            "{error}"
        );
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
        // The list of keys was that of the named columns only.
        let dolly = "{\"instruction\": \"a\", \"response\": \"b\"}\n";
        let error = read_as("a.jsonl", dolly.as_bytes(), "output=response").unwrap_err();
        let expected =
            "; with --columns only the columns that it names are read, and the row also has [instruction]";
        assert!(error.contains("has the keys [output]") && error.ends_with(expected), "{error}");
    }

    #[test]
    fn rows_in_files_of_other_names_are_found_by_their_content() {
        for (name, text) in [
            ("rows", "\n{\"text\": \"a\"}\n{\"text\": \"b\"}\n"),
            ("rows.txt", "[{\"text\": \"a\"},\n{\"text\": \"b\"}]"),
            ("rows.log", "\u{feff}{ \"text\": \"a\"}\n{\"text\": \"b\"}"),
            ("rows.data", "{\n \"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}]\n}"),
        ] {
            assert_eq!(texts(&read(name, text).unwrap()), ["a", "b"], "{name}");
        }
        let pairs = read("rows.txt", "id,prompt,completion\n1,a,b\n").unwrap();
        assert_eq!(pairs[0].record, Record::Completion { prompt: "a".into(), completion: "b".into() });
        let error = read("rows.txt", "{\"text\": \"a\"}\n{\"text\": 5}\n").unwrap_err();
        assert_eq!(error, "DIR/rows.txt (line 2): 'text' is a number; it must be a text");
        for prose in ["Once upon a time", "{sighs} A play.", "[1] A list, a prompt, an answer", ""] {
            assert!(read("a.txt", prose).unwrap_err().contains("is not a file of rows"), "{prose}");
        }
        assert!(read_as("rows", b"\x1f\x8b\x08\0", "").unwrap_err().contains("unpack it first"));
    }

    #[test]
    fn a_json_file_with_a_list_per_split_is_a_data_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.json");
        let open = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let set = DataSet::open(&path, &Columns::default());
            set.map_err(|error| error.to_string().replace(&*folder.path().to_string_lossy(), "DIR"))
        };
        let rows = |count: usize| {
            let rows: Vec<String> = (0..count).map(|i| format!("{{\"text\": \"{i}\"}}")).collect();
            format!("[{}]", rows.join(",\n"))
        };
        let set = open(&format!("{{\"train\": {},\n\"test\": {}}}", rows(30), rows(2))).unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.test.len()), (30, 0, 2));
        assert_eq!(places(&set.test), ["line 31", "line 32"]);
        let set = open(&format!("{{\"train\": {}, \"validation\": {}}}", rows(3), rows(1))).unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.test.len()), (3, 1, 0));
        // Without other splits it is like any file of rows.
        assert_eq!(open(&format!("{{\"train\": {}}}", rows(40))).unwrap().split_off, 2);
        assert!(
            open("{\"test\": [{\"text\": \"a\"}]}")
                .unwrap_err()
                .starts_with("DIR/all.json: has no rows of 'train'")
        );
        let error = open("{\"train\": [{\"text\": \"a\"}],\n \"test\": [\n{\"text\": 5}]}").unwrap_err();
        assert_eq!(error, "DIR/all.json (line 3): 'text' is a number; it must be a text");
    }

    #[test]
    fn rows_of_a_list_on_one_line_are_numbered() {
        let error = read("a.json", "[{\"text\": \"a\"}, {\"text\": \"b\"}, {\"text\": 5}]").unwrap_err();
        assert_eq!(error, "DIR/a.json (row 3): 'text' is a number; it must be a text");
    }

    #[test]
    fn spaces_around_cells_of_csv_are_text_and_refused_in_the_header() {
        let rows = read("a.csv", "prompt,completion\n a , b\n").unwrap();
        assert_eq!(rows[0].record, Record::Completion { prompt: " a ".into(), completion: " b".into() });
        // Trimming the header alone would train the space before every answer.
        let error = read("a.csv", "prompt, completion\na, b\n").unwrap_err();
        assert!(
            error.starts_with(
                "DIR/a.csv (line 1): the name of the column ' completion' begins or ends with a space"
            ),
            "{error}"
        );
    }

    #[test]
    fn quotes_that_enclose_no_cell_of_csv_are_refused_where_they_open() {
        let file = |rows: &str| read("a.csv", &format!("prompt,completion\n{rows}"));
        let error = file("a,b\nc,\"d\ne,f\ng,h\n").unwrap_err();
        assert_eq!(error, "DIR/a.csv (line 3): a quote opens here and is never closed");
        let error = file("a,\"b\nc,\"d\"\n").unwrap_err();
        assert!(
            error.starts_with(
                "DIR/a.csv (line 2): a quote opens here, and more text follows the next quote, on line 3"
            ),
            "{error}"
        );
        assert!(file("a,\"say \\\"b\\\"\"\n").unwrap_err().contains("write a quote inside a cell as \"\""));
        let error = file("a, \"b\"\n").unwrap_err();
        assert!(
            error.starts_with("DIR/a.csv (line 2): a cell begins with a space before its quote"),
            "{error}"
        );
        // Quotes within a cell that is not enclosed are text.
        let rows = file("6\" pipe,the \"b\"\n\"\",\"c\"\"\"\r\n").map_err(|error| error.to_string());
        assert_eq!(
            rows.unwrap_err(),
            "DIR/a.csv (line 3): has 'completion', but 'prompt' is missing or null"
        );
        let rows = file("6\" pipe,the \"b\"\nx,\"c\"\"\"\r\n").unwrap();
        let pair = |prompt: &str, completion: &str| Record::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        assert_eq!((&rows[0].record, &rows[1].record), (&pair("6\" pipe", "the \"b\""), &pair("x", "c\"")));
    }

    #[test]
    fn files_of_other_kinds_are_refused_by_name() {
        for (name, words) in [
            ("a.jsonl.gz", "unpack"),
            ("a.arrow", "Arrow"),
            ("a.xlsx", "spreadsheet"),
            ("a.txt", "is not a file of rows: its name does not end in"),
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
        for name in ["test.jsonl", "valid.jsonl", "data/validation.jsonl"] {
            std::fs::create_dir_all(folder.path().join("data")).unwrap();
            write(name, 40);
            let error = open().unwrap_err();
            assert!(error.contains("contains no train file: expected train.jsonl"), "{name}: {error}");
            let set = DataSet::open_any(folder.path(), &Columns::default()).unwrap();
            assert_eq!((set.train.len(), set.valid.len() + set.test.len()), (0, 40), "{name}");
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        write("rows.jsonl", 40);
        assert_eq!(open().map(|set| (set.train.len(), set.valid.len())), Ok((38, 2)));
        std::fs::remove_file(folder.path().join("rows.jsonl")).unwrap();
        write("Train.JSONL", 40);
        let set = open().unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.split_off), (40, 0, 0));
        write("validation.jsonl", 3);
        write("test.ndjson", 2);
        let set = open().unwrap();
        assert_eq!((set.train.len(), set.valid.len(), set.test.len()), (40, 3, 2));
        write("train.csv", 1);
        assert!(open().unwrap_err().contains("several files for one split: Train.JSONL, train.csv"));
        for name in ["train.csv", "Train.JSONL"] {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        write("train.txt", 5);
        assert_eq!(open().unwrap().train.len(), 5);
        std::fs::rename(folder.path().join("train.txt"), folder.path().join("train.jsonl.gz")).unwrap();
        assert!(open().unwrap_err().contains("train.jsonl.gz: is compressed; unpack it first"));
        for name in ["train.jsonl.gz", "validation.jsonl", "test.ndjson"] {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("notes.md"), "x").unwrap();
        let error = open().unwrap_err();
        assert!(error.ends_with("; found notes.md"), "{error}");

        let file = |count: usize| {
            write("one.jsonl", count);
            DataSet::open(&folder.path().join("one.jsonl"), &Columns::default()).unwrap()
        };
        let set = file(45);
        assert_eq!((set.train.len(), set.valid.len(), set.split_off), (43, 2, 2));
        assert!(set.valid.iter().all(|row| !set.train.contains(row)));
        assert_eq!((file(19).valid.len(), file(4000).valid.len()), (0, 100));
    }

    #[test]
    fn rows_for_validation_are_taken_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        let lines: String = (0..40).map(|i| format!("{{\"text\": \"{i}\"}}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let split = |size: ValidationSize| {
            let mut set = DataSet::open(folder.path(), &Columns::default()).unwrap();
            set.split_off(size).map(|()| set).map_err(|error| error.to_string())
        };
        for (size, count) in [
            (ValidationSize::Share(0.1), 4),
            (ValidationSize::Share(0.001), 1),
            (ValidationSize::Rows(7), 7),
            (ValidationSize::Rows(0), 0),
            (ValidationSize::Share(0.0), 0),
            (ValidationSize::Rows(39), 39),
        ] {
            let set = split(size).unwrap();
            assert_eq!(
                (set.train.len(), set.valid.len(), set.split_off),
                (40 - count, count, count),
                "{size:?}"
            );
            assert!(set.valid.iter().all(|row| !set.train.contains(row)));
        }
        assert_eq!(texts(&split(ValidationSize::Rows(4)).unwrap().valid), ["5", "15", "25", "35"]);
        assert!(split(ValidationSize::Rows(40)).unwrap_err().contains("takes 40 of 40 rows"));
        for share in [1.0, -0.1, f64::NAN] {
            assert!(
                split(ValidationSize::Share(share))
                    .unwrap_err()
                    .contains("must be a share from 0 to below 1")
            );
        }
        std::fs::write(folder.path().join("valid.jsonl"), "{\"text\": \"v\"}\n").unwrap();
        assert!(split(ValidationSize::Rows(2)).unwrap_err().contains("has 1 row for validation already"));
        assert_eq!(split(ValidationSize::Share(0.0)).unwrap().valid.len(), 1);
    }
}
