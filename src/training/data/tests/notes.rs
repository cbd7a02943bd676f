//! What the chat template leaves out, changes or writes otherwise than one may expect.

use super::*;

fn refused(template: &str, row: &Row) -> String {
    let encoder = Bytes::new(template);
    RowEncoder::new(&encoder, TrainOn::Completion, 10_000).unwrap().encode(row).unwrap_err().to_string()
}

fn notes(template: &str, row: &Row) -> RowNotes {
    encoded(template, row).notes
}

const NONE: RowNotes = RowNotes {
    ends_added: 0,
    calls_left_out: 0,
    reasoning_left_out: 0,
    empty_answers: 0,
    unanswered: 0,
    tools_left_out: 0,
};

#[test]
fn reasoning_that_the_template_leaves_out_is_counted() {
    for key in ["reasoning", "reasoning_content", "thinking"] {
        let thought = |content: &str| json!({"role": "assistant", "content": content, key: " hm\n"});
        let user = json!({"role": "user", "content": "hi"});
        let row = chat(json!([user, thought("yo"), user, thought("so")]), None);
        assert_eq!(notes(CHATML, &row), RowNotes { reasoning_left_out: 2, ..NONE }, "{key}");
    }
    let user = json!({"role": "user", "content": "hi"});
    let thought = json!({"role": "assistant", "content": "yo", "reasoning_content": "hm"});
    let row = chat(json!([user, thought, user, thought]), None);
    // Each answer is a sample with its thought.
    assert_eq!(notes(THOUGHTS, &row), NONE);
    let loud = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ (m.reasoning_content or '') | upper }}{{ m.content }}\
                <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(notes(loud, &row), NONE);
}

#[test]
fn empty_answers_are_counted_and_their_end_is_trained() {
    let empty = row(Record::Completion { prompt: "hi".into(), completion: String::new() });
    assert_eq!(
        (masks(CHATML, &empty), notes(CHATML, &empty)),
        (vec!["<|im_end|>".to_owned()], RowNotes { empty_answers: 1, ..NONE })
    );
    assert_eq!(notes(CHATML, &turns(&["hi", " ", "and", "so"])), RowNotes { empty_answers: 1, ..NONE });
    let plain = Bytes { template: None };
    let made = examples(&[empty], &plain, TrainOn::Completion, 100).unwrap();
    assert_eq!((made.notes.empty_answers, trained(&made.examples[0])), (1, "</s>".to_owned()));
    // A template with blocks can write nothing for it.
    let marked = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
                  {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}";
    assert_eq!(encoded(marked, &turns(&["hi", ""])).left_out, Some(LeftOut::EmptyAnswer));
}

#[test]
fn a_last_question_without_an_answer_is_counted() {
    assert_eq!(notes(CHATML, &turns(&["hi", "yo", "and"])), RowNotes { unanswered: 1, ..NONE });
    assert_eq!(masks(CHATML, &turns(&["hi", "yo", "and"])), ["yo<|im_end|>"]);
    assert_eq!(notes(CHATML, &turns(&FOUR)), NONE);
}

#[test]
fn tools_that_the_template_leaves_out_are_counted() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let row = |tools: Value| {
        chat(json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]), Some(tools))
    };
    assert_eq!(notes(CHATML, &row(tools.clone())), RowNotes { tools_left_out: 1, ..NONE });
    assert_eq!(notes(CALLS, &row(tools.clone())), NONE);
    let made = examples(&[row(tools)], &Bytes::new(CHATML), TrainOn::All, 100).unwrap();
    assert_eq!(made.notes.tools_left_out, 1);
}

#[test]
fn a_message_without_content_that_the_template_needs_is_named() {
    let needs =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content + '' }}<|im_end|>\n{% endfor %}";
    for content in [json!({}), json!({"content": null})] {
        let mut call = content;
        call["role"] = "assistant".into();
        call["tool_calls"] = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
        let row = chat(json!([{"role": "user", "content": "hi"}, call]), None);
        let expected = "x.jsonl (line 1): message 2 (assistant): has no 'content', which this chat template needs in every \
                        message; write \"content\": \"\" beside its tool calls";
        assert_eq!(refused(needs, &row), expected);
        let all = examples(&[row], &Bytes::new(needs), TrainOn::All, 100).unwrap_err().to_string();
        assert_eq!(all, expected);
    }
}

#[test]
fn text_that_the_template_changes_is_refused_for_that_reason() {
    let loud = CHATML.replace("m.content", "m.content | upper");
    let error = refused(&loud, &turns(&FOUR));
    assert!(
        error.contains(
            "message 2 (assistant): has text that the chat template changes, to upper case for example"
        ),
        "{error}"
    );
    // Blocks mark it all the same.
    let marked = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>\
                  {% generation %}{{ m.content | upper }}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}";
    assert_eq!(masks(marked, &turns(&FOUR)), ["YO<|im_end|>·SO<|im_end|>"]);
}

