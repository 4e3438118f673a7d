"""Transfer learning with PyTorch Lightning: named layers, staged unfreezing, codes."""

from ftlit.backbone import Backbone as Backbone
from ftlit.errors import UserError as UserError
from ftlit.grouping import build_optimizer as build_optimizer
from ftlit.grouping import param_groups as param_groups
from ftlit.lit.finetuner import FineTuner as FineTuner
from ftlit.lit.staging import StagedFinetuning as StagedFinetuning
from ftlit.schedule import Schedule as Schedule
from ftlit.schedule import Stage as Stage
from ftlit.trainable import set_trainable as set_trainable
from ftlit.transform import InputSpec as InputSpec
from ftlit.zoo import load_backbone as load_backbone
