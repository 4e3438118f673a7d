"""The Python reference: docs/reference.md lists the signatures that Python has, and help() needs no other page."""

import pydoc
import re

import pytest
import signatures

import ftlit


def test_the_reference_shows_the_signature_of_each_public_name():
    (shown,) = signatures.LISTING.findall(signatures.PAGE.read_text())
    assert shown == signatures.listing(), "run: python tests/support/signatures.py"
    assert re.findall(r"^\w+", shown, re.MULTILINE) and set(re.findall(r"^(\w+)", shown, re.MULTILINE)) == set(ftlit.__all__)


@pytest.mark.parametrize("name", ftlit.__all__)
def test_the_help_of_a_public_name_refers_to_no_list_of_the_architecture(name):
    assert not re.search(r"\b(invariant|law|habit) \d", pydoc.render_doc(getattr(ftlit, name)))
