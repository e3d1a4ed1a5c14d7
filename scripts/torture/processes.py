"""A `catalens prepare` as a process, what is always wrong with its end, and the files that it must leave alone."""

import contextlib
import hashlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from catalens.errors import CatalensError

PATIENCE = 300
"""Seconds after which a process counts as hanging."""
OWN_FILES = {"diary.txt": b"Dear diary\n", "my_photo.jpg": b"\xff\xd8 not a picture of the catalogue"}
"""What a user has lying about."""


@dataclass
class Report:
    """Outcomes of one part, and what went wrong."""

    name: str
    advance: Callable[[int], None] = lambda steps: None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """The end of a process."""

    code: int
    output: str

    @property
    def killed(self) -> bool:
        """Whether `kill -9` was its end."""
        return self.code == -signal.SIGKILL

    @property
    def fault(self) -> str | None:
        """What is wrong with it, whatever it was asked to do."""
        if "Traceback (most recent call last)" in self.output:
            return f"traceback: {self.output.strip().splitlines()[-1]}"
        if control := {char for char in self.output if unicodedata.category(char) == "Cc"} - {"\n"}:
            return f"control characters {sorted(control)} in the output"
        sentences = len(re.findall(r"^error: .", self.output, flags=re.MULTILINE))
        if self.killed or self.code == sentences == 0 or (self.code in _exit_codes(CatalensError) and sentences == 1):
            return None
        return f"exit code {self.code} after {self.output[-400:]!r}"


class Run:
    """A `catalens prepare` under way; its output goes to a file beside the case's folder."""

    def __init__(self, case: Path, arguments: Sequence[str]) -> None:
        number, self._log = tempfile.mkstemp(".log", f"{case.name}-", case.parent)
        with open(number, "wb") as log:  # noqa: PTH123
            self.process = subprocess.Popen(
                [sys.executable, "-m", "catalens", "prepare", *arguments, f"--out={case / 'shop'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "9999", "HF_HUB_OFFLINE": "1", "HF_HOME": str(case.parent / "hub")},
            )

    def end(self) -> Ended:
        """Wait for the end, and put an end to what hangs."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return Ended(124, f"nothing for {PATIENCE} s")
        return Ended(code, Path(self._log).read_text(encoding="utf-8", errors="replace"))

    def watch(self, folder: Path, seconds: float = math.inf, changes: float = math.inf) -> tuple[int, set[Path]]:
        """Wait for the end, some `seconds`, or some changes of the names below a folder; changes and paths seen."""
        started, last, seen, changed = time.monotonic(), _paths(folder), set[Path](), 0
        while self.process.poll() is None and time.monotonic() - started < seconds and changed < changes:
            time.sleep(0.002)
            if (paths := _paths(folder)) != last:
                changed, seen, last = changed + 1, seen | paths, paths
        return changed, seen


@cache
def _exit_codes(error: type[CatalensError]) -> frozenset[int]:
    return frozenset({error.exit_code}).union(*map(_exit_codes, error.__subclasses__()))


def _paths(folder: Path) -> set[Path]:
    return {Path(place, name) for place, *inside in os.walk(folder) for names in inside for name in names}


def new_case(case: Path, template: Path | None = None) -> Path:
    """Make the folder of a case, as it is or as a copy."""
    if template:
        return shutil.copytree(template, case)
    case.mkdir(parents=True)
    return case


def remove_case(case: Path) -> None:
    """Remove what went well, with what its processes said."""
    shutil.rmtree(case)
    for log in case.parent.glob(f"{case.name}-*.log"):
        log.unlink()


def files_of(folder: Path) -> Mapping[str, str]:
    """SHA-256 of each file below a folder but the user's, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OWN_FILES
    }


def own_files(*folders: Path) -> Mapping[Path, bytes]:
    """Put a user's files into folders, where there can be folders; what they have to hold for ever."""
    placed: dict[Path, bytes] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in OWN_FILES.items():
                (folder / name).write_bytes(data)
                placed[folder / name] = data
    return placed


def touched(placed: Mapping[Path, bytes]) -> str | None:
    """The first of a user's files that is not what it was."""
    wrong = (path for path, data in placed.items() if not path.is_file() or path.read_bytes() != data)
    return next((f"the user's {path} was changed or removed" for path in wrong), None)