#[test]
fn a_template_that_writes_messages_backwards_is_refused() {
    let backwards = CHATML.replace("in messages", "in messages | reverse");
    let marked = backwards.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}");
    let sliced = CHATML.replace("in messages", "in messages[::-1]");
    for template in [&backwards, &marked, &sliced] {
        let error = refused(template, &turns(&FOUR));
        assert!(
            error.contains("chat template: writes the messages of a chat in another order than they come"),
            "{error}"
        );
    }
    // A template may leave out earlier turns.
    let last = "{% for m in messages[-2:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                {% if add_generation_prompt %}<|assistant|>{% endif %}";
    assert_eq!(masks(last, &turns(&["hi", "yo"])), ["yo<|end|>"]);
}

/// Blocks of a template that writes no token after an answer.
const BARE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
                    {% else %}{{ m.content }}{% endif %}{% endfor %}";

#[test]
fn blocks_without_an_end_token_get_the_models_own() {
    let found = encoded(BARE, &turns(&FOUR));
    assert_eq!(found.samples.iter().map(trained).collect::<Vec<_>>(), ["yo</s>", "so</s>"]);
    assert_eq!(found.notes, RowNotes { ends_added: 2, ..NONE });
    let lines = BARE.replace("{% endfor %}", "\n{% endfor %}");
    assert_eq!(masks(&lines, &turns(&["hi", "yo"])), ["yo</s>"]);
    // A token in the block, or after it, is the template's own end.
    for inside in ["</s>{% endgeneration %}", "{% endgeneration %}</s>"] {
        let ended = BARE.replace("{% endgeneration %}", inside);
        assert_eq!(notes(&ended, &turns(&FOUR)), NONE, "{inside}");
    }
}

/// A token of two letters, `un` and `to` and so on, wherever two come together.
struct Pairs(Bytes);

impl Encoder for Pairs {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut tokens: Vec<u32> = Vec::new();
        for token in self.0.encode(text, special)? {
            match tokens.last_mut() {
                Some(last) if (97..=122).contains(last) && (97..=122).contains(&token) => {
                    *last = *last * 1000 + token
                }
                _ => tokens.push(token),
            }
        }
        Ok(tokens)
    }

    fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
        self.0.render(messages, tools, prompt)
    }

    fn render_marked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MarkedText>> {
        self.0.render_marked(messages, tools)
    }

    fn eos(&self) -> Option<u32> {
        Some(2)
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        self.0.special_tokens()
    }
}

#[test]
fn a_token_across_the_end_of_an_answer_is_not_trained() {
    // The second block ends with a token, so the text goes on after the first one.
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
                    {% else %}{{ m.content }}!{% endif %}{% endfor %}</s>";
    let encoder = Pairs(Bytes::new(template));
    let rows = RowEncoder::new(&encoder, TrainOn::Completion, 100).unwrap();
    let row = rows.encode(&turns(&["ab", "one", "to", "so"])).unwrap();
    let [first, ..] = row.samples.as_slice() else { panic!("{row:?}") };
    let trained: Vec<u32> = first
        .tokens
        .iter()
        .zip(&first.supervised)
        .filter(|(_, trained)| **trained)
        .map(|(token, _)| *token)
        .collect();
    // on, e; not et, of which the t begins the next question.
    assert_eq!(trained[..2], [111_110, 101], "{:?}", first.tokens);
    assert!(row.samples.iter().all(|sample| !sample.tokens.contains(&101_116)));
}

/// A tokenizer with more tokens than the model.
struct Large(Bytes);

impl Encoder for Large {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.0.encode(text, special)
    }

    fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
        self.0.render(messages, tools, prompt)
    }

    fn eos(&self) -> Option<u32> {
        Some(2)
    }

    fn embeddings(&self) -> Option<usize> {
        Some(1005)
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        self.0.special_tokens()
    }
}

#[test]
fn a_token_without_an_embedding_is_refused_with_its_place() {
    let encoder = Large(Bytes::new(CHATML));
    let rows = RowEncoder::new(&encoder, TrainOn::Completion, 100).unwrap();
    rows.encode(&turns(&FOUR)).unwrap();
    let error = rows.encode(&turns(&["hi", "<think>yo"])).unwrap_err().to_string();
    let expected =
        "x.jsonl (line 1): token: is 1008 (<think>), but the model has embeddings for 1005 tokens only";
    assert!(error.starts_with(expected), "{error}");
}
