"""Arguments of timm's builders that a config and a checkpoint may set: values that cannot name a file, a URL or code."""

import re
from collections.abc import Mapping
from typing import Any

REPLACED_ARGUMENTS = {  # arguments of timm's builders that backbones do not have -> what to use instead
    "num_classes": "leave it out, because the head is the classifier",
    "img_size": "use backbone.input_spec.size",
    "pretrained": "use backbone.weights",
    "pretrained_cfg": "use backbone.weights and backbone.input_spec",
    "pretrained_cfg_overlay": "use backbone.weights and backbone.input_spec",
    "cache_dir": "set the environment variable HF_HOME",
    "checkpoint_path": "use backbone.weights",
    "features_only": "use backbone.cut",
}
TEXTS = frozenset(  # arguments that take the name of a layer or of a variant
    {
        *("act_layer", "norm_layer", "attn_layer", "aa_layer", "global_pool", "pool_type", "pad_type", "stem_type", "weight_init"),
        *("downsample", "pos_embed", "rope_type", "qk_norm", "class_token", "fc_norm", "norm_layer_cl", "conv_norm_layer", "attn_type"),
    }
)


def refused_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """The names of arguments that are not passed on to timm.

    Numbers, flags and lists of them are passed on under any name but those of `REPLACED_ARGUMENTS`; short texts only as the name of a
    layer or variant.
    """
    return [str(name) for name, value in arguments.items() if name in REPLACED_ARGUMENTS or not _is_plain(str(name), value)]


def _is_plain(name: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(name, inner) for inner in value)
    if isinstance(value, str):
        return name in TEXTS and re.fullmatch(r"\w{0,40}", value) is not None
    return value is None or isinstance(value, bool | int | float)
