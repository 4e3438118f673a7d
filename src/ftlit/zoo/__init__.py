"""Pretrained networks by name, taken apart into named layers."""

from ftlit.zoo.bert import load_bert as load_bert
from ftlit.zoo.load import load_backbone as load_backbone
from ftlit.zoo.timm_nets import load_timm as load_timm
