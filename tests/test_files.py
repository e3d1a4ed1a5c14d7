"""Files that are whole or absent."""

import hashlib
from pathlib import Path

import pytest

from catalens.errors import InferenceError
from catalens.files import atomic, file_hash, writing


def test_a_file_is_there_at_once(tmp_path: Path):
    path = tmp_path / "metrics.json"
    path.write_text("before")
    with atomic(path) as aside:
        aside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert file_hash(path) == hashlib.sha256(b"after").hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "metrics.json"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as aside:
            aside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_file_system_raises_is_one_sentence(tmp_path: Path):
    path = tmp_path / "absent" / "out.csv"
    with pytest.raises(InferenceError) as caught, writing(path, InferenceError, "mend that"), path.open("w"):
        pass
    assert str(caught.value) == f"{path} cannot be written (No such file or directory): mend that"
