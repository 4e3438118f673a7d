"""The only place that knows Hydra: a recipe is one page from config to metrics."""
