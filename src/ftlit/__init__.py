"""Transfer learning with PyTorch Lightning: named layers, staged unfreezing, codes."""

from ftlit.backbone import Backbone as Backbone
from ftlit.errors import UserError as UserError
from ftlit.transform import InputSpec as InputSpec
