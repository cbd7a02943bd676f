use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::models::ChatTemplate;

/// Bytes as tokens, except for the special tokens; 1 begins a text and 2, `</s>`, ends it.
struct Bytes {
    template: Option<ChatTemplate>,
}

const SPECIAL: [(&str, u32); 10] = [
    ("</s>", 2),
    ("<|im_start|>", 1003),
    ("<|im_end|>", 1004),
    ("<|user|>", 1005),
    ("<|assistant|>", 1006),
    ("<|end|>", 1007),
    ("<think>", 1008),
    ("</think>", 1009),
    ("<call>", 1010),
    ("[INST]", 1011),
];

impl Bytes {
    fn new(template: &str) -> Self {
        Self { template: Some(ChatTemplate::new(template, Some("<s>"), Some("</s>")).unwrap()) }
    }
}

impl Encoder for Bytes {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut tokens: Vec<u32> = if special { vec![1] } else { Vec::new() };
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let found = SPECIAL.iter().find(|(name, _)| rest.starts_with(name));
            tokens.push(found.map_or(u32::from(first), |(_, id)| *id));
            rest = &rest[found.map_or(first.len_utf8(), |(name, _)| name.len())..];
        }
        Ok(tokens)
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>> {
        let render =
            |template: &ChatTemplate| template.render(&template.readable(messages), tools, generation_prompt);
        self.template.as_ref().map(render).transpose()
    }

    fn render_marked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MarkedText>> {
        let Some(template) = &self.template else { return Ok(None) };
        let messages = template.readable(messages);
        let rendered = template.render_marked(&messages, tools, false, &serde_json::Map::new())?;
        let generation = template.marks_answers(tools.is_some()).then_some(rendered.generation);
        Ok(Some(MarkedText { text: rendered.text, generation }))
    }

    fn eos(&self) -> Option<u32> {
        Some(2)
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        SPECIAL.map(|(name, id)| (name.to_owned(), id)).to_vec()
    }
}

fn written(tokens: impl Iterator<Item = u32>) -> String {
    let name = |token: u32| match SPECIAL.iter().find(|(_, id)| *id == token) {
        Some((name, _)) => (*name).to_owned(),
        None => char::from_u32(token).unwrap().to_string(),
    };
    tokens.map(name).collect()
}

/// The trained text of a sequence, `·` between its parts.
fn trained(example: &Example) -> String {
    let masked: Vec<(u32, bool)> =
        example.tokens.iter().copied().zip(example.supervised.iter().copied()).collect();
    let parts = masked.chunk_by(|a, b| a.1 == b.1).filter(|part| part[0].1);
    parts.map(|part| written(part.iter().map(|(token, _)| *token))).collect::<Vec<_>>().join("·")
}

fn row(record: Record) -> Row {
    Row { record, path: Arc::from(Path::new("x.jsonl")), place: Place::Line(1), unused: Arc::from([]) }
}

fn chat(messages: Value, tools: Option<Value>) -> Row {
    row(Record::Chat { messages: messages.as_array().unwrap().clone(), tools })
}

fn turns(texts: &[&str]) -> Row {
    let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
    let messages =
        texts.iter().enumerate().map(|(index, text)| json!({"role": role(index), "content": text}));
    chat(messages.collect(), None)
}

fn encoded(template: &str, row: &Row) -> EncodedRow {
    let encoder = Bytes::new(template);
    RowEncoder::new(&encoder, TrainOn::Completion, 10_000).unwrap().encode(row).unwrap()
}

