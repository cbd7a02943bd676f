//! LoRA training: adapters, data, schedule, checkpoints, the trainer.
