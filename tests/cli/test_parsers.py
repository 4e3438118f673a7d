"""Arguments of the commands of `ftlit`: paths may stand on both sides of an option, and an error says what to give."""

import pytest

from ftlit.cli.parsers import cache_parser, consolidate_parser, embed_parser, predict_parser, report_parser
from ftlit.errors import UserError


@pytest.mark.parametrize("words", [["run", "a", "b", "--top", "2"], ["--top", "2", "run", "a", "b"], ["run", "a", "--top", "2", "b"]])
def test_paths_may_stand_on_both_sides_of_an_option(words):
    given = predict_parser().parse_intermixed_args(words)
    assert (given.run, given.paths, given.top) == ("run", ["a", "b"], 2)


@pytest.mark.parametrize(
    ("parser", "words", "line"),
    [
        (
            predict_parser,
            [],
            "ftlit predict needs RUN and PATH; example: ftlit predict runs/mine photo.png more/photos --top 3 > predictions.csv",
        ),
        (predict_parser, ["run", "a", "--tap", "3"], "ftlit predict has no option '--tap': did you mean '--top'? There are: --"),
        (
            cache_parser,
            ["prune", "--unsed", "3"],
            "ftlit cache has no option '--unsed': did you mean '--unused'? There are: --all, --folder, ",
        ),
        (cache_parser, ["prune", "--max-gb", "ten"], "cache prune: --max-gb ten: give a number"),
        (predict_parser, ["run", "a", "--top", "many"], "predict: --top many: give a whole number"),
        (embed_parser, ["resnet18", "a"], "ftlit embed needs --out; example: ftlit embed resnet18 "),
        (consolidate_parser, ["run", "more"], "ftlit consolidate has no argument 'more': leave it out, or see ftlit consolidate --help"),
        (report_parser, [], "ftlit report needs FOLDER; example: ftlit report runs/mine"),
    ],
)
def test_an_error_says_what_to_give(parser, words, line):
    with pytest.raises(UserError) as error:
        parser().parse_args(words)
    assert str(error.value).startswith(line)
