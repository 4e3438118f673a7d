"""Pretrained networks by name, taken apart into named layers."""

from ftlit.zoo.build import BACKBONES as BACKBONES
from ftlit.zoo.own_models import backbone_from as backbone_from
from ftlit.zoo.text_encoders import load_bert as load_bert
from ftlit.zoo.timm_nets import load_timm as load_timm
from ftlit.zoo.torchvision_nets import load_backbone as load_backbone
from ftlit.zoo.undecided import load_auto as load_auto
