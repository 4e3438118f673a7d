"""Checks of a config before anything is built: values, signatures, parts of the user's own, jobs of a sweep."""
