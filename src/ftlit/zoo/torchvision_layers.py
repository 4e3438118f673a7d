"""Named layers of each torchvision family: network -> named layers and classifier, which share its modules.

Layers keep torchvision's names where there are any. A module without parameters or a single norm belongs to the layer before it, a
downsampling to the stage after it. Only the last linear layer is the classifier, together with a pooling, flattening or dropout right
before it, so the last features of a convolutional network are a map before pooling. Auxiliary heads are dropped. Where the user has
replaced the whole classifier, all of it is the classifier.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.squeezenet import Fire

from ftlit.models.backbone import Layers
from ftlit.zoo.blocks import NetworkParts, Renormalise, pooled_sequential, sequential
from ftlit.zoo.vision_transformers import maxvit, stages, swin, vit


def take_apart(model: nn.Module) -> NetworkParts:
    """Split a torchvision classification network, or `Layers` (which have no classifier), into named layers and classifier.

    Invariant 1: in eval mode `classifier(layers one after the other(x)) == model(x)`. Modules are shared, not copied.

    Raises:
        KeyError: a type of network that is not in `FAMILIES`.
    """
    return FAMILIES[type(model)](model)


def _alexnet(model: Any) -> NetworkParts:
    return _with_fully_connected(model, _split(model.features, before=(nn.Conv2d,)))


def _vgg(model: Any) -> NetworkParts:
    return _with_fully_connected(model, _split(model.features, after=(nn.MaxPool2d,)))


def _with_fully_connected(model: Any, convs: list[list[nn.Module]]) -> NetworkParts:
    """Split the classifier too: `fc6` and `fc7` include their ReLU.

    These are the 4,096-D CNN features of Razavian et al. 2014 (section 2) and of the CS231n notes.
    """
    layers = {f"conv{i}": sequential(**_by_short_name(group)) for i, group in enumerate(convs, 1)}
    vector = {"avgpool": model.avgpool, "flatten": nn.Flatten(1)}
    groups = _split(_modules(model.classifier), after=(nn.ReLU,))
    if len(groups) != 3:
        return NetworkParts(layers, sequential(**vector, classifier=model.classifier))
    fc6, fc7, last = map(_by_short_name, groups)
    layers |= {"fc6": sequential(**vector, **fc6), "fc7": sequential(**fc7)}
    return NetworkParts(layers, sequential(**last))


def _resnet(model: Any) -> NetworkParts:
    stem = sequential(**_children(model, "conv1", "bn1", "relu", "maxpool"))
    return NetworkParts({"stem": stem, **_children(model, "layer1", "layer2", "layer3", "layer4")}, pooled_sequential(fc=model.fc))


def _densenet(model: Any) -> NetworkParts:
    features = dict(model.features.named_children())
    layers = {"stem": {name.rstrip("0"): features[name] for name in ("conv0", "norm0", "relu0", "pool0")}}
    blocks = [block for name, block in features.items() if name.startswith("denseblock")]
    for i, block in enumerate(blocks, 1):
        transition = {"transition": features[f"transition{i - 1}"]} if i > 1 else {}
        layers[f"denseblock{i}"] = {**transition, "block": block}
    layers[f"denseblock{len(blocks)}"] |= {"norm": features["norm5"], "relu": nn.ReLU(inplace=True)}
    return NetworkParts({name: sequential(**modules) for name, modules in layers.items()}, pooled_sequential(linear=model.classifier))


def _googlenet(model: Any) -> NetworkParts:
    stem = _children(model, "conv1", "maxpool1", "conv2", "conv3", "maxpool2")
    blocks = {name: block for name, block in model.named_children() if name.startswith("inception")}
    for name, maxpool in (("inception3b", model.maxpool3), ("inception4e", model.maxpool4)):
        blocks[name] = sequential(block=blocks[name], maxpool=maxpool)
    return _inception_like(model, stem, blocks)


def _inception_v3(model: Any) -> NetworkParts:
    stem = _children(model, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    return _inception_like(model, stem, {name: block for name, block in model.named_children() if name.startswith("Mixed")})


def _inception_like(model: Any, stem: dict[str, nn.Module], blocks: dict[str, nn.Module]) -> NetworkParts:
    renormalise = {"renormalise": Renormalise()} if model.transform_input else {}
    return NetworkParts({"stem": sequential(**renormalise, **stem), **blocks}, pooled_sequential(dropout=model.dropout, fc=model.fc))


def _squeezenet(model: Any) -> NetworkParts:
    """Split a SqueezeNet: its classifier is a 1x1 convolution with the ReLU and the pooling after it."""
    conv1, *fires = _split(model.features, before=(Fire,))
    layers = {"conv1": sequential(**_by_short_name(conv1))} | {
        f"fire{i}": sequential(**_by_short_name(group)) for i, group in enumerate(fires, 2)
    }
    return NetworkParts(layers, sequential(**_classifier(model), flatten=nn.Flatten(1)))


def _shufflenet(model: Any) -> NetworkParts:
    conv1 = sequential(**_by_short_name(model.conv1), maxpool=model.maxpool)
    return NetworkParts({"conv1": conv1, **_children(model, "stage2", "stage3", "stage4", "conv5")}, pooled_sequential(fc=model.fc))


def _features(model: Any) -> dict[str, nn.Module]:
    return {f"features.{i}": module for i, module in enumerate(model.features)}


def _modules(classifier: nn.Module) -> list[nn.Module]:
    """The modules of a classifier; the classifier itself where the user has replaced it by a single module."""
    return list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]


def _classifier(model: Any) -> dict[str, nn.Module]:
    """The modules of the classifier by name, or all of it where the user has replaced it by modules of other types."""
    if isinstance(model.classifier, nn.Sequential) and all(type(module) in SHORT_NAMES for module in model.classifier):
        return _by_short_name(model.classifier)
    return {"classifier": model.classifier}


def _features_and_linear(model: Any) -> NetworkParts:
    return NetworkParts(_features(model), pooled_sequential(**_classifier(model)))


def _mobilenet_v3(model: Any) -> NetworkParts:
    modules = _modules(model.classifier)
    if len(modules) != 4 or [type(module) for module in modules[:3]] != [nn.Linear, nn.Hardswish, nn.Dropout]:
        return NetworkParts(_features(model), pooled_sequential(classifier=model.classifier))
    linear, activation, dropout, last = modules
    fc = pooled_sequential(linear=linear, activation=activation)
    return NetworkParts({**_features(model), "fc": fc}, sequential(dropout=dropout, linear=last))


def _mnasnet(model: Any) -> NetworkParts:
    """Split an MNASNet: eight modules of stem, six stacks, then convolution, norm and ReLU."""
    modules = list(model.layers)
    stacks = {f"stack{i}": stack for i, stack in enumerate(modules[8:14], 1)}
    layers = {"stem": sequential(**_by_short_name(modules[:8])), **stacks, "conv_last": sequential(**_by_short_name(modules[14:]))}
    return NetworkParts(layers, pooled_sequential(**_classifier(model)))


def _regnet(model: Any) -> NetworkParts:
    return NetworkParts({"stem": model.stem, **dict(model.trunk_output.named_children())}, pooled_sequential(fc=model.fc))


def _convnext(model: Any) -> NetworkParts:
    """Split a ConvNeXt: the final norm acts on the pooled map, so the last layer gives a vector."""
    grouped = stages(model.features)
    classifier: nn.Module = sequential(avgpool=model.avgpool, classifier=model.classifier)
    modules = _modules(model.classifier)
    if len(modules) == 3 and [type(module) for module in modules[:2]] == [LayerNorm2d, nn.Flatten]:
        norm, flatten, classifier = modules
        grouped[f"stage{len(grouped)}"] |= {"avgpool": model.avgpool, "norm": norm, "flatten": flatten}
    return NetworkParts({"stem": model.features[0]} | {name: sequential(**inner) for name, inner in grouped.items()}, classifier)


def _layers(model: Layers) -> NetworkParts:
    return NetworkParts(dict(model.items()), nn.Identity())


FAMILIES: dict[type[nn.Module], Callable[[Any], NetworkParts]] = {
    Layers: _layers,
    models.AlexNet: _alexnet,
    models.VGG: _vgg,
    models.ResNet: _resnet,
    models.DenseNet: _densenet,
    models.GoogLeNet: _googlenet,
    models.Inception3: _inception_v3,
    models.SqueezeNet: _squeezenet,
    models.ShuffleNetV2: _shufflenet,
    models.MobileNetV2: _features_and_linear,
    models.MobileNetV3: _mobilenet_v3,
    models.EfficientNet: _features_and_linear,
    models.MNASNet: _mnasnet,
    models.RegNet: _regnet,
    models.ConvNeXt: _convnext,
    models.VisionTransformer: vit,
    models.SwinTransformer: swin,
    models.MaxVit: maxvit,
}

SHORT_NAMES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "bn",
    nn.ReLU: "relu",
    nn.MaxPool2d: "maxpool",
    nn.AdaptiveAvgPool2d: "avgpool",
    nn.Dropout: "dropout",
    nn.Linear: "linear",
    Fire: "fire",
}


def _children(model: nn.Module, *names: str) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def _split(
    modules: Iterable[nn.Module], *, before: tuple[type[nn.Module], ...] = (), after: tuple[type[nn.Module], ...] = ()
) -> list[list[nn.Module]]:
    """Split a sequence of modules before each module of the types `before`, and after each of the types `after`."""
    groups: list[list[nn.Module]] = []
    for module in modules:
        if not groups or isinstance(module, before) or isinstance(groups[-1][-1], after):
            groups.append([])
        groups[-1].append(module)
    return groups


def _by_short_name(modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Name each module after its type, with a number if the type occurs more than once: conv1, relu1, conv2, ..."""
    listed = list(modules)
    types = [SHORT_NAMES.get(type(module), type(module).__name__.lower()) for module in listed]
    names = [name if types.count(name) == 1 else f"{name}{types[: i + 1].count(name)}" for i, name in enumerate(types)]
    return dict(zip(names, listed, strict=True))
