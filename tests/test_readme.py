"""The README: its first two commands, which newcomers and .ci/run use."""

from doc_pages import PAGES, blocks


def test_the_first_two_commands_are_installation_and_tests():
    lines = [line for block in blocks(PAGES[0]) for line in block.text.splitlines()]
    assert lines[:2] == ["pip install -e . && python train.py", 'pip install -e ".[dev]" && pytest']
