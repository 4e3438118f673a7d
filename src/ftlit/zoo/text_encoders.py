"""`load_bert`: any BERT-like encoder, from a folder or the hub's cache, taken apart into embeddings, encoder layers and pooler.

Features below the pooler are tokens (N, T, C), and those of padding are exactly zero: so the attention mask travels with them, through a cut,
a store, a probe, and every layer reads it from what it is given.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.code_identity import versioned
from ftlit.data.tokens import TextSpec, load_tokenizer, transformers
from ftlit.errors import UserError, one_line, unknown
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import real_tokens
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.build import BACKBONES, EmptyWeights, assembled, built
from ftlit.zoo.weights import Tensors, WeightSource, as_record, find, read

# type of model -> where its encoder layers are. Their layers take tokens and an attention mask, and nothing else
ENCODERS = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "ernie": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
COUNT_FROM_PADDING = ("camembert", "roberta", "xlm-roberta")  # their first position is the one after the padding's
WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"]  # the first that there are
FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
OF_OLD = re.compile(r"embeddings\.(position|token_type)_ids$")  # tables of numbers that files held once


@BACKBONES.register("bert")
def load_bert(
    name: str,
    *,
    weights: str | PathLike[str] | None = "default",
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
    max_length: int = 128,
    download: bool = True,
    **kwargs: Any,
) -> Backbone:
    """An encoder of texts without its head: `embeddings`, `encoder.0` ... and, where the weights have one, `pooler`, a vector of the first
    token. `backbone(ids)` takes token ids (N, T), which `backbone.input_spec` makes of texts.

    Args:
        name: a folder with config.json, model.safetensors and the tokenizer's files, or a name on the hub (`bert-base-uncased`), looked for
            in the hub's own cache (`HF_HOME`) and downloaded to it.
        weights: `default`, those beside the config; a file; `None` for a random start.
        cut: see `load_backbone`.
        reinit: see `load_backbone`.
        max_length: tokens of a text, the rest is cut off.
        download: `False`: nothing is, and what is not here is a mistake.
        kwargs: fields of the config, such as `hidden_dropout_prob=0.0`.

    Raises:
        UserError: no transformers, no such folder, a network of another kind, an unknown field or cut, a length beyond what the encoder
            knows, weights that cannot be had or do not fit.
    """
    folder = _folder_of(str(name), with_weights=weights == "default", download=download)
    config = _config(str(name), folder, kwargs)
    tokenizer = load_tokenizer(str(folder))
    spec = TextSpec(str(folder), tokenizer.pad_token_id, max_length)
    _check_length(config, tokenizer, spec)
    source = find(weights, {"default": WeightSource(WeightsOrigin("transformers", str(name)), partial(_read_all, folder))})
    tensors = _without_heads(source.load()) if source else None
    pooled = tensors is None or any(tensor.startswith("pooler.") for tensor in tensors)
    apart = partial(take_apart, pad_id=spec.pad_id, pooled=pooled)
    with EmptyWeights() if source else nullcontext():
        model = built(str(name), partial(_made, config), kwargs)

    def fresh() -> NetworkParts:
        return apart(built(str(name), partial(_made, config), kwargs))

    record = {"loader": "bert", "name": as_record(name), "weights": as_record(weights), "max_length": max_length, **kwargs}
    parts = apart(model)
    return assembled(str(name), model, parts, spec, source=source, tensors=tensors, cut=cut, reinit=reinit, fresh=fresh, record=record)


def take_apart(model: Any, *, pad_id: int, pooled: bool = True) -> NetworkParts:
    """The layers of an encoder of transformers; modules are shared.

    Args:
        model: of a type in `ENCODERS`, without a head.
        pad_id: the token that texts are filled up with.
        pooled: whether its pooler is wanted, where it has one.
    """
    blocks = model.get_submodule(ENCODERS[model.config.model_type])
    layers: dict[str, nn.Module] = {"embeddings": TokenEmbeddings(model, pad_id)}
    layers |= {f"encoder.{i}": EncoderLayer(block) for i, block in enumerate(blocks)}
    if pooled and getattr(model, "pooler", None) is not None:
        layers["pooler"] = model.pooler
    return NetworkParts(layers, nn.Identity(), token_pool="masked_mean")


@versioned("token_embeddings", 1)
class TokenEmbeddings(nn.Module):
    """Token ids (N, T) -> tokens (N, T, C), zero where they are padding.

    Args:
        model: an encoder of transformers, whose embeddings are shared.
        pad_id: the token of padding.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.block = model.embeddings
        self.project = getattr(model, "embeddings_project", nn.Identity())

    def forward(self, ids: Tensor) -> Tensor:
        """See the class. Raises `UserError` for anything but ids."""
        if ids.ndim != 2 or ids.is_floating_point():
            raise UserError(
                f"this network takes token ids (N, T), and this is {tuple(ids.shape)} of {ids.dtype}: give texts, data=text_csv"
            )
        features: Tensor = self.project(self.block(ids)).masked_fill((ids == self.pad_id)[..., None], 0.0)
        return features


