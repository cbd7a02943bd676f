//! Model files: configuration, weights, tokenizer, chat template, and one file a family.
