"""The command line of training: Hydra composes the config, the recipe that it names runs, mistakes are one line each."""

import os
import sys
from importlib import import_module

import hydra
from omegaconf import DictConfig

from ftlit.errors import unknown

WANTS_TRACEBACK = bool(os.environ.get("HYDRA_FULL_ERROR"))

RECIPES = {"finetune": "ftlit.recipes.finetune", "pretrain": "ftlit.recipes.pretrain"}


def main() -> None:
    """Run what `sys.argv` asks for. A mistake is one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows its traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand over its errors instead of printing them
    try:
        _train()
    except Exception as error:
        exit_if_mistake(error)
        raise


@hydra.main(config_path="pkg://ftlit.conf", config_name="train", version_base="1.3")
def _train(cfg: DictConfig) -> float:
    try:
        if cfg.recipe not in RECIPES:
            raise unknown("recipe", cfg.recipe, RECIPES)
        return import_module(RECIPES[cfg.recipe]).run(cfg)  # type: ignore[no-any-return]
    except Exception as error:
        exit_if_mistake(error)
        raise


def exit_if_mistake(error: Exception) -> None:
    """Say a person's mistake on stderr and exit with status 2; return where the error is none."""
    from ftlit.recipes.mistakes import as_user_error  # here, so that --help stays fast

    if not WANTS_TRACEBACK and (mistake := as_user_error(error)):
        print(f"ftlit: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
