"""The option records of a data source become flat arguments, with a signature against which a config is checked, and a description."""

import re
from dataclasses import asdict
from inspect import getdoc, signature
from typing import get_type_hints

import pytest

from ftlit.lit.datamodules import image_sources, text_sources
from ftlit.lit.datamodules.source_options import Loading, Splits, flat_options

SPLITS, LOADING = Splits(), Loading(augment="none", batch_size=4)


@flat_options(without=("mix",))
def source(input_spec: object, *, root: str, splits: Splits = SPLITS, loading: Loading = LOADING) -> tuple[str, Splits, Loading]:
    return root, splits, loading


def test_an_option_sets_the_field_of_its_record_and_other_fields_keep_their_defaults():
    root, splits, loading = source(None, root="here", val_fraction=0.5, batch_size=8)
    assert root == "here" and asdict(splits) == {"val_fraction": 0.5, "test_fraction": 0.2, "split_seed": 0, "split_from": None}
    assert loading == Loading(augment="none", batch_size=8) and splits.rule.fractions == {"val": 0.5, "test": 0.2}


def test_the_signature_has_the_fields_of_the_records_with_defaults_and_types():
    parameters = signature(source).parameters
    assert [*parameters][:4] == ["input_spec", "root", "val_fraction", "test_fraction"] and not {"splits", "loading", "mix"} & set(
        parameters
    )
    assert parameters["batch_size"].default == 4 and get_type_hints(source)["num_workers"] == int | None


@pytest.mark.parametrize("options", [{"bacth_size": 3}, {"mix": "mixup"}, {"loading": LOADING}])
def test_an_unknown_option_is_a_type_error(options):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(options))}'"):
        source(None, root="here", **options)


def test_a_missing_argument_is_a_type_error():
    with pytest.raises(TypeError, match=r"missing a required argument: 'root'"):
        source(None)


@pytest.mark.parametrize(
    "source",
    [
        *(image_sources.digits_data, image_sources.folder_data, image_sources.unlabelled_data, image_sources.csv_data),
        *(image_sources.torchvision_data, text_sources.text_csv_data),
    ],
)
def test_the_help_of_a_source_describes_the_arguments_that_it_takes_and_no_others(source):
    arguments = getdoc(source).partition("\nArgs:\n")[2].partition("\n\n")[0]
    described = re.findall(r"^    (\w+): \S", arguments, re.MULTILINE)
    assert sorted(described) == sorted(signature(source).parameters)


def test_texts_have_no_option_of_images_only():
    assert not {"augment", "mix", "views"} & set(signature(text_sources.text_csv_data).parameters)
