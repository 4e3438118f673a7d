"""How each torchvision family comes apart: model -> named layers and the severed classifier, which share its modules.

Layers keep torchvision's names where it has any. An operation without parameters or a lone norm goes with the layer it
follows, a downsampling with the stage it leads to. Only the last linear layer is severed; a pool, flatten or dropout right
before it goes with it, so that a convolutional network's last codes are its un-pooled map. Auxiliary heads fall away.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.squeezenet import Fire

from ftlit.backbone import Layers
from ftlit.zoo.parts import Parts, Renormalise, named, pooled
from ftlit.zoo.transformers import maxvit, stages, swin, vit

Run = list[nn.Module]


def take_apart(model: nn.Module) -> Parts:
    """The named layers and the classifier of a torchvision classification network, or of `Layers`, which has no classifier.

    Law 1: in eval mode `classifier(layers one after the other(x)) == model(x)`. Modules are shared, not copied.

    Raises:
        KeyError: a type of network that the table `FAMILIES` lacks.
    """
    return FAMILIES[type(model)](model)


def _alexnet(model: Any) -> Parts:
    return _with_fully_connected(model, _split(model.features, before=(nn.Conv2d,)))


def _vgg(model: Any) -> Parts:
    return _with_fully_connected(model, _split(model.features, after=(nn.MaxPool2d,)))


def _with_fully_connected(model: Any, convs: list[Run]) -> Parts:
    """`fc6` and `fc7` end with their ReLU: these are the 4096-D codes of Razavian et al. 2014 and Donahue et al. 2014."""
    fc6, fc7, last = _split(model.classifier, after=(nn.ReLU,))
    layers = {f"conv{i}": named(**_by_kind(run)) for i, run in enumerate(convs, 1)}
    layers["fc6"] = named(avgpool=model.avgpool, flatten=nn.Flatten(1), **_by_kind(fc6))
    layers["fc7"] = named(**_by_kind(fc7))
    return Parts(layers, named(**_by_kind(last)))


def _resnet(model: Any) -> Parts:
    stem = named(**_children(model, "conv1", "bn1", "relu", "maxpool"))
    return Parts({"stem": stem, **_children(model, "layer1", "layer2", "layer3", "layer4")}, pooled(fc=model.fc))


def _densenet(model: Any) -> Parts:
    *stem, norm = [name for name, _ in model.features.named_children() if name.startswith(("conv", "norm", "relu", "pool"))]
    pieces = dict(model.features.named_children())
    layers = {"stem": {name.rstrip("0"): pieces[name] for name in stem}}
    for before, name in pairwise(name for name in pieces if name not in stem):
        if name.startswith("denseblock"):
            transition = {"transition": pieces[before]} if before.startswith("transition") else {}
            layers[name] = {**transition, "block": pieces[name]}
    layers[name] |= {"norm": pieces[norm], "relu": nn.ReLU(inplace=True)}
    return Parts({name: named(**held) for name, held in layers.items()}, pooled(classifier=model.classifier))
