"""Text that users read has the words of docs/glossary.md, not those that they replaced."""

import ast
import re

import pytest
from paths import ROOT

OLD = re.compile(
    r"\b(codes|solved|strengths?|anew|told|telling|tells? apart|somebody|someone|surest|refused by name|none of ftlit|in disguise"
    r"|laws? \d|becomes of|without effect|what is taken for|errs|twins?|a person|the house)\b",
    re.IGNORECASE,
)
ALLOWED = re.compile(r"(exit|status|error|zip) codes|codes: format 0", re.IGNORECASE)
OLD_NAMES = {"renamed.py", "run_files.py"}  # they read what earlier versions wrote
VOCABULARY = {"glossary.md", "CONTRIBUTING.md"}  # they list the old words


def old_words(text: str) -> list[str]:
    return [found.group() for found in OLD.finditer(ALLOWED.sub("", text))]


def text_of_program(path) -> str:
    """All texts of a Python file: messages, docstrings and comments."""
    source = path.read_text("utf-8")
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join([*texts, *(line.partition("  # ")[2] for line in source.splitlines())])


def files(folder: str, end: str):
    return [path for path in sorted((ROOT / folder).rglob(f"*{end}")) if path.name not in OLD_NAMES | VOCABULARY]


def test_messages_and_docstrings_have_todays_words():
    found = {path.name: old_words(text_of_program(path)) for path in files("src", ".py")}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(("folder", "end"), [("conf", ".yaml"), ("docs", ".md"), ("examples", ".py"), (".github", ".yml")])
def test_config_files_and_pages_have_todays_words(folder, end):
    paths = [*files(folder, end), ROOT / "README.md"]
    found = {path.name: old_words(re.sub(r"`[^`\n]*`", "", path.read_text("utf-8"))) for path in paths}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("text", ["the head alone is solved", "its strength", "what becomes of val", "Codes at a cut", "Law 5"])
def test_old_words_are_found(text):
    assert old_words(text)
