"""Named layers of ViT, Swin and MaxViT; `stages` also serves ConvNeXt, whose structure is that of Swin."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from ftlit.errors import UserError
from ftlit.identity.code_identity import versioned
from ftlit.zoo.blocks import NetworkParts, sequential


@versioned("patch_embeddings", 1)
class PatchEmbeddings(nn.Module):
    """Patch embeddings: images -> tokens (N, 1 + number of patches, C), the class token first, position embeddings added.

    Dosovitskiy et al. 2021 (ViT), section 3.1.

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
        """Compute the tokens. Raises `UserError` for images of a size without position embeddings."""
        if x.shape[-2:] != (self.size, self.size):
            raise UserError(
                f"this network was built for images of {self.size} px, but these have {tuple(x.shape[-2:])}: "
                f"give input_spec.size={x.shape[-1]}, or images of {self.size} px"
            )
        patches = self.patch_conv(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        features: Tensor = self.dropout(tokens + self.position_embedding)
        return features


@versioned("class_token", 1)
class ClassToken(nn.Module):
    """The class token: tokens (N, T, C) -> the first of them (N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Select the first token."""
        return tokens[:, 0]


def vit(model: Any) -> NetworkParts:
    """Split a ViT: the features at every cut are tokens, and the final norm belongs to the last encoder layer."""
    *blocks, last = model.encoder.layers
    encoder = [*blocks, sequential(block=last, norm=model.encoder.ln)]
    layers = {"embeddings": PatchEmbeddings(model)} | {f"encoder.{i}": block for i, block in enumerate(encoder)}
    if not hasattr(model.heads, "pre_logits"):
        head = getattr(model.heads, "head", model.heads)  # the user may have replaced all heads
        return NetworkParts(layers, sequential(class_token=ClassToken(), head=head), token_pool="class_token")
    layers["fc"] = sequential(class_token=ClassToken(), linear=model.heads.pre_logits, tanh=model.heads.act)
    return NetworkParts(layers, model.heads.head, token_pool="class_token")


def stages(features: nn.Sequential) -> dict[str, dict[str, nn.Module]]:
    """Group the sequence stem, stage, downsampling, stage, ... into layers: a downsampling belongs to the stage after it.

    Returns:
        Name of the layer (`stage1`, ...) -> its modules by name.
    """
    _, *rest = features
    downsamplings: list[dict[str, nn.Module]] = [{}] + [{"downsample": module} for module in rest[1::2]]
    return {f"stage{i}": {**down, "blocks": blocks} for i, (down, blocks) in enumerate(zip(downsamplings, rest[::2], strict=True), 1)}


def swin(model: Any) -> NetworkParts:
    """Split a Swin: it computes in N, H, W, C order, and the features at each cut are a map N, C, H, W (a view, not a copy)."""
    grouped = stages(model.features)
    grouped[f"stage{len(grouped)}"]["norm"] = model.norm
    layers = {name: sequential(to_nhwc=Permute([0, 2, 3, 1]), **inner, to_nchw=Permute([0, 3, 1, 2])) for name, inner in grouped.items()}
    stem = sequential(patches=model.features[0], to_nchw=Permute([0, 3, 1, 2]))
    return NetworkParts({"stem": stem, **layers}, sequential(avgpool=model.avgpool, flatten=model.flatten, head=model.head))


def maxvit(model: Any) -> NetworkParts:
    """Split a MaxViT: the hidden linear layer of the classifier, with the modules before it, is the layer `fc`."""
    layers = {"stem": model.stem} | {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    if not isinstance(model.classifier, nn.Sequential) or len(model.classifier) != 6:
        return NetworkParts(layers, model.classifier)  # the user has replaced it
    avgpool, flatten, norm, linear, tanh, last = model.classifier
    layers["fc"] = sequential(avgpool=avgpool, flatten=flatten, norm=norm, linear=linear, tanh=tanh)
    return NetworkParts(layers, last)
