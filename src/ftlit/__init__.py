"""Transfer learning with PyTorch Lightning: named layers, staged unfreezing, features.

Names are imported when they are first asked for, so that `import ftlit` costs nothing and `--help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlit.api.calls import advise as advise
    from ftlit.api.calls import finetune as finetune
    from ftlit.api.calls import probe as probe
    from ftlit.api.predictions import predict as predict
    from ftlit.api.results import Advised as Advised
    from ftlit.api.results import Finetuned as Finetuned
    from ftlit.api.results import Probed as Probed
    from ftlit.data.input_spec import InputSpec as InputSpec
    from ftlit.data.tokens import TextSpec as TextSpec
    from ftlit.errors import UserError as UserError
    from ftlit.export.hand_over import export_run as export_run
    from ftlit.features.extract import Features as Features
    from ftlit.features.extract import extract_features as extract_features
    from ftlit.finetuning import schedules as schedules
    from ftlit.finetuning.examine import examine as examine
    from ftlit.finetuning.freeze import set_trainable as set_trainable
    from ftlit.finetuning.interpolation import interpolated as interpolated
    from ftlit.finetuning.lr_schedule import Rates as Rates
    from ftlit.finetuning.param_groups import build_optimizer as build_optimizer
    from ftlit.finetuning.param_groups import param_groups as param_groups
    from ftlit.finetuning.schedule import Schedule as Schedule
    from ftlit.finetuning.stage import Stage as Stage
    from ftlit.finetuning.stage import Until as Until
    from ftlit.inference.load_network import load as load
    from ftlit.inference.network import Network as Network
    from ftlit.inference.prediction import Prediction as Prediction
    from ftlit.lit.callbacks.ema_weights import EmaWeights as EmaWeights
    from ftlit.lit.callbacks.exact_resume import LastCheckpoint as LastCheckpoint
    from ftlit.lit.callbacks.metrics_file import MetricsFile as MetricsFile
    from ftlit.lit.callbacks.probe_head import FitProbeHead as FitProbeHead
    from ftlit.lit.callbacks.seed_each_step import SeedEachStep as SeedEachStep
    from ftlit.lit.datamodules.image_data import ImageData as ImageData
    from ftlit.lit.datamodules.resumable_data import ResumableData as ResumableData
    from ftlit.lit.features.feature_data import FeatureData as FeatureData
    from ftlit.lit.module import FineTuner as FineTuner
    from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy as Fsdp2Strategy
    from ftlit.lit.stages.staged_finetuning import StagedFinetuning as StagedFinetuning
    from ftlit.lit.tasks.layerwise_pretraining import LayerwisePretrainer as LayerwisePretrainer
    from ftlit.models.backbone import Backbone as Backbone
    from ftlit.models.batchnorm_fold import affine_to_batchnorm as affine_to_batchnorm
    from ftlit.models.batchnorm_fold import batchnorm_to_affine as batchnorm_to_affine
    from ftlit.models.feature_batch import FeatureBatch as FeatureBatch
    from ftlit.models.fully_convolutional import fully_convolutional as fully_convolutional
    from ftlit.models.fully_convolutional import linear_to_conv as linear_to_conv
    from ftlit.models.lora import Lora as Lora
    from ftlit.models.lora import add_lora as add_lora
    from ftlit.models.lora import merge_lora as merge_lora
    from ftlit.models.weights_origin import WeightsOrigin as WeightsOrigin
    from ftlit.probes.linear_probe import Probe as Probe
    from ftlit.probes.linear_probe import fit_probe as fit_probe
    from ftlit.zoo import backbone_from as backbone_from
    from ftlit.zoo import load_backbone as load_backbone
    from ftlit.zoo import load_bert as load_bert
    from ftlit.zoo import load_timm as load_timm

__version__ = "0.1.0"  # the only place; pyproject.toml reads it

_MODULES = {
    "Advised": "api.results",
    "Backbone": "models.backbone",
    "EmaWeights": "lit.callbacks.ema_weights",
    "Features": "features.extract",
    "FeatureBatch": "models.feature_batch",
    "FeatureData": "lit.features.feature_data",
    "FineTuner": "lit.module",
    "Finetuned": "api.results",
    "Fsdp2Strategy": "lit.sharding.fsdp2",
    "ImageData": "lit.datamodules.image_data",
    "InputSpec": "data.input_spec",
    "LastCheckpoint": "lit.callbacks.exact_resume",
    "LayerwisePretrainer": "lit.tasks.layerwise_pretraining",
    "Lora": "models.lora",
    "MetricsFile": "lit.callbacks.metrics_file",
    "Network": "inference.network",
    "Prediction": "inference.prediction",
    "Probe": "probes.linear_probe",
    "Probed": "api.results",
    "Rates": "finetuning.lr_schedule",
    "ResumableData": "lit.datamodules.resumable_data",
    "Schedule": "finetuning.schedule",
    "SeedEachStep": "lit.callbacks.seed_each_step",
    "FitProbeHead": "lit.callbacks.probe_head",
    "Stage": "finetuning.stage",
    "StagedFinetuning": "lit.stages.staged_finetuning",
    "TextSpec": "data.tokens",
    "Until": "finetuning.stage",
    "UserError": "errors",
    "WeightsOrigin": "models.weights_origin",
    "add_lora": "models.lora",
    "advise": "api.calls",
    "affine_to_batchnorm": "models.batchnorm_fold",
    "backbone_from": "zoo",
    "batchnorm_to_affine": "models.batchnorm_fold",
    "build_optimizer": "finetuning.param_groups",
    "examine": "finetuning.examine",
    "export_run": "export.hand_over",
    "extract_features": "features.extract",
    "finetune": "api.calls",
    "fit_probe": "probes.linear_probe",
    "fully_convolutional": "models.fully_convolutional",
    "interpolated": "finetuning.interpolation",
    "linear_to_conv": "models.fully_convolutional",
    "load": "inference.load_network",
    "load_backbone": "zoo",
    "load_bert": "zoo",
    "load_timm": "zoo",
    "merge_lora": "models.lora",
    "param_groups": "finetuning.param_groups",
    "predict": "api.predictions",
    "probe": "api.calls",
    "schedules": "finetuning.schedules",
    "set_trainable": "finetuning.freeze",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        from ftlit.renamed import PUBLIC_NAMES

        if new := PUBLIC_NAMES.get(name):  # an ImportError: `from ftlit import ...` replaces the text of an AttributeError
            raise ImportError(f"ftlit.{name} is now named ftlit.{new}", name="ftlit")
        raise AttributeError(f"module 'ftlit' has no attribute {name!r}")
    module = import_module(f"ftlit.{_MODULES[name]}")
    return module if name == "schedules" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
