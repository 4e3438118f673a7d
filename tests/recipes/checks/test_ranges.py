"""Every numeric option has a range, its default lies in it, and a value outside of it is one line before anything is built."""

from math import inf, nan

import pytest
from composed_configs import composed
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from paths import CONF

from ftlit.errors import UserError
from ftlit.recipes.checks.ranges import NO_WORDS, RANGES, Range, check_ranges, numbers_in, range_of
from ftlit.recipes.config.hydra_internals import fresh_hydra

FILES = [path for path in CONF.rglob("*.yaml") if path.parent.name != "hydra"]


@pytest.fixture(scope="module", autouse=True)
def hydra():
    """Initialize Hydra as the command line does."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_number_in_a_config_file_has_a_range_that_contains_it(path):
    text = path.read_text()
    whole = path.name == "train.yaml" or "@package _global_" in text
    values = OmegaConf.create(text)
    group = "backbone" if path.name == "_zoo.yaml" else path.parent.name  # which the options of that group include
    values = values if whole else OmegaConf.create({group: values})
    numbers = [pair for pair in numbers_in(values) if not pair[0].startswith("schedule.stages")]
    assert not [(name, value) for name, value in numbers if range_of(name) is None or value not in range_of(name)]


@pytest.mark.parametrize("value", [nan, inf, -inf, -1e30, 10**20, -7.5])
def test_no_option_takes_a_value_outside_of_its_range(value):
    for pattern in (pattern for pattern in RANGES if "*" not in pattern):
        if value == -7.5 and pattern in ("backbone.input_spec.mean", "backbone.input_spec.grey_range"):
            continue
        cfg = composed().copy()
        OmegaConf.set_struct(cfg, False)
        OmegaConf.update(cfg, pattern, value, force_add=True)
        with pytest.raises(UserError) as error:
            check_ranges(cfg)
        assert str(error.value) == f"{pattern}={value}: give {RANGES[pattern].describe()}"


@pytest.mark.parametrize("value", ["one", "'1'", "true", "null", "1.5"])
def test_a_seed_is_a_whole_number(value):
    with pytest.raises(UserError, match=r"^seed=.*: give a whole number from 0 to 4294967295$"):
        check_ranges(composed(f"seed={value}"))


@pytest.mark.parametrize("name", NO_WORDS)
def test_a_word_in_place_of_a_number_is_refused_before_pytorch_is_loaded(name):
    with pytest.raises(UserError, match=f"^{name}='ten': give a (whole )?number "):
        check_ranges(composed(f"++{name}=ten"))


def test_an_element_of_a_list_is_named_with_its_place():
    with pytest.raises(UserError, match=r"^head.hidden\[1\]=0: give a whole number from 1 to 16384$"):
        check_ranges(composed("head=mlp", "head.hidden=[8,0]"))


def test_numbers_of_custom_parts_are_finite():
    with pytest.raises(UserError, match=r"^optimizer.betas\[1\]=nan: give a finite number$"):
        check_ranges(composed("+optimizer.betas=[0.9,nan]"))


@given(value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(), least=st.integers(-5, 5), length=st.integers(1, 5))
def test_open_ends_do_not_belong_to_a_range(value, least, length):
    most = least + length
    for ends in ("", "least", "most", "both"):
        inside = Range(least, most, open=ends)
        assert (least in inside) == (ends not in ("least", "both")) and (most in inside) == (ends not in ("most", "both"))
        assert (value in inside) <= (least <= value <= most)
