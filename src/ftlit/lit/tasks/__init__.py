"""Programs over a Trainer."""
