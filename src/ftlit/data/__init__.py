"""Images and texts on disk -> examples in three splits; no Lightning."""
