//! Long conversations.

use std::cell::Cell;

use super::*;

/// The masks of a conversation, of which the answers are found one by one.
fn one_by_one(template: &str, messages: &Value) -> Vec<String> {
    let all = messages.as_array().unwrap();
    let is_answer = |index: &usize| all[*index]["role"] == "assistant";
    let alone = |index: usize| {
        let mut one = messages.clone();
        for (other, message) in one.as_array_mut().unwrap().iter_mut().enumerate() {
            if other != index && message["role"] == "assistant" {
                message["weight"] = 0.into();
            }
        }
        masks(template, &chat(one, None)).concat()
    };
    (0..all.len()).filter(is_answer).map(alone).collect()
}

#[test]
fn long_conversations_are_masked_as_their_answers_are_alone() {
    let between = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}\
                   {% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}\
                   {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let no_end = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}\
                  {% if add_generation_prompt %}### assistant:\n{% endif %}";
    let llama = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
                 {% else %} {{ m.content }} </s>{% endif %}{% endfor %}";
    let mut messages = Vec::new();
    for turn in 0..20 {
        messages.push(json!({"role": "user", "content": format!(" question {turn}\n")}));
        if turn % 4 == 3 {
            let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"a": turn}}}]);
            messages.push(json!({"role": "assistant", "content": "", "tool_calls": call}));
            messages.push(json!({"role": "tool", "content": format!("{turn}")}));
        }
        let reasoning = if turn % 5 == 0 { json!("hm") } else { Value::Null };
        let text = if turn == 7 { "so".to_owned() } else { format!("answer {turn} ") };
        messages.push(json!({"role": "assistant", "content": text, "reasoning_content": reasoning}));
    }
    let messages = Value::from(messages);
    for template in [CHATML, between, no_end, llama, CALLS, THOUGHTS] {
        let together = masks(template, &chat(messages.clone(), None));
        let alone = one_by_one(template, &messages);
        let written: Vec<String> = alone.into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(together.join("·").split('·').collect::<Vec<_>>(), written, "{template}");
    }
}

/// Counts the bytes that are encoded and the messages that are rendered.
struct Counting {
    encoder: Bytes,
    bytes: Cell<usize>,
    messages: Cell<usize>,
}

impl Encoder for Counting {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.bytes.set(self.bytes.get() + text.len());
        self.encoder.encode(text, special)
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>> {
        self.messages.set(self.messages.get() + messages.len());
        self.encoder.render(messages, tools, generation_prompt)
    }

    fn eos(&self) -> Option<u32> {
        self.encoder.eos()
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        self.encoder.special_tokens()
    }
}

#[test]
fn a_long_conversation_is_encoded_and_rendered_a_few_times_only() {
    for answers in [50, 100] {
        let texts: Vec<String> = (0..2 * answers).map(|turn| format!("text {turn}")).collect();
        let row = turns(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let counting = Counting { encoder: Bytes::new(CHATML), bytes: Cell::new(0), messages: Cell::new(0) };
        let rows = RowEncoder::new(&counting, TrainOn::Completion, 1_000_000).unwrap();
        let found = rows.encode(&row).unwrap();
        assert_eq!(trained(&found.samples[0]).split('·').count(), answers);
        let text = written(found.samples[0].tokens.iter().copied()).len();
        // Once as a whole, and each answer with its header for the beginning and the end of its mask.
        assert!(counting.bytes.get() < 3 * text, "{} of {text}", counting.bytes.get());
        // The whole text twice, four answers and the end of a turn.
        assert!(counting.messages.get() < 14 * 2 * answers, "{} messages", counting.messages.get());
    }
}
