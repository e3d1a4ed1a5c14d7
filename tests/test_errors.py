"""The tree at the top of errors.py is the tree in the code."""

import re

import pytest

from catalens import errors

CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
DRAWN = re.findall(r"^ {4}([│ ├└─]*)(\w+Error) +(\d+) ", errors.__doc__ or "", flags=re.MULTILINE)


def test_every_error_is_drawn():
    assert sorted(name for _, name, _ in DRAWN) == sorted(CLASSES)


@pytest.mark.parametrize(("branch", "name", "code"), DRAWN)
def test_a_drawn_error_has_its_place_and_its_exit_code(branch: str, name: str, code: str):
    parents = {0: Exception, 4: errors.CatalensError, 8: errors.CatalogError}
    assert CLASSES[name].__bases__ == (parents[len(branch)],)
    assert CLASSES[name].exit_code == int(code)


def test_exit_codes_are_distinct_and_small():
    codes = [error.exit_code for error in CLASSES.values()]
    assert sorted(codes) == list(range(1, len(codes) + 1))