/// The trained text of each sequence of a row.
fn masks(template: &str, row: &Row) -> Vec<String> {
    encoded(template, row).samples.iter().map(trained).collect()
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const FOUR: [&str; 4] = ["hi", "yo", "and", "so"];

#[test]
fn answers_and_their_end_tokens_are_trained() {
    assert_eq!(masks(CHATML, &turns(&["hi", "yo"])), ["yo<|im_end|>"]);
    assert_eq!(masks(CHATML, &turns(&FOUR)), ["yo<|im_end|>·so<|im_end|>"]);
    let pair = row(Record::Completion { prompt: "hi".into(), completion: "yo".into() });
    assert_eq!(masks(CHATML, &pair), ["yo<|im_end|>"]);
    assert_eq!(masks(CHATML, &turns(&["hi", ""])), ["<|im_end|>"]);
}

#[test]
fn an_answer_whose_text_the_template_leaves_out_is_refused() {
    let other_key = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.body }}<|im_end|>\n{% endfor %}\
                     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let marked = other_key.replace("{{ m.body }}", "{% generation %}{{ m.body }}{% endgeneration %}");
    for template in [other_key, &marked, "{% set tools = messages %}"] {
        for texts in [&FOUR[..2], &FOUR] {
            let encoder = Bytes::new(template);
            let rows = RowEncoder::new(&encoder, TrainOn::Completion, 100).unwrap();
            let error = rows.encode(&turns(texts)).unwrap_err().to_string();
            assert!(
                error.contains("message 2 (assistant): has text that the chat template leaves out"),
                "{error}"
            );
        }
    }
    // An empty answer loses nothing.
    assert_eq!(masks(other_key, &turns(&["hi", ""])), ["<|im_end|>"]);
}

#[test]
fn answers_are_trained_where_the_template_reads_parts_only() {
    // Like SmolVLM.
    let parts = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}\
                 {% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let first = CHATML.replace("m.content", "m.content[0].text");
    for template in [parts, &first] {
        assert_eq!(masks(template, &turns(&FOUR)), ["yo<|im_end|>·so<|im_end|>"]);
    }
    let marked = parts.replace("{% for part in", "{% generation %}{% for part in");
    let marked = marked.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endgeneration %}\n{% endfor %}");
    assert!(masks(&marked, &turns(&FOUR))[0].ends_with("yo<|im_end|>·and<|im_end|>·so<|im_end|>"));
}

#[test]
fn calls_of_tools_that_the_template_leaves_out_are_not_trained_and_counted() {
    let calls = json!([{"type": "function", "function": {"name": "now", "arguments": {}}}]);
    let row = |content: &str| {
        let message = json!({"role": "assistant", "content": content, "tool_calls": calls});
        let user = json!({"role": "user", "content": "hi"});
        chat(
            json!([user, message, {"role": "tool", "content": "5"}, {"role": "assistant", "content": "five"}]),
            None,
        )
    };
    for (content, expected) in [("", "five<|im_end|>"), ("a moment", "a moment<|im_end|>·five<|im_end|>")] {
        let found = encoded(CHATML, &row(content));
        assert_eq!(found.samples.iter().map(trained).collect::<Vec<_>>(), [expected]);
        assert_eq!(found.notes.calls_left_out, 1);
    }
    assert_eq!(encoded(CALLS, &row("")).notes.calls_left_out, 0);
    let marked = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
                  {% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}";
    let found = encoded(marked, &row(""));
    assert_eq!(
        (found.samples.iter().map(trained).collect::<Vec<_>>(), found.notes.calls_left_out),
        (vec!["five<|end|>".into()], 1)
    );
    // Nothing is left to train.
    let message = json!({"role": "assistant", "content": "", "tool_calls": calls});
    let lone = chat(json!([{"role": "user", "content": "hi"}, message]), None);
    let encoder = Bytes::new(CHATML);
    assert_eq!(encoded(CHATML, &lone).left_out, Some(LeftOut::CallsNotWritten));
    let error = examples(&[lone], &encoder, TrainOn::Completion, 100).unwrap_err().to_string();
    assert!(error.contains("use a model whose chat template writes them"), "{error}");
}

