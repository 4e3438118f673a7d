"""Features of frozen layers: keys, storage, extraction."""
