"""Recipes: from a config to a result, one page of straight Python each. The only users of Hydra besides the command line."""
