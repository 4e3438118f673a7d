"""How ViT, Swin and MaxViT come apart; `stages` serves ConvNeXt too, which is built like Swin."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import Permute

from ftlit.code_identity import versioned
from ftlit.errors import UserError
from ftlit.zoo.blocks import NetworkParts, named


@versioned("patch_embeddings", 1)
class PatchEmbeddings(nn.Module):
    """Images -> tokens (N, 1 + places, C): patches, the class token in front, positions added (ViT, Dosovitskiy et al. 2021, section 3.1).

    Args:
        vit: torchvision's VisionTransformer; its parameters are shared, not copied.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.size: int = vit.image_size
        self.patch_conv = vit.conv_proj
        self.class_token = vit.class_token
        self.position_embedding = vit.encoder.pos_embedding
        self.dropout = vit.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Raises `UserError` for images of another size than the positions were made for."""
        if x.shape[-2:] != (self.size, self.size):
            raise UserError(f"this network was built for images of {self.size} px and got {tuple(x.shape[-2:])}: set input_spec.size")
        places = self.patch_conv(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), places], dim=1)
        features: Tensor = self.dropout(tokens + self.position_embedding)
        return features


@versioned("class_token", 1)
class ClassToken(nn.Module):
    """Tokens (N, T, C) -> the first of them (N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return tokens[:, 0]


def resize_positions(position_embedding: Tensor, length: int) -> Tensor:
    """Position embedding (1, 1 + n * n, C) -> (1, length, C) for images of another size, the class token's kept.

    Bicubic with aligned corners, as in torchvision's `interpolate_embeddings`; the idea is section 3.2 of the ViT paper.
    """
    token, places = position_embedding[:, :1], position_embedding[:, 1:]
    old, new = int(places.shape[1] ** 0.5), int((length - 1) ** 0.5)
    grid = places.transpose(1, 2).reshape(1, -1, old, old)
    grid = interpolate(grid, size=new, mode="bicubic", align_corners=True)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


def vit(model: Any) -> NetworkParts:
    """The features at every cut are tokens; the final norm ends the last encoder layer."""
    *blocks, last = model.encoder.layers
    encoder = [*blocks, named(block=last, norm=model.encoder.ln)]
    layers = {"embeddings": PatchEmbeddings(model)} | {f"encoder.{i}": block for i, block in enumerate(encoder)}
    if not hasattr(model.heads, "pre_logits"):
        return NetworkParts(layers, named(class_token=ClassToken(), head=model.heads.head), token_pool="class_token")
    layers["fc"] = named(class_token=ClassToken(), linear=model.heads.pre_logits, tanh=model.heads.act)
    return NetworkParts(layers, model.heads.head, token_pool="class_token")


def stages(features: nn.Sequential) -> dict[str, dict[str, nn.Module]]:
    """stem, stage, downsampling, stage, ... -> what each layer holds: a downsampling joins the stage after it."""
    _, *rest = features
    downsamplings: list[dict[str, nn.Module]] = [{}] + [{"downsample": module} for module in rest[1::2]]
    return {f"stage{i}": {**down, "blocks": blocks} for i, (down, blocks) in enumerate(zip(downsamplings, rest[::2], strict=True), 1)}


def swin(model: Any) -> NetworkParts:
    """Swin computes in the order N, H, W, C; each cut shows a map N, C, H, W (views: nothing is copied)."""
    held = stages(model.features)
    held[f"stage{len(held)}"]["norm"] = model.norm
    layers = {name: named(to_nhwc=Permute([0, 2, 3, 1]), **inner, to_nchw=Permute([0, 3, 1, 2])) for name, inner in held.items()}
    stem = named(patches=model.features[0], to_nchw=Permute([0, 3, 1, 2]))
    return NetworkParts({"stem": stem, **layers}, named(avgpool=model.avgpool, flatten=model.flatten, head=model.head))


def maxvit(model: Any) -> NetworkParts:
    """The hidden linear layer of the classifier, with what stands before it, is the layer `fc`."""
    avgpool, flatten, norm, linear, tanh, last = model.classifier
    layers = {"stem": model.stem} | {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    layers["fc"] = named(avgpool=avgpool, flatten=flatten, norm=norm, linear=linear, tanh=tanh)
    return NetworkParts(layers, last)
