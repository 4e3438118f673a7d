"""The network that ships with the package: a small ResNet (He et al. 2016) for 32x32 images, pretrained on rendered glyphs.

`python train.py experiment=pretrain_glyph` produces its weights, `glyph.safetensors` beside this file (see docs/backbones.md).
"""

from pathlib import Path

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1

from ftlit.data.input_spec import InputSpec
from ftlit.models.backbone import Layers
from ftlit.zoo.blocks import sequential

FILE = Path(__file__).with_name("glyph.safetensors")
INPUT_SPEC = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WIDTHS = {"layer1": 32, "layer2": 64, "layer3": 96, "layer4": 128}
STRIDES = {"layer1": 2, "layer2": 2, "layer3": 2, "layer4": 1}


def build() -> Layers:
    """Build the network with random weights: (N, 3, 32, 32) -> (N, 128, 4, 4).

    A stem and four layers of one basic block each; 494,368 parameters.
    """
    layers: dict[str, nn.Module] = {
        "stem": sequential(conv1=nn.Conv2d(3, 32, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(32), relu=nn.ReLU(inplace=True))
    }
    in_channels = 32
    for name, out_channels in WIDTHS.items():
        layers[name] = _block(in_channels, out_channels, STRIDES[name])
        in_channels = out_channels
    network = Layers(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _block(in_channels: int, out_channels: int, stride: int) -> BasicBlock:
    downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    return BasicBlock(in_channels, out_channels, stride, downsample)
