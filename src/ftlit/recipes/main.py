"""The command line of training: Hydra composes the config, the recipe that it names runs, mistakes are one line each."""

import os
import sys
from importlib import import_module

import hydra
from omegaconf import DictConfig

from ftlit.errors import UserError, unknown

RECIPES = {"finetune": "ftlit.recipes.finetune", "pretrain": "ftlit.recipes.pretrain"}


def main() -> None:
    """Run what `sys.argv` asks for. A person's mistake is one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows the traceback."""
    wants_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand over its errors instead of printing them
    try:
        _train()
    except Exception as error:
        from ftlit.recipes.mistakes import as_user_error  # here, so that --help stays fast

        if wants_traceback or (mistake := as_user_error(error)) is None:
            raise
        sys.exit(_say(mistake))


@hydra.main(config_path="pkg://ftlit.conf", config_name="train", version_base="1.3")
def _train(cfg: DictConfig) -> float:
    if cfg.recipe not in RECIPES:
        raise unknown("recipe", cfg.recipe, RECIPES)
    return import_module(RECIPES[cfg.recipe]).run(cfg)  # type: ignore[no-any-return]


def _say(mistake: UserError) -> int:
    print(f"ftlit: {mistake}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
