"""The `config.yaml` of earlier versions: what it lacks, or names otherwise, becomes the present setting of the same value."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

# what a head that was only fitted read in runs of versions without these settings; `auto` stands for more now
BEFORE_SEVERAL_CUTS = {"head.cuts": None, "data.views": 0}
NO_AVERAGE = {"_target_": "ftlit.lit.callbacks.wise_weights.no_average"}


def upgrade_settings(config: DictConfig, chosen: dict[str, Any]) -> None:
    """Give the settings of a run of an earlier version, and its chosen options, today's names and values, in place."""
    _move_views(config, chosen)
    _add_what_fitted_heads_read(config)
    if "average" not in config:  # earlier versions have no averages
        config.average = OmegaConf.create(NO_AVERAGE)
        chosen["average"] = "none"


def _move_views(config: DictConfig, chosen: dict[str, Any]) -> None:
    """Rename `cache.views` of runs of earlier versions to `data.views`, in place; there 1 stood for the plain view."""
    views = (config.get("cache") or {}).pop("views", 1)
    if views > 1 and _may_have_views(config):
        config.data.views = views
    if chosen.get("cache") == "views":
        chosen["cache"] = "auto"


def _add_what_fitted_heads_read(config: DictConfig) -> None:
    """Set `BEFORE_SEVERAL_CUTS`, in place, where an earlier version only fitted the head, so that it is not fitted again as another one.

    Where training follows, `auto` stands for the same values still.
    """
    recipe, head, schedule, stages = (
        OmegaConf.select(config, name) for name in ("recipe", "head._target_", "schedule._target_", "schedule.stages")
    )
    if recipe != "finetune" or head != "head:linear_probe" or "cuts" in config.head:
        return
    if not (all(stage.train in ("head", ["head"]) for stage in stages) if stages else schedule == "schedule:head_only"):
        return
    config.head.cuts = BEFORE_SEVERAL_CUTS["head.cuts"]
    if _may_have_views(config):
        config.data.views = BEFORE_SEVERAL_CUTS["data.views"]


def _may_have_views(config: DictConfig) -> bool:
    """Whether the data source has the option `views`, which those with `mix` have."""
    return "mix" in config.data
