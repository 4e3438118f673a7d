"""Print what `backbone=auto` measured and chose."""

from rich.table import Table

from ftlit.formatting import count, size_in_words, three_digits
from ftlit.printing import print_line, show
from ftlit.probes.backbone_choice import BackboneChoice


def print_choice(choice: BackboneChoice, left_out: int, noun: str) -> None:
    """Print a row for each candidate, accuracy ± standard error, and why one is chosen.

    Args:
        choice: the measurements and the chosen one.
        left_out: number of named backbones whose weights are not at hand.
        noun: of the examples: images or texts.
    """
    table = Table("backbone", "held-out accuracy ± standard error", f"training {noun}", f"{noun} per second", "weights")
    for name, found in choice.measured.items():
        mark = " *" if name == choice.chosen else ""
        accuracy = f"{found.accuracy:.3f} ± {found.standard_error:.3f}{mark}"
        table.add_row(name, accuracy, f"{choice.images[name]:,}", three_digits(found.images_per_second), size_in_words(found.bytes))
    show(table)
    print_line(f"* backbone=auto: {choice.chosen}{_reason(choice)}{_left_out(left_out)}")


def _reason(choice: BackboneChoice) -> str:
    if len(choice.measured) == 1:
        return ", the only candidate."
    if choice.chosen == choice.most_accurate:
        return ", the most accurate one."
    return f", the fastest of those that are within one standard error of the most accurate one, {choice.most_accurate}."


def _left_out(number: int) -> str:
    return f" Left out: {count(number, 'backbone')} whose weights would be downloaded." if number else ""
