use serde_json::{Map, Value, json};

use super::*;
use crate::models::ChatTemplate;
use crate::models::gguf::Gguf;

fn render(source: &str, messages: &[Value]) -> crate::Result<String> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(messages, None, false)
}

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn chatml() {
    let template = ChatTemplate::new(CHATML, None, None).unwrap();
    let messages = [json!({"role": "user", "content": "Hi <b> & \"you\""})];
    let expected = "<|im_start|>user\nHi <b> & \"you\"<|im_end|>\n";
    assert_eq!(template.render(&messages, None, false).unwrap(), expected);
    assert_eq!(template.render(&messages, None, true).unwrap(), format!("{expected}<|im_start|>assistant\n"));
}

#[test]
fn blocks_take_their_lines_with_them() {
    let source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content | trim }}]\n    {%- endif %}\n{% endfor %}\n";
    let messages = [json!({"role": "user", "content": " a "}), json!({"role": "user", "content": "b"})];
    assert_eq!(render(source, &messages).unwrap(), "[a][b]");
}

#[test]
fn python_methods_namespaces_and_loop_controls() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.content.startswith('x') %}{% continue %}{% endif %}\
        {% set ns.n = ns.n + 1 %}{{ m.content.strip().split(' ')[0].upper() }}{{ m.get('name', '-') }}{% endfor %}{{ ns.n }}\
        {{ messages[1:] | length }}{{ messages[-1]['content'][::-1] }}";
    let messages =
        [json!({"content": " hello you "}), json!({"content": "xx"}), json!({"content": "ab", "name": "N"})];
    assert_eq!(render(source, &messages).unwrap(), "HELLO-ABN22ba");
}

#[test]
fn constants_print_as_in_python() {
    assert_eq!(
        render("{{ true }} {{ none }} {{ 1 == 2 }} {{ absent }}{{ bos_token }}{{ eos_token }}", &[]).unwrap(),
        "True None False <s></s>"
    );
}

#[test]
fn raise_exception_is_an_error_with_its_message() {
    let source =
        "{% if messages[0].role != 'user' %}\n{{ raise_exception('Roles must alternate!') }}{% endif %}";
    let message = render(source, &[json!({"role": "system"})]).unwrap_err().to_string();
    assert!(message.contains("Roles must alternate!") && message.contains("line 2"), "{message}");
    assert_eq!(render(source, &[json!({"role": "user"})]).unwrap(), "");
}

#[test]
fn errors_of_templates_are_errors() {
    let message = render("{% if %}", &[]).unwrap_err().to_string();
    assert!(message.contains("does not compile"), "{message}");
    assert!(render("{{ absent.field }}", &[]).is_err());
    assert!(render("{{ absent | tojson }}", &[]).is_err());
}

/// Texts from Python's `json.dumps(…, ensure_ascii=False)`.
#[test]
fn tojson_writes_what_python_writes() {
    let tool = json!({"name": "f", "b": [1, 2.0, 1e-7, 1e22, -0.5], "a": {"é": "<&'\"\n\u{1}", "t": true, "n": null}, "e": [], "o": {}});
    let dumps = |filter: &str| {
        let template = ChatTemplate::new(&format!("{{{{ tools[0] | {filter} }}}}"), None, None).unwrap();
        template.render(&[], Some(&json!([tool])), false).unwrap()
    };
    assert_eq!(
        dumps("tojson"),
        r#"{"name": "f", "b": [1, 2.0, 1e-07, 1e+22, -0.5], "a": {"é": "<&'\"\n\u0001", "t": true, "n": null}, "e": [], "o": {}}"#
    );
    assert_eq!(
        dumps("tojson(indent=2, sort_keys=true, ensure_ascii=true)"),
        "{\n  \"a\": {\n    \"n\": null,\n    \"t\": true,\n    \"\\u00e9\": \"<&'\\\"\\n\\u0001\"\n  },\n  \"b\": [\n    1,\n    2.0,\n    1e-07,\n    1e+22,\n    -0.5\n  ],\n  \"e\": [],\n  \"name\": \"f\",\n  \"o\": {}\n}"
    );
    assert_eq!(dumps("tojson(separators=(',', ':')) | length"), "99");
}