#[test]
fn reasoning_is_trained_where_the_prompt_opens_it_otherwise_than_the_answer() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\
                    {{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n{% endif %}";
    let thought = |text: &str| json!({"role": "assistant", "content": text, "reasoning_content": "so"});
    let user = json!({"role": "user", "content": "hi"});
    let one = chat(json!([user, thought("yo")]), None);
    assert_eq!(masks(template, &one), ["so\n</think>\n\nyo<|im_end|>"]);
    let two = chat(json!([user, thought("yo"), user, thought("ya")]), None);
    assert_eq!(masks(template, &two), ["so\n</think>\n\nyo<|im_end|>", "so\n</think>\n\nya<|im_end|>"]);
}

#[test]
fn the_next_header_is_not_trained_where_a_template_always_writes_one() {
    let always = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                  <|im_start|>assistant\n";
    assert_eq!(masks(always, &turns(&FOUR)), ["yo<|im_end|>·so<|im_end|>"]);
}

#[test]
fn the_header_is_not_trained_where_a_template_never_writes_a_prompt() {
    let never = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    assert_eq!(masks(never, &turns(&FOUR)), ["yo<|im_end|>·so<|im_end|>"]);
}

#[test]
fn an_end_token_that_is_written_only_between_turns_is_trained_after_the_last_one_too() {
    let between = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
                   {% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}\
                   {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let found = encoded(between, &turns(&FOUR));
    assert_eq!(found.samples.iter().map(trained).collect::<Vec<_>>(), ["yo<|im_end|>·so<|im_end|>"]);
    assert_eq!(found.notes.ends_added, 1);
}

#[test]
fn a_template_without_end_tokens_gets_the_models_own_and_says_so() {
    let headers = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}\
                   {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
    let solar = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}\
                 {% if add_generation_prompt %}### assistant:\n{% endif %}";
    let solar_always =
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### assistant:\n";
    for template in [headers, solar, solar_always] {
        let found = encoded(template, &turns(&FOUR));
        let trained: Vec<String> = found.samples.iter().map(trained).collect();
        assert_eq!(trained, ["yo</s>", "so</s>"], "{template}");
        assert_eq!(found.notes.ends_added, 2);
    }
}

#[test]
fn ends_that_differ_for_the_last_turn_are_trained_once() {
    // Like Phi-3: a second token after the last turn.
    let phi = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
               {% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}";
    assert_eq!(masks(phi, &turns(&FOUR)), ["yo<|end|>·so<|end|>"]);
    // Like Llama 2: questions and answers share a turn.
    let llama = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
                 {% else %} {{ m.content }} </s>{% endif %}{% endfor %}";
    assert_eq!(masks(llama, &turns(&FOUR)), ["yo </s>·so </s>"]);
}

/// Like Qwen3: an empty thought before the last answer only.
const THOUGHTS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}\
    {% if loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}{% endif %}\
    {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn an_answer_that_later_messages_change_is_a_sample_of_its_own() {
    let expected = ["<think></think>yo<|im_end|>", "<think></think>so<|im_end|>"];
    assert_eq!(masks(THOUGHTS, &turns(&FOUR)), expected);
    let reasoned = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "reasoning_content": "hm"},
        {"role": "user", "content": "and"}, {"role": "assistant", "content": "so", "reasoning_content": "oh"},
    ]);
    let expected = ["<think>hm</think>yo<|im_end|>", "<think>oh</think>so<|im_end|>"];
    assert_eq!(masks(THOUGHTS, &chat(reasoned, None)), expected);
}

#[test]
fn a_prompt_that_opens_a_thought_is_left_where_the_answer_has_none() {
    let opens = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
    assert_eq!(masks(opens, &turns(&["hi", "yo"])), ["yo<|end|>"]);
    assert_eq!(masks(opens, &turns(&["hi", "<call>x"])), ["<call>x<|end|>"]);
    assert_eq!(masks(opens, &turns(&["hi", "<b>"])), ["<b><|end|>"]);
    assert_eq!(masks(opens, &turns(&["hi", "<think>\nhm</think>yo"])), ["hm</think>yo<|end|>"]);
}

const CALLS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.content %}{{ m.content }}{% endif %}\
    {% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}\
    <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn tool_chat(content: Value) -> Value {
    json!([
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": content, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "five"},
    ])
}