@versioned("text_encoder_layer", 1)
class EncoderLayer(nn.Module):
    """Tokens (N, T, C) -> tokens (N, T, C). Those that are all zero are padding: nothing attends to them, and they stay zero.

    Args:
        block: a layer of transformers, shared.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class. Padding at the end that all texts of a batch share is not computed, where to know that costs no waiting."""
        if not len(tokens):
            return tokens
        real = real_tokens(tokens)
        length = _longest(real)
        own = real[:, :length]
        features: Tensor = self.block(tokens[:, :length], own[:, None, None, :]).masked_fill(~own[..., None], 0.0)
        return nn.functional.pad(features, (0, 0, 0, real.shape[1] - length))


def _longest(real: Tensor) -> int:
    """Tokens of the longest text; all places on a GPU, which would have to be waited for, on `meta`, and where code is compiled."""
    if real.device.type != "cpu" or torch.compiler.is_compiling():
        return real.shape[1]
    used = real.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else real.shape[1]


def _folder_of(name: str, *, with_weights: bool, download: bool) -> Path:
    """The folder of a network: `name` itself, or where the hub's cache has it; downloaded where it is not there."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(
            f"backbone.name={name}: no folder {path}; give one that holds config.json, weights and tokenizer, or a name on the hub"
        )
    transformers()
    from huggingface_hub import snapshot_download  # comes with transformers

    why: Exception | None = None
    for local in (True, False)[: 1 + download]:
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, *WEIGHTS[:2]], local_files_only=local))
            if not local and with_weights and not _weights_in(folder):
                folder = Path(snapshot_download(name, allow_patterns=WEIGHTS[2:]))
            if _weights_in(folder) or not with_weights:
                return folder
        except Exception as error:  # the hub's own errors, and the network's
            why = error
    if not download:
        raise UserError(f"{name} is not in the hub's cache, and would be fetched from the hub: --trust (trust=True) allows it") from why
    reason = f": {one_line(why)}" if why else ""
    raise UserError(f"backbone.name={name} is neither a folder here nor in the hub's cache, and cannot be downloaded{reason}") from why


def _weights_in(folder: Path) -> list[Path]:
    """Its files of weights, safetensors where there are any."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _read_all(folder: Path) -> Tensors:
    files = _weights_in(folder)
    if not files:
        raise UserError(
            f"no weights in {folder} ({' or '.join(WEIGHTS)}): name a file with backbone.weights=..., or null for a random start"
        )
    return {name: tensor for file in files for name, tensor in read(file).items()}


def _config(name: str, folder: Path, fields: Mapping[str, Any]) -> Any:
    """The config of a folder, changed by `fields`. Raises `UserError` for another kind of network, or an unknown field."""
    try:
        config = transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # no config.json, a damaged one, a type that this version does not know
        raise UserError(f"no config of a network can be read from {folder}: {one_line(error)}") from error
    if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
        kind = f"{config.model_type}{' that decodes' * getattr(config, 'is_decoder', False)}"
        raise UserError(f"{name} is of type {kind}, and backbone=bert takes encoders of these: {', '.join(ENCODERS)}")
    known = config.to_dict()
    for field, value in fields.items():
        if field not in known:
            raise unknown(f"argument of {name}", field, known)
        setattr(config, field, value)
    config.name_or_path = ""  # the same network in another folder has the same features
    return config


def _made(config: Any, **fields: Any) -> nn.Module:
    """At random; `fields` are in the config already."""
    return transformers().AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")  # type: ignore[no-any-return]


def _check_length(config: Any, tokenizer: Any, spec: TextSpec) -> None:
    first = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    if spec.max_length > (most := config.max_position_embeddings - first):
        raise UserError(f"backbone.max_length={spec.max_length}: this encoder knows {most} positions, give {most} or less")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer of {spec.tokenizer} has {len(tokenizer)} tokens, and the encoder knows {config.vocab_size}: take its own"
        )


def _without_heads(tensors: Tensors) -> Tensors:
    """The encoder's own tensors, by its own names: `bert.encoder.layer.0...` of a network with a head is `encoder.layer.0...` here."""
    heads = [name.partition("embeddings.")[0] for name in tensors if re.match(r"[a-z_]+\.embeddings\.", name)]
    prefix = heads[0] if heads else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in own.items() if not OF_OLD.search(name)}
