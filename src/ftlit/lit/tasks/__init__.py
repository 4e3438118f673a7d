"""Tasks: programs that run a Trainer, such as layer-wise pretraining."""
