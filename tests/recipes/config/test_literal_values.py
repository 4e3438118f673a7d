"""A path on the command line is taken as it stands, whatever characters it has; quotes, null, interpolations and sweeps keep working."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from ftlit.cli.command_words import complete
from ftlit.errors import UserError
from ftlit.recipes.config.literal_values import quote, quote_literals

NAMES = ["data.root", "data.csv", "data.val_csv", "backbone.weights", "hydra.run.dir", "paths.runs", "cache.folder", "+data.folder"]


def parsed(word):
    """What Hydra reads in a word: the value, or the values of a sweep."""
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return [parsed(f"data.root={text}") for text in override.sweep_string_iterator()]
    value = override.value()
    return getattr(value, "text", value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    [
        "photos (1)",
        "lr=0.1",
        "größe",
        "写真",
        "it's",
        "[new]",
        "a#b",
        "{x}",
        "2024",
        "true",
        "1e5",
        "$5",
        "a\\",
        "a\\\n",
        "a\tb",
        "epoch=3-step=12.ckpt",
    ],
)
def test_a_path_is_taken_as_it_stands(name, value):
    (word,) = complete([f"{name}={value}"])
    assert (word.partition("=")[0], parsed(word)) == (name, value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@example("\\\n")
def test_every_quoted_text_is_read_as_itself(text):
    assert parsed(f"data.root={quote(text)}") == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root='photos (1)'", "photos (1)"),
        ('data.root="a,b"', "a,b"),
        ("backbone.weights=null", None),
        ("data.root=", ""),
        ("data.root=${paths.runs}/a (1)", "${paths.runs}/a (1)"),
        ("data.label_separator=;", ";"),
        ("data.label_separator=,", ","),
        ("data.label_column=class (en)", "class (en)"),
        ("head.hidden=[8,4]", [8, 4]),
        ("loss.class_weights=[1,2]", [1, 2]),
        ("backbone.input_spec.mean=0.5", 0.5),
    ],
)
def test_quotes_null_interpolations_and_other_values_keep_their_meaning(word, value):
    assert parsed(*complete([word])) == value
    assert complete(complete([word])) == complete([word])


def test_in_a_sweep_a_comma_separates_existing_paths_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a (1)", "it's", "that's", "one,two"):
        (tmp_path / name).mkdir()

    def values(word):
        return parsed(complete(["-m", word])[1])

    assert values("data.root=a (1),it's,that's") == ["a (1)", "it's", "that's"]
    assert values("data.root=one,two") == "one,two"
    assert values("data.root=one,two,it's") == ["one,two", "it's"]
    assert values("data.root=new,one,two") == ["new", "one,two"]
    assert values("data.root='x,y',it's me") == ["x,y", "it's me"]
    assert values("data.root='a (1)',b") == ["a (1)", "b"]
    assert values("backbone.weights=default,null") == ["default", None]
    assert values("backbone.weights=choice(x.pth,y.pth)") == ["x.pth", "y.pth"]
    assert parsed(complete(["data.root=one,two,three"])[0]) == "one,two,three"


def test_a_name_that_is_not_utf8_is_an_error_that_shows_it():
    with pytest.raises(UserError, match=r"data\.root=a\\xff is not valid UTF-8"):
        quote_literals(["data.root=a\udcff"], sweep=False)