#[test]
fn generation_marks_leave_no_trace() {
    let source =
        "{% for m in messages %}\n{%- generation %}\n{{ m.content }}\n{% endgeneration -%}\n{% endfor %}";
    assert_eq!(render(source, &[json!({"content": "a"}), json!({"content": "b"})]).unwrap(), "a\nb\n");
}

#[test]
fn generation_blocks_have_ranges() {
    let source = "{% for m in messages %}{{ m.role }}: {% if m.role == 'a' %}{% generation %}{{ m.content }}.{% endgeneration %}{% endif %}{{ '\n' }}{% endfor %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    assert!(template.has_generation_blocks());
    let messages = [
        json!({"role": "u", "content": "hi"}),
        json!({"role": "a", "content": "é\u{f0000}"}),
        json!({"role": "a", "content": ""}),
    ];
    let rendered = template.render_marked(&messages, None, false, &Map::new()).unwrap();
    assert_eq!(rendered.text, "u: \na: é\u{f0000}.\na: .\n");
    let blocks: Vec<&str> = rendered.generation.iter().map(|range| &rendered.text[range.clone()]).collect();
    assert_eq!(blocks, ["é\u{f0000}.", "."]);
    assert_eq!(template.render(&messages, None, false).unwrap(), rendered.text);
    let plain = ChatTemplate::new(CHATML, None, None).unwrap();
    assert!(!plain.has_generation_blocks());
    assert!(plain.render_marked(&messages[..1], None, false, &Map::new()).unwrap().generation.is_empty());
}

/// A filter that removes space looks at the marks, which are not space.
#[test]
fn changed_generation_blocks_are_refused() {
    let source =
        "{% filter trim %}{% generation %} {{ messages[0].content }} {% endgeneration %}{% endfilter %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    let messages = [json!({"content": "a"})];
    assert_eq!(template.render(&messages, None, false).unwrap(), "a");
    let message = template.render_marked(&messages, None, false, &Map::new()).unwrap_err().to_string();
    assert!(message.contains("{% generation %}"), "{message}");
}

#[test]
fn default_variables_are_replaced_by_those_of_a_call() {
    let variables = |value: bool| Map::from_iter([("enable_thinking".to_owned(), json!(value))]);
    let template =
        ChatTemplate::new("{{ enable_thinking }}", None, None).unwrap().with_variables(variables(false));
    assert_eq!(template.render(&[], None, false).unwrap(), "False");
    assert_eq!(template.render_with(&[], None, false, &variables(true)).unwrap(), "True");
}

#[test]
fn crlf_of_a_template_is_lf() {
    let source = "{% for m in messages %}\r\n[{{ m.content }}]\r\n{% endfor %}\r\nend\r\n";
    assert_eq!(render(source, &[json!({"content": "a\r\nb"})]).unwrap(), "[a\r\nb]\nend");
}

