"""Patterns: the first match wins, every name must be covered, and every pattern must be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlit.errors import UserError
from ftlit.patterns import covers, first_match, not_covered, select

LAYERS = ["backbone.layer1.0", "backbone.layer10", "head"]
NAMES = [f"{layer}.{leaf}" for layer in LAYERS for leaf in ("weight", "bias")]
part = st.sampled_from(["a", "b", "aa", "0", "1", "10"])
names = st.lists(st.lists(part, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True)


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("head.weight", [4]),
        ("head", [4, 5]),
        ("backbone.layer1", [0, 1]),
        ("backbone.layer1.0", [0, 1]),
        ("backbone", [0, 1, 2, 3]),
        ("*.bias", [1, 3, 5]),
        ("backbone.layer*", [0, 1, 2, 3]),
        ("backbone.layer[12]", [0, 1]),
        ("backbone.layer1?", [2, 3]),
        ("*", [0, 1, 2, 3, 4, 5]),
        ("layer1", []),
        ("hea", []),
        ("head.", []),
        ("Head", []),
    ],
)
def test_a_pattern_is_the_name_of_a_parameter_or_module_or_a_glob(pattern, covered):
    assert [i for i, name in enumerate(NAMES) if covers(pattern, name)] == covered


@given(names)
def test_a_module_name_covers_exactly_the_parameters_inside_the_module(names):
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            below = [other for other in names if other.split(".")[:depth] == parts[:depth]]
            assert [other for other in names if covers(".".join(parts[:depth]), other)] == below


@given(names, st.data())
def test_selected_names_keep_their_order_for_any_order_of_patterns(names, data):
    patterns = data.draw(st.lists(st.sampled_from(names), min_size=1))
    assert select(patterns, names) == [name for name in names if any(covers(pattern, name) for pattern in patterns)]


def test_names_may_come_from_an_iterator():
    assert select(["head", "*.bias"], iter(NAMES)) == [NAMES[i] for i in (1, 3, 4, 5)]
    assert set(first_match([("*", 1)], iter(NAMES))) == set(NAMES)


def test_the_first_rule_that_covers_a_name_wins():
    rules = [("head.bias", "a"), ("*.bias", "b"), ("head", "c"), ("*", "d")]
    assert [value for _, value in first_match(rules, NAMES).values()] == ["d", "b", "d", "b", "c", "a"]


@given(names, st.data())
def test_first_match_requires_that_every_name_is_covered_and_every_rule_is_used(names, data):
    patterns = [*data.draw(st.lists(st.sampled_from([*names, "a", "*.0", "b*"]))), *data.draw(st.sampled_from([["*"], []]))]
    rules = list(enumerate(patterns))
    firsts = [next((i for i, pattern in rules if covers(pattern, name)), None) for name in names]
    if None not in firsts and set(firsts) == set(range(len(patterns))):
        matched = first_match([(pattern, i) for i, pattern in rules], names)
        assert matched == {name: (patterns[i], i) for name, i in zip(names, firsts, strict=True)}
    else:
        with pytest.raises(UserError):
            first_match([(pattern, i) for i, pattern in rules], names)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("backbone.layr1", "backbone.layer1"),
        ("hed", "head"),
        ("layer10", "backbone.layer10"),
        ("head.wieght", "head.weight"),
    ],
)
def test_the_error_for_a_pattern_without_match_names_the_closest_match(pattern, meant):
    for use in (lambda: select(["head", pattern], NAMES), lambda: first_match([(pattern, 1), ("*", 1)], NAMES)):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value).startswith(f"pattern {pattern!r} matches no parameter: did you mean {meant!r}?")


def test_without_a_close_match_the_error_lists_the_names():
    with pytest.raises(
        UserError, match=r"'qqqqqq' matches no parameter: the names are backbone, backbone.layer1, backbone.layer10, head, "
    ):
        select(["qqqqqq"], NAMES)


def test_the_error_for_an_uncovered_name_says_where_the_others_are():
    more = r"and 1 other parameter, in backbone.layer1.0.weight, .*: add a pattern at the end, such as '\*' for all other parameters"
    with pytest.raises(UserError, match=more):
        first_match([("head", 1), ("*.bias", 1)], NAMES)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            ["*", "head"],
            r"'head' has no effect, because the patterns before it \('\*'\) match all of its parameters: move 'head' before '\*'",
        ),
        (["head", "*", "head.bias"], r"before it \('head'\) match all of its parameters: move 'head.bias' before 'head'"),
        (["head.weight", "head.bias", "head", "*"], r"before it \('head.weight', 'head.bias'\) .*: move 'head' before 'head.weight'"),
        (["head", "head", "*"], "pattern 'head' is given twice: remove one of the two"),
    ],
)
def test_a_pattern_whose_names_are_covered_by_earlier_patterns_is_an_error(rules, message):
    with pytest.raises(UserError, match=message):
        first_match([(pattern, i) for i, pattern in enumerate(rules)], NAMES)


@given(names, st.lists(part, max_size=3))
def test_what_is_not_covered_and_the_patterns_partition_the_parameters(names, patterns):
    rest = not_covered(patterns, names)
    for name in names:
        assert any(covers(pattern, name) for pattern in patterns) != any(covers(module, name) for module in rest)
    for module in rest:  # the outermost: the module around it holds a parameter that a pattern covers
        outer = module.rpartition(".")[0]
        assert not outer or any(covers(pattern, name) and name.startswith(f"{outer}.") for pattern in patterns for name in names)


def test_uncovered_names_and_unused_patterns_are_in_one_message():
    with pytest.raises(UserError) as caught:
        first_match([("hed", 1.0), ("backbone.layr1", 1.0), ("backbone.layer10", 1.0)], NAMES)
    message = str(caught.value)
    assert "pattern 'hed' matches no parameter: did you mean 'head'?" in message and "\n" not in message
    assert "pattern 'backbone.layr1' matches no parameter: did you mean 'backbone.layer1'?" in message
    assert "no pattern matches 'backbone.layer1.0.weight' and 3 other parameters, in backbone.layer1, head: " in message
    with pytest.raises(UserError, match=r"'hed' matches no .*; pattern 'bckbone' matches no"):
        select(["hed", "backbone", "bckbone"], NAMES)
