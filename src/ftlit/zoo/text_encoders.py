"""`load_bert`: an encoder of texts (BERT and its relatives) as named layers: embeddings, encoder layers, final norm, pooler.

Features below the pooler are tokens (N, T, C), and those of padding are exactly zero. The attention mask is thus part of the features: it
passes through cuts, stored features and probes, and each layer derives it from its input.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.data.tokens import TextSpec, load_tokenizer, transformers
from ftlit.errors import UserError
from ftlit.identity.code_identity import versioned
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import TokenPooling, real_tokens
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.plain_arguments import plain_arguments
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.build import BACKBONES, EmptyWeights, assemble_backbone, build_network, pool_tokens
from ftlit.zoo.text_blocks import BLOCKS, MaskedNorm, copy_relative_positions
from ftlit.zoo.weights.transformers_files import ENCODERS, check_length, find_folder, read_config, read_weights, without_former_buffers
from ftlit.zoo.weights.weight_sources import WeightSource, as_record, find, weights_record


@BACKBONES.register("bert")
@plain_arguments
def load_bert(
    name: str,
    *,
    weights: str | PathLike[str] | None = "default",
    weights_key: str | None = None,
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
    max_length: int = 128,
    download: bool = True,
    pooling: TokenPooling | None = None,
    **kwargs: Any,
) -> Backbone:
    """Load an encoder of texts without its head.

    The layers are `embeddings`, `encoder.0`, ..., for ModernBERT `final_norm`, and, if the weights have one, `pooler`, which gives a vector
    of the first token. DeBERTa's embeddings of relative positions, one table for all layers, are copied to each layer and train there.
    `backbone(ids)` takes token ids (N, T); `backbone.input_spec` names the tokenizer that makes them of texts.

    Args:
        name: a folder with config.json, model.safetensors and the tokenizer's files, or a name on the hub (`bert-base-uncased`), which is
            looked up in the hub's own cache (`HF_HOME`) and downloaded to it.
        weights: `default`: those in the folder; a file; `None` for random weights.
        weights_key: see `load_backbone`.
        cut: see `load_backbone`.
        reinit: see `load_backbone`.
        max_length: maximum number of tokens of a text; the rest is cut off.
        download: `False`: an error if something is missing locally.
        pooling: see `load_backbone`; `None`: the mean without padding.
        kwargs: fields of the config, such as `hidden_dropout_prob=0.0`.

    Raises:
        UserError: transformers is not installed, no such folder, a network that is not an encoder, an unknown field or cut, a length beyond
            the encoder's positions, or weights that cannot be loaded or do not fit.
    """
    folder = find_folder(str(name), with_weights=weights == "default", download=download)
    config = read_config(str(name), folder, kwargs)
    tokenizer = load_tokenizer(str(folder))
    spec = TextSpec(str(folder), tokenizer.pad_token_id, max_length)
    check_length(config, tokenizer, spec)
    source = find(weights, {"default": WeightSource(WeightsOrigin("transformers", str(name)), partial(read_weights, folder))}, weights_key)
    file = without_former_buffers(source.load()) if source else None
    with_pooler = file is None or any("pooler." in tensor for tensors in file.state_dicts.values() for tensor in tensors)
    split = partial(take_apart, pad_id=spec.pad_id, with_pooler=with_pooler)
    with EmptyWeights() if source else nullcontext():
        model = build_network(str(name), partial(_from_config, config), kwargs)

    def fresh() -> NetworkParts:
        return split(build_network(str(name), partial(_from_config, config), kwargs))

    record = {"loader": "bert", "name": as_record(name), **weights_record(weights, weights_key), "max_length": max_length, **kwargs}
    parts = split(model)
    adapt = partial(copy_relative_positions, layers=config.num_hidden_layers) if config.model_type == "deberta-v2" else None
    how: dict[str, Any] = {"source": source, "file": file, "cut": cut, "reinit": reinit, "fresh": fresh, "record": record, "adapt": adapt}
    return pool_tokens(assemble_backbone(str(name), model, parts, spec, **how), pooling)


def take_apart(model: Any, *, pad_id: int, with_pooler: bool = True) -> NetworkParts:
    """Split an encoder of transformers into named layers, which share its modules.

    Args:
        model: of a type in `ENCODERS`, without a head.
        pad_id: id of the padding token.
        with_pooler: whether its pooler, if it has one, becomes a layer.
    """
    kind = model.config.model_type
    blocks = BLOCKS[kind](model) if kind in BLOCKS else model.get_submodule(ENCODERS[kind])
    layers: dict[str, nn.Module] = {"embeddings": TokenEmbeddings(model, pad_id)}
    layers |= {f"encoder.{i}": EncoderLayer(block) for i, block in enumerate(blocks)}
    if hasattr(model, "final_norm"):
        layers["final_norm"] = MaskedNorm(model.final_norm)
    if with_pooler and getattr(model, "pooler", None) is not None:
        layers["pooler"] = model.pooler
    return NetworkParts(layers, nn.Identity(), token_pool="masked_mean")


@versioned("token_embeddings", 1)
class TokenEmbeddings(nn.Module):
    """Token embeddings: ids (N, T) -> tokens (N, T, C), zero for padding.

    Args:
        model: an encoder of transformers, whose embeddings are shared.
        pad_id: id of the padding token.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.block = model.embeddings
        self.project = getattr(model, "embeddings_project", nn.Identity())

    def forward(self, ids: Tensor) -> Tensor:
        """Embed the ids. Raises `UserError` for anything but ids."""
        if ids.ndim != 2 or ids.is_floating_point():
            raise UserError(
                f"this network needs token ids of shape (N, T), not {ids.dtype} of shape {tuple(ids.shape)}: use texts, with data=text_csv"
            )
        features: Tensor = self.project(self.block(ids)).masked_fill((ids == self.pad_id)[..., None], 0.0)
        return features


@versioned("text_encoder_layer", 1)
class EncoderLayer(nn.Module):
    """A transformer layer with its attention mask: tokens (N, T, C) -> tokens (N, T, C).

    Tokens that are all zero are padding: no token attends to them, and they stay zero.

    Args:
        block: a layer of transformers that is called with tokens and mask, shared.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the layer; padding at the end that all texts of a batch share is skipped where this needs no synchronisation."""
        if not len(tokens):
            return tokens
        real = real_tokens(tokens)
        length = _longest(real)
        mask = real[:, :length]
        features: Tensor = self.block(tokens[:, :length], mask[:, None, None, :]).masked_fill(~mask[..., None], 0.0)
        return nn.functional.pad(features, (0, 0, 0, real.shape[1] - length))


def _longest(real: Tensor) -> int:
    """Return the length of the longest text; the full length on a GPU (reading it would block), on `meta`, and in compiled code."""
    if real.device.type != "cpu" or torch.compiler.is_compiling():
        return real.shape[1]
    used = real.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else real.shape[1]


def _from_config(config: Any, **_: Any) -> nn.Module:
    """Build the network with random weights; the arguments are in the config already."""
    attention = "eager" if config.model_type == "deberta-v2" else "sdpa"  # the scores of DeBERTa have a term that no fused kernel computes
    return transformers().AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attention)  # type: ignore[no-any-return]
