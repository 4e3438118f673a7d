"""Files of an encoder of transformers: find its folder, here or in the hub's cache; read its config and weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftlit.data.tokens import TextSpec, transformers
from ftlit.errors import UserError, one_line, unknown
from ftlit.zoo.weights.weight_files import Tensors, WeightsFile, read

# type of model -> where its encoder layers are. Layers that take more than tokens and an attention mask: `ftlit.zoo.text_blocks`
ENCODERS = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "deberta-v2": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "ernie": "encoder.layer",
    "modernbert": "layers",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
POSITIONS_AFTER_PADDING = ("camembert", "roberta", "xlm-roberta")  # their first position is pad_token_id + 1
WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"]  # the first match is read
FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
FORMER_BUFFERS = re.compile(r"embeddings\.(position|token_type)_ids$")  # old files have them, networks no longer do


def find_folder(name: str, *, with_weights: bool, download: bool) -> Path:
    """Find the folder of a network: `name` itself, or a folder in the hub's cache; downloads to the cache what is missing there.

    Args:
        name: a folder, or a name on the hub.
        with_weights: whether the folder must contain weights.
        download: whether downloading is allowed.

    Raises:
        UserError: no such folder, and not on the hub or not allowed to download.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(
            f"backbone.name={name}: no such folder; give a folder with config.json, weights and tokenizer, or a name on Hugging Face"
        )
    transformers()
    cause: Exception | None = None
    for local in (True, False) if download else (True,):
        try:
            if folder := _snapshot(name, local=local, with_weights=with_weights):
                return folder
            cause = None
        except Exception as error:  # errors of the hub, and of the network
            cause = error
    if not download:
        raise UserError(
            f"backbone.name={name} is not in the local Hugging Face cache: add --trust (in Python: trust=True) to download it"
        ) from cause
    if cause is None:
        raise UserError(
            f"backbone.name={name} has no file of weights on Hugging Face: give backbone.weights=null, or another backbone.name"
        )
    raise UserError(
        f"backbone.name={name} is not a folder, and the download from Hugging Face failed ({one_line(cause)}): "
        "check the name and the internet connection, or give the folder of a download"
    ) from cause


def _snapshot(name: str, *, local: bool, with_weights: bool) -> Path | None:
    """Get the folder from the hub's cache, or from the hub if not `local`; `None` if it has no weights and they are required."""
    from huggingface_hub import snapshot_download  # a dependency of transformers

    folder = Path(snapshot_download(name, allow_patterns=[*FILES, *WEIGHTS[:2]], local_files_only=local))
    if not local and with_weights and not _weight_files(folder):
        folder = Path(snapshot_download(name, allow_patterns=WEIGHTS[2:]))
    return folder if _weight_files(folder) or not with_weights else None


def _weight_files(folder: Path) -> list[Path]:
    """List the files with weights, safetensors if there are any."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def read_weights(folder: Path) -> WeightsFile:
    """Read all tensors of a folder. Raises `UserError` if there are none."""
    files = _weight_files(folder)
    if not files:
        raise UserError(f"no weights in {folder} ({' or '.join(WEIGHTS)}): set backbone.weights=/path/to/file, or null for random weights")
    tensors = {name: tensor for file in files for found in read(file).state_dicts.values() for name, tensor in found.items()}
    return WeightsFile(str(folder), {"": tensors})


def read_config(name: str, folder: Path, fields: Mapping[str, Any]) -> Any:
    """Read the config of a folder and set `fields` in it. Raises `UserError` for a network that is not an encoder, or an unknown field."""
    try:
        config = transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # no config.json, a damaged one, a type that this version does not know
        raise UserError(f"cannot read the config of the network in {folder}: {one_line(error)}") from error
    is_decoder = getattr(config, "is_decoder", False)
    if config.model_type not in ENCODERS or is_decoder:
        model_type = f"{config.model_type} (a decoder)" if is_decoder else config.model_type
        raise UserError(f"{name} has the type {model_type}; backbone=bert accepts encoders of these types: {', '.join(ENCODERS)}")
    known = config.to_dict()
    for field, value in fields.items():
        if field not in known:
            raise unknown("argument", field, known, owner=name)
        setattr(config, field, value)
    config.name_or_path = ""  # the same network in another folder has the same features
    return config


def check_length(config: Any, tokenizer: Any, spec: TextSpec) -> None:
    """Raise `UserError` if texts are longer than the encoder's positions, or the tokenizer has more tokens than its vocabulary."""
    first = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
    if spec.max_length > (most := config.max_position_embeddings - first):
        raise UserError(f"backbone.max_length={spec.max_length}: this encoder has {most} positions; give {most} or less")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer of {spec.tokenizer} has {len(tokenizer)} tokens, but the encoder has only {config.vocab_size}: "
            "use the tokenizer that belongs to the encoder"
        )


def without_former_buffers(file: WeightsFile) -> WeightsFile:
    """A file without the buffers that networks no longer have."""
    dicts = {key: _without_buffers(tensors) for key, tensors in file.state_dicts.items()}
    return WeightsFile(file.name, dicts, file.record)


def _without_buffers(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not FORMER_BUFFERS.search(name)}
