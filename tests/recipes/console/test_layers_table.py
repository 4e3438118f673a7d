"""The table of layers: names and numbers stay whole on 80 columns, and what each stage trains can be read from it."""

import io

import pytest
from rich.console import Console

from ftlit.finetuning.plan import LayerRow, Plan
from ftlit.recipes.console.layers_table import layers_table

PART = 1_024  # parameters of a layer that train where only a part does


def row(layer="backbone.low", size=12_345_678, modes=("train",), groups=None, batchnorm=()):
    first = next((i for i, mode in enumerate(modes) if mode != "eval"), None)
    training = tuple({"eval": 0, "part": PART, "train": size}[mode] for mode in modes)
    return LayerRow(layer, size, first, training, groups or (layer,), (1e-3,), batchnorm, size)


def printed(rows, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(layers_table(Plan((), tuple(rows), (), ())))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("modes", "text"),
    [
        (("train",), "0"),
        (("eval", "train", "train"), "1-2"),
        (("train", "eval", "part"), "0, 2 (1,024 parameters)"),
        (("eval", "part", "part"), "1-2 (1,024 parameters)"),
        (("eval", "eval"), "never"),
    ],
)
def test_the_stages_that_train_a_layer_are_numbered(modes, text):
    assert row(modes=modes).stages_text == text


def test_a_layer_without_parameters_has_no_stages():
    assert row(size=0, modes=("eval",)).stages_text == "-"


@pytest.mark.parametrize(
    ("modes", "policies", "text"),
    [
        (("train", "train"), ("live", "live"), "live"),
        (("eval", "train"), ("frozen", "frozen_stats"), "frozen_stats"),
        (("train", "train"), ("frozen_stats", "live"), "frozen_stats in 0, live in 1"),
        (("eval", "eval"), ("frozen", "frozen"), "frozen"),
        (("train",), (), "-"),
    ],
)
def test_batch_norm_is_that_of_the_stages_that_train_the_layer(modes, policies, text):
    assert row(modes=modes, batchnorm=policies).batchnorm_text == text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_names_and_numbers_are_whole_and_the_prefix_is_left_out(width):
    name = "encoder.layers.encoder_layer_11"
    policies = ("frozen", "frozen_stats", "live")
    text = printed([row(f"backbone.{name}", modes=("eval", "train", "train"), batchnorm=policies), row("head", size=10)], width)
    assert name in text and "backbone." not in text and "12,345,678" in text and "1.0e-03" in text
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    assert text.index("head") < text.index(name)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_number_that_trains_is_whole_where_a_stage_trains_a_part(width):
    rows = [row("backbone.denseblock4", modes=("eval", "part"), batchnorm=("frozen", "frozen_stats")), row("head", size=10)]
    lines = printed(rows, width).splitlines()
    (line,) = [line for line in lines if "denseblock4" in line]
    assert "1 (1,024" in line and max(map(len, lines)) <= width


def test_groups_are_shown_only_if_they_are_not_the_layers():
    assert "group" not in printed([row(), row("head")], 80)
    assert "body" in printed([row(groups=("body",)), row("head")], 80)


def test_only_layers_that_train_have_a_learning_rate():
    lines = printed([row("idle", modes=("eval", "eval")), row("active", modes=("eval", "part"))], 80).splitlines()
    cells = [line.split() for line in lines if line.strip()]
    assert {row[0]: row[2] for row in cells if row[0] in ("idle", "active")} == {"active": "1.0e-03", "idle": "-"}
