"""Transfer learning with PyTorch Lightning: named layers, staged unfreezing, codes.

Names are imported when they are first asked for, so that `import ftlit` costs nothing and `--help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlit.backbone import Backbone as Backbone
    from ftlit.backbone import CodesAt as CodesAt
    from ftlit.codes import Codes as Codes
    from ftlit.codes import extract_codes as extract_codes
    from ftlit.dense import fully_convolutional as fully_convolutional
    from ftlit.dense import linear_to_conv as linear_to_conv
    from ftlit.errors import UserError as UserError
    from ftlit.export import export_run as export_run
    from ftlit.grouping import build_optimizer as build_optimizer
    from ftlit.grouping import param_groups as param_groups
    from ftlit.lit.caching import CodesData as CodesData
    from ftlit.lit.finetuner import FineTuner as FineTuner
    from ftlit.lit.images import ImageData as ImageData
    from ftlit.lit.layerwise import LayerwisePretrainer as LayerwisePretrainer
    from ftlit.lit.resuming import LastCheckpoint as LastCheckpoint
    from ftlit.lit.resuming import MetricsFile as MetricsFile
    from ftlit.lit.seeding import SeedEachStep as SeedEachStep
    from ftlit.lit.solving import SolvedHead as SolvedHead
    from ftlit.lit.staging import StagedFinetuning as StagedFinetuning
    from ftlit.network import Network as Network
    from ftlit.network import Prediction as Prediction
    from ftlit.network import load as load
    from ftlit.probe import Probe as Probe
    from ftlit.probe import fit_probe as fit_probe
    from ftlit.rates import Rates as Rates
    from ftlit.rewrite import affine_to_batchnorm as affine_to_batchnorm
    from ftlit.rewrite import batchnorm_to_affine as batchnorm_to_affine
    from ftlit.schedule import Schedule as Schedule
    from ftlit.stage import Stage as Stage
    from ftlit.text import TextSpec as TextSpec
    from ftlit.trainable import set_trainable as set_trainable
    from ftlit.transform import InputSpec as InputSpec
    from ftlit.until import Until as Until
    from ftlit.zoo import load_backbone as load_backbone
    from ftlit.zoo import load_bert as load_bert
    from ftlit.zoo import load_timm as load_timm

_MODULES = {
    "Backbone": "backbone",
    "Codes": "codes",
    "CodesAt": "backbone",
    "CodesData": "lit.caching",
    "FineTuner": "lit.finetuner",
    "ImageData": "lit.images",
    "InputSpec": "transform",
    "LastCheckpoint": "lit.resuming",
    "LayerwisePretrainer": "lit.layerwise",
    "MetricsFile": "lit.resuming",
    "Network": "network",
    "Prediction": "network",
    "Probe": "probe",
    "Rates": "rates",
    "Schedule": "schedule",
    "SeedEachStep": "lit.seeding",
    "SolvedHead": "lit.solving",
    "Stage": "stage",
    "StagedFinetuning": "lit.staging",
    "TextSpec": "text",
    "Until": "until",
    "UserError": "errors",
    "affine_to_batchnorm": "rewrite",
    "batchnorm_to_affine": "rewrite",
    "build_optimizer": "grouping",
    "export_run": "export",
    "extract_codes": "codes",
    "fit_probe": "probe",
    "fully_convolutional": "dense",
    "linear_to_conv": "dense",
    "load": "network",
    "load_backbone": "zoo",
    "load_bert": "zoo",
    "load_timm": "zoo",
    "param_groups": "grouping",
    "set_trainable": "trainable",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ftlit' has no attribute {name!r}")
    return getattr(import_module(f"ftlit.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
