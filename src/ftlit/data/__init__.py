"""Images and texts on disk as labelled examples in three splits; no Lightning."""