/// transformers 5 leaves out null fields and finds reasoning under each of its names.
#[test]
fn messages_are_prepared_as_by_transformers() {
    let source = "{{ messages[0] | tojson }}";
    let text = |message: Value| render(source, &[message]).unwrap();
    assert_eq!(text(json!({"role": "a", "content": null})), r#"{"role": "a"}"#);
    assert_eq!(
        text(json!({"role": "a", "reasoning": "r"})),
        r#"{"thinking": "r", "role": "a", "reasoning": "r", "reasoning_content": "r"}"#
    );
    assert_eq!(
        text(json!({"reasoning": "r", "thinking": "t", "reasoning_content": null})),
        r#"{"reasoning": "r", "thinking": "t", "reasoning_content": "t"}"#
    );
}

#[test]
fn integers_beyond_64_bits_keep_their_digits() {
    let message = crate::models::parse_json(
        r#"{"n": [123456789012345678901234567890, -9223372036854775809, -0, 1e3, "99999999999999999999\"1"]}"#,
    )
    .unwrap();
    assert_eq!(
        render("{{ messages[0].n }} {{ messages[0] | tojson }} {{ messages[0].n[0] + 1 }}", &[message])
            .unwrap(),
        "[123456789012345678901234567890, -9223372036854775809, 0, 1000.0, '99999999999999999999\"1'] \
         {\"n\": [123456789012345678901234567890, -9223372036854775809, 0, 1000.0, \"99999999999999999999\\\"1\"]} \
         123456789012345678901234567891"
    );
    assert!(crate::models::parse_json("[01]").is_err());
}

#[test]
fn folders_have_one_template_or_several() {
    let (folder, path) = file("tokenizer_config.json", b"{}");
    let set = |json: Value| std::fs::write(&path, json.to_string()).unwrap();
    assert!(ChatTemplate::from_folder(folder.path()).unwrap().is_none());
    set(
        json!({"chat_template": "one {{ bos_token }}{{ pad_token }}", "bos_token": {"content": "<b>"}, "pad_token": "<p>"}),
    );
    let open = || ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
    assert_eq!(open().render(&[], None, false).unwrap(), "one <b><p>");
    set(
        json!({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}),
    );
    assert_eq!(open().render(&[], None, false).unwrap(), "plain");
    assert_eq!(open().render(&[], Some(&json!([])), false).unwrap(), "tools");
    std::fs::write(folder.path().join("chat_template.jinja"), "file {{ enable_thinking }}").unwrap();
    assert_eq!(open().source(), "file {{ enable_thinking }}");
    let variables: Map<String, Value> = [("enable_thinking".to_owned(), json!(false))].into_iter().collect();
    assert_eq!(open().render_with(&[], None, false, &variables).unwrap(), "file False");
    set(json!({"chat_template": 7}));
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    assert!(ChatTemplate::from_folder(folder.path()).unwrap_err().to_string().contains("chat_template"));
}

#[test]
fn gguf_template_knows_its_tokens() {
    let metadata = [
        ("tokenizer.chat_template", Meta::Text("{{ bos_token }}|{{ eos_token }}")),
        ("tokenizer.ggml.tokens", Meta::Texts(vec!["<a>".into(), "<b>".into()])),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(9)),
    ];
    let (_folder, path) = file("model.gguf", &gguf_bytes(&metadata, &[]));
    let template = ChatTemplate::from_gguf(&Gguf::open(&path).unwrap()).unwrap().unwrap();
    assert_eq!(template.render(&[], None, false).unwrap(), "<b>|");
}

#[test]
fn text_becomes_a_part_where_a_template_reads_parts_only() {
    let parts = "{% for m in messages %}<{{ m.role }}>{% for part in m['content'] %}{% if part['type'] == 'text' %}\
                 {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}";
    let first = "{% for m in messages %}<{{ m.role }}>{{ m['content'][0]['text'] }}{% endfor %}";
    let of_users = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}{{ m.content[0].text }}\
                    {% else %}{{ m.content }}{% endif %}{% endfor %}";
    let either = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}\
                  {% else %}{{ m.content[0].text }}{% endif %}{% endfor %}";
    let printed = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let messages = [
        json!({"role": "system", "content": "s"}),
        json!({"role": "user", "content": "a"}),
        json!({"role": "assistant", "content": "b"}),
    ];
    for (source, adapted) in [(parts, 3), (first, 3), (of_users, 1), (either, 0), (printed, 0)] {
        let template = ChatTemplate::new(source, None, None).unwrap();
        let readable = template.readable(&messages);
        assert_eq!(
            readable.iter().filter(|message| message["content"].is_array()).count(),
            adapted,
            "{source}"
        );
        assert_eq!(
            template.render(&readable, None, false).unwrap(),
            "<system>s<user>a<assistant>b",
            "{source}"
        );
    }
}

#[test]
fn a_folders_named_special_tokens_are_variables() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write(
        "tokenizer_config.json",
        json!({
        "cls_token": "<c>", "mask_token": {"content": "<m>"}, "extra_special_tokens": {"image_token": "<i>"},
        "additional_special_tokens": ["<x>"], "added_tokens_decoder": {},
        "chat_template": "{{ cls_token }}{{ sep_token }}{{ mask_token }}{{ image_token }}|{{ additional_special_tokens }}"}),
    );
    write("special_tokens_map.json", json!({"sep_token": "<s>"}));
    let template = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], None, false).unwrap(), "<c><s><m><i>|");
    assert!(template.mentions("image_token") && !template.mentions("image"));
}
