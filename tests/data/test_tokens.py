"""Texts as input: truncated and padded ids, splits of csv files, and errors for invalid files."""

import pickle

import pytest
import torch
from text_inputs import WORDS, save_tokenizer, words, write_csv

from ftlit.data.dataset import SPLITS
from ftlit.data.tokens import TextSpec, TokenIds
from ftlit.errors import UserError
from ftlit.features.image_hashes import HashCache, image_hashes
from ftlit.identity.fingerprint import fingerprint
from ftlit.lit.datamodules.text_sources import text_csv_data

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return TextSpec(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))), 0, 8)


def test_a_text_becomes_padded_or_truncated_ids(spec):
    train, evaluation = spec.views()
    assert train is evaluation
    assert train("a b").tolist() == [2, WORDS.index("a"), WORDS.index("b"), 3, 0, 0, 0, 0]
    long = train("a " * 20)
    assert long.dtype == torch.int64 and long.tolist() == [2, *[4] * 6, 3]


def test_the_transform_pickles_and_is_identified_by_its_content_not_by_its_folder(spec, tmp_path):
    ids = TokenIds(spec)
    assert torch.equal(pickle.loads(pickle.dumps(ids))("a c"), ids("a c"))
    same = TokenIds(TextSpec(str(save_tokenizer(tmp_path / "same")), 0, 8))
    assert fingerprint(same) == fingerprint(ids)
    path = save_tokenizer(tmp_path / "other") / "tokenizer.json"
    path.write_text(path.read_text().replace('"p"', '"q"'))
    others = [TokenIds(TextSpec(str(tmp_path / "other"), 0, 8)), TokenIds(TextSpec(spec.tokenizer, 0, 7))]
    assert fingerprint(ids) not in [fingerprint(other) for other in others]


def test_texts_are_padded_to_the_longest_text_up_to_max_length(spec):
    assert spec.fitted(["a", "a b c"]) == (TextSpec(spec.tokenizer, 0, 5), 0)
    assert spec.fitted(["a " * 6, "a " * 7, "a " * 8]) == (spec, 2)


@pytest.mark.parametrize("length", [2, 0, 2.5, True])
def test_an_invalid_max_length_is_an_error(length):
    with pytest.raises(UserError, match="whole number of tokens"):
        TextSpec("folder", 0, length)


def test_augmentation_of_texts_and_a_folder_without_tokenizer_are_errors(spec, tmp_path):
    with pytest.raises(UserError, match="give augment=none"):
        spec.views("photo")
    with pytest.raises(UserError, match=r"has no tokenizer\.json: add the tokenizer\.json that was published with the pretrained weights$"):
        TextSpec(str(tmp_path)).views()


def test_a_csv_is_split_by_split_seed(spec, tmp_path):
    data = text_csv_data(spec, csv=write_csv(tmp_path / "all.csv", words(60)))
    assert data.class_names == ["x", "y"] and sum(sum(data.counts[split].values()) for split in SPLITS) == 60
    assert data.input_spec.max_length == 8 and data.input_spec.shape == (8,)
    ids, labels = next(iter(data.train_dataloader()))
    assert ids.shape[1] == 8 and ids.dtype == torch.int64 and labels.shape == ids.shape[:1]
    again = text_csv_data(spec, csv=tmp_path / "all.csv", seed=5)
    assert list(again.collection.splits["test"].sources) == list(data.collection.splits["test"].sources)
    assert sum(text_csv_data(spec, csv=tmp_path / "all.csv", per_class=3).counts["train"].values()) == 6


def test_splits_come_from_a_column_or_from_separate_files(spec, tmp_path):
    rows = [(*row, split) for row, split in zip(words(9), ["train"] * 4 + ["valid"] * 2 + ["test"] * 3, strict=True)]
    column = text_csv_data(spec, csv=write_csv(tmp_path / "a.csv", rows, ("text", "label", "split")))
    parts = {name: write_csv(tmp_path / f"{name}.csv", words(9)[part]) for name, part in (("train", slice(4)), ("val", slice(4, 6)))}
    test = write_csv(tmp_path / "test.csv", words(9)[6:])
    files = text_csv_data(spec, csv=parts["train"], val_csv=parts["val"], test_csv=test)
    for split in SPLITS:
        assert list(column.collection.splits[split].sources) == list(files.collection.splits[split].sources)
    with pytest.raises(UserError, match=r"has rows with test in column 'split', but data.test_csv=.*: remove those rows"):
        text_csv_data(spec, csv=tmp_path / "a.csv", test_csv=test)


def test_truncated_texts_and_duplicates_across_splits_are_noted(spec, tmp_path):
    rows = [(*row, "train") for row in words(4)] + [("a " * 20, "x", "val"), (*words(1)[0], "test")]
    data = text_csv_data(spec, csv=write_csv(tmp_path / "a.csv", rows, ("text", "label", "split")))
    assert "1 of 6 texts are truncated to 8 tokens (backbone.max_length)" in data.notes
    assert any("train[0] = test[0]" in note for note in data.notes)


def test_a_text_is_identified_by_its_bytes(spec, tmp_path):
    first, again, other = (write_csv(tmp_path / f"{i}.csv", words(20)[: 20 - i // 2]) for i in range(3))
    found = [image_hashes(text_csv_data(spec, csv=path).collection.splits["train"], HashCache(tmp_path)) for path in (first, again)]
    assert found[0].tolist() == found[1].tolist()
    shorter = image_hashes(text_csv_data(spec, csv=other).collection.splits["train"], HashCache(tmp_path))
    assert len(set(shorter.tolist()) & set(found[0].tolist())) > 5


@pytest.mark.parametrize(
    ("rows", "header", "line"),
    [
        ([("a", "x"), (" ", "y")], ("text", "label"), "line 3 has no value in column 'text'"),
        ([("a", "x"), ("b", "")], ("text", "label"), "line 3 has no value in column 'label'"),
        ([("a", "x")], ("txt", "label"), "did you mean data.text_column=txt?"),
        ([("a", "x")], ("text", "lable"), "did you mean data.label_column=lable?"),
        ([], ("text", "label"), "lists no text"),
        ([("a", "x", "tst")], ("text", "label", "split"), "did you mean 'test'"),
        ([("a", "x", "test"), ("b", "y", "test")], ("text", "label", "split"), "has no row with train in column 'split'"),
        ([("a", "x"), ("b", "x")], ("text", "label"), "give at least two classes"),
    ],
)
def test_the_error_for_an_invalid_csv_is_one_line(spec, tmp_path, rows, header, line):
    with pytest.raises(UserError) as caught:
        text_csv_data(spec, csv=write_csv(tmp_path / "a.csv", rows, header))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_for_a_missing_file_names_the_closest_match(spec, tmp_path):
    write_csv(tmp_path / "texts.csv", words(4))
    with pytest.raises(UserError, match=r"no csv file 'text.csv': did you mean 'texts.csv'"):
        text_csv_data(spec, csv=tmp_path / "text.csv")


def test_a_csv_cell_may_hold_several_labels(spec, tmp_path):
    rows = [(text, label if i % 3 else "x|y") for i, (text, label) in enumerate(words(30))]
    data = text_csv_data(spec, csv=write_csv(tmp_path / "a.csv", rows), label_separator="|")
    assert data.multilabel and next(iter(data.train_dataloader()))[1].shape[1] == 2