#[test]
fn calls_of_tools_are_trained_with_any_content() {
    for (content, said) in [(json!(null), ""), (json!(""), ""), (json!("well"), "well")] {
        let expected = format!("{said}<call>f {{\"a\": 1}}<|im_end|>·five<|im_end|>");
        assert_eq!(masks(CALLS, &chat(tool_chat(content), None)), [expected]);
    }
}

#[test]
fn tools_that_move_to_the_last_question_split_the_conversation() {
    // Like Mistral: the list of tools is before the last question only.
    let mistral = "{% for m in messages %}{% if m.role == 'user' %}\
        {% if tools and loop.index0 == (messages | selectattr('role', 'equalto', 'user') | list | length - 1) * 2 %}T{% endif %}\
        [INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}";
    let mut row = turns(&FOUR);
    let Record::Chat { tools, .. } = &mut row.record else { unreachable!() };
    *tools = Some(json!([{"type": "function", "function": {"name": "f"}}]));
    let found = encoded(mistral, &row);
    assert_eq!(found.samples.iter().map(trained).collect::<Vec<_>>(), ["yo</s>", "so</s>"]);
    let texts: Vec<String> =
        found.samples.iter().map(|example| written(example.tokens.iter().copied())).collect();
    assert_eq!(texts, ["T[INST]hi[/INST]yo</s>", "[INST]hi[/INST]yo</s>T[INST]and[/INST]so</s>"]);
}

#[test]
fn generation_blocks_decide_where_a_template_has_them() {
    let marked = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
                  {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}";
    assert_eq!(masks(marked, &turns(&FOUR)), ["yo·so"]);
    let weighed = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "weight": 0},
        {"role": "user", "content": "and"}, {"role": "assistant", "content": "so"},
    ]);
    assert_eq!(masks(marked, &chat(weighed, None)), ["so"]);
}

#[test]
fn answers_with_a_weight_of_zero_are_only_read() {
    let messages = |key: &str, value: Value| {
        json!([
            {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", key: value},
            {"role": "user", "content": "and"}, {"role": "assistant", "content": "so", "weight": 1},
        ])
    };
    for messages in [messages("weight", json!(0)), messages("train", json!(false))] {
        assert_eq!(masks(CHATML, &chat(messages, None)), ["so<|im_end|>"]);
    }
}

#[test]
fn without_a_template_the_completion_and_the_end_are_trained() {
    let encoder = Bytes { template: None };
    let rows = [row(Record::Completion { prompt: "hi".into(), completion: "yo".into() })];
    let made = examples(&rows, &encoder, TrainOn::Completion, 100).unwrap();
    assert_eq!(trained(&made.examples[0]), "yo</s>");
    assert_eq!(made.examples[0].tokens[0], 1);
    let error = examples(&[turns(&FOUR)], &encoder, TrainOn::All, 100).unwrap_err().to_string();
    assert!(error.starts_with("x.jsonl (line 1): chat: the model has no chat template"), "{error}");
}

#[test]
fn all_tokens_but_the_first_are_trained_on_request() {
    let made = examples(&[turns(&["hi", "yo"])], &Bytes::new(CHATML), TrainOn::All, 100).unwrap();
    let text = trained(&made.examples[0]);
    assert_eq!(text, "user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n");
}

#[test]
fn long_rows_are_cut_and_left_out_for_the_right_reason() {
    let encoder = Bytes { template: None };
    let pair = |prompt: &str, completion: &str| {
        row(Record::Completion { prompt: prompt.into(), completion: completion.into() })
    };
    let rows = [pair("a", "bcdef"), pair("abcdefgh", "x"), pair("a", "b")];
    let made = examples(&rows, &encoder, TrainOn::Completion, 5).unwrap();
    assert_eq!((made.examples.len(), made.truncated, made.dropped), (2, 1, 1));
    assert_eq!(made.left_out[&LeftOut::TooLong], (1, "line 1".to_owned()));
    assert_eq!(trained(&made.examples[0]), "bcd");
    let error = examples(&rows[1..2], &encoder, TrainOn::Completion, 5).unwrap_err().to_string();
    assert!(
        error.contains("its only row has no token to train") && error.contains("raise the maximum length")
    );
    let silent = chat(json!([{"role": "system", "content": "s"}]), None);
    let error = examples(&[silent], &Bytes::new(CHATML), TrainOn::Completion, 5).unwrap_err().to_string();
    assert!(error.contains("no row has an answer") && !error.contains("length"), "{error}");
}

#[test]
fn errors_of_the_template_name_the_row() {
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x";
    let bad = Row { place: Place::Line(7), ..chat(json!([{"role": "system", "content": "s"}]), None) };
    let error = examples(&[bad], &Bytes::new(refuses), TrainOn::All, 5).unwrap_err().to_string();
    assert!(error.starts_with("x.jsonl (line 7): ") && error.contains("no system here"), "{error}");
}

#[test]
fn special_tokens_inside_an_answer_do_not_move_its_mask() {
    let row = turns(&["<think>", "<|im_end|>yo</think>", "and <call>", "<call>so"]);
    assert_eq!(masks(CHATML, &row), ["<|im_end|>yo</think><|im_end|>·<call>so<|im_end|>"]);
}

mod long;
mod notes;

/// Joins each word with the space before it, as BPE does; `prefix` puts a space before every text, as SentencePiece does.
struct Words {
    bytes: Bytes,
    prefix: bool,
}

impl Encoder for Words {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let text = if self.prefix && !text.is_empty() { format!(" {text}") } else { text.to_owned() };
        let plain = self.bytes.encode(&text, special)?;
        let mut tokens: Vec<u32> = Vec::new();
        for token in plain {
            match tokens.last_mut() {
                // A letter after a space: one token, in a range of its own.
                Some(last) if *last == 32 && (97..=122).contains(&token) => *last = 2000 + token,
                _ => tokens.push(token),
            }
        }
        Ok(tokens)
    }

    fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
        self.bytes.render(messages, tools, prompt)
    }

    fn eos(&self) -> Option<u32> {
        Some(2)
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        self.bytes.special_tokens()
    }
}

