"""`backbone=auto`: a backbone that is still to be chosen among several."""

from collections.abc import Sequence
from typing import Any

from ftlit.errors import UserError
from ftlit.models.backbone import Backbone
from ftlit.zoo.build import BACKBONES


@BACKBONES.register("auto")
def load_auto(*, among: Sequence[Any] | None = None) -> Backbone:
    """Stand for `backbone=auto` in a config. A run replaces it by one of its candidates before it builds anything.

    Args:
        among: names of options of the config group `backbone`, or mappings of an option and its values, as `{backbone: mobilenet_v2,
            weights: FILE}`; `None`: all whose weights are at hand without a download.

    Raises:
        UserError: always, as there is nothing to choose by.
    """
    raise UserError(
        "backbone=auto works only with recipe=finetune, lr_find, probe or advise, because it compares backbones on training images: "
        "give backbone=NAME here"
    )
