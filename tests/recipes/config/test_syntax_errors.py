"""A word that cannot be read is one line that says why, and where spaces are the reason, what to type."""

import shlex

import pytest

from ftlit.cli.command_words import complete
from ftlit.errors import UserError
from ftlit.recipes.config.syntax_errors import check_spaces, unreadable


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["seed=1", "backbone.cut = 1000"], "backbone.cut=1000"),
        (["backbone.cut =1000"], "backbone.cut=1000"),
        (["seed=1", "lr", "=", "0.1", "head=mlp"], "lr=0.1"),
        (["lr", "=0.1"], "lr=0.1"),
        (["lr=", "0.1"], "lr=0.1"),
        (["data.per_class=", "-1"], "data.per_class=-1"),
        (["data.root =my photos"], "data.root=my photos"),
    ],
)
def test_spaces_around_the_equals_sign_are_named_with_the_word_to_type(words, meant):
    with pytest.raises(UserError, match=r"^cannot read '.*': leave out the spaces around =, so give ") as caught:
        complete(words)
    assert shlex.split(str(caught.value).partition("so give ")[2]) == [meant]


@pytest.mark.parametrize("words", [["=3"], ["=", "3"], ["seed=1", "=3"], ["+=3"], ["~="]])
def test_a_word_without_a_name_is_an_error(words):
    with pytest.raises(UserError, match=r"^cannot read '.*': give group=option or name=value, or a folder of images$"):
        check_spaces(words)


@pytest.mark.parametrize(
    "words",
    [["head=", "-m"], ["head=", "~scenario"], ["~head"], ["data.root=", "seed=1"], ["--cfg", "job", "seed=1"], ["data.root=my = photos"]],
)
def test_other_words_pass(words):
    check_spaces(words)


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("cache.trust='", r"close the quote ', or write \' where it is part of a text"),
        ('data.note="a', 'close the quote ", or write \\" where it is part of a text'),
        ("data.note='a' b", "text follows a closing quote: put the quotes around the whole value"),
        (
            "data.note=a (1",
            "to give its value as text, write \"data.note='a (1'\"; otherwise give group=option or name=value, or a folder of images",
        ),
        ("", "give group=option or name=value, or a folder of images"),
        ("seed", "there is no file or folder of this name; give group=option or name=value, or a folder of images"),
    ],
)
def test_a_word_that_cannot_be_read_has_a_remedy_without_nested_quotes(word, remedy):
    assert str(unreadable(word)) == f"cannot read {word!r}: {remedy}"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("~head", "~head: a run needs an option of head: leave ~head out, or give head=NAME (attention, conv, linear, linear_probe, mlp)"),
        ("scenario=[auto]", "scenario=[auto]: scenario takes one option, without brackets: give scenario=auto"),
        (
            "backbone=[resnet18,resnet50]",
            "backbone=[resnet18,resnet50]: backbone takes one option, without brackets: give backbone=resnet18, or "
            "backbone=resnet18,resnet50 -m for a sweep over them",
        ),
        ("loss=[a.b]", "loss=[a.b]: give the name of an option of loss (bce, cross_entropy)"),
        ("loss={root: x}", "loss={root: x}: give the name of an option of loss (bce, cross_entropy)"),
    ],
)
def test_a_group_takes_the_name_of_an_option(word, line):
    with pytest.raises(UserError) as caught:
        complete(["seed=1", word])
    assert str(caught.value) == line


@pytest.mark.parametrize("word", ["logger=[csv,tensorboard]", "~scenario", "~logger", "~nothing", "schedule.stages=[]", "data.root=[a]"])
def test_lists_and_removals_that_hydra_understands_pass(word):
    assert complete(["seed=1", word])