/// The first letter of an answer shared a token with the space before it, and was not trained.
#[test]
fn an_answer_after_a_prompt_that_ends_with_a_space_is_trained_whole() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}Q:{{ m.content }} A: {% else %}{{ m.content }}</s>\
                    {% endif %}{% endfor %}";
    let letters = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for prefix in [false, true] {
        let encoder = Words { bytes: Bytes::new(template), prefix };
        let row_encoder = RowEncoder::new(&encoder, TrainOn::Completion, 100).unwrap();
        let chat = row_encoder.encode(&turns(&["x", "yes", "y", "no"])).unwrap();
        let [example] = &chat.samples[..] else { panic!("{chat:?}") };
        let parts: Vec<Vec<u32>> = example
            .tokens
            .iter()
            .zip(&example.supervised)
            .collect::<Vec<_>>()
            .chunk_by(|a, b| a.1 == b.1)
            .filter(|part| *part[0].1)
            .map(|part| part.iter().map(|(token, _)| **token).collect())
            .collect();
        assert_eq!(parts, [[letters("yes"), vec![2]].concat(), [letters("no"), vec![2]].concat()]);
        // What a model is given is what was before the answer in training.
        let prompt = encoder.encode("Q:x A: ", false).unwrap();
        assert!(example.tokens.starts_with(&prompt), "{prompt:?} {:?}", example.tokens);

        // The same without a template, with the tokens that begin and end a text.
        let plain = Words { bytes: Bytes { template: None }, prefix };
        let row_encoder = RowEncoder::new(&plain, TrainOn::Completion, 100).unwrap();
        let record = Record::Completion { prompt: "Q: ".into(), completion: "yes".into() };
        let made = row_encoder.encode(&row(record)).unwrap();
        let example = &made.samples[0];
        assert_eq!(example.tokens, [plain.encode("Q: ", true).unwrap(), letters("yes"), vec![2]].concat());
        assert_eq!(example.trained(), 4);
    }
}
