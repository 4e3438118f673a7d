"""Data modules of stored features: what is extracted, where it is kept, and what each stage reads."""
