"""The one exception tree, and the exit code of each branch.

    CatalensError                1   anything of ours
    ├── RecipeError              2   a recipe, a flag or a `--set` is wrong (the code of every usage error)
    ├── CatalogError             3   a table or a catalogue cannot be read or does not hold what is asked of it
    │   └── TooManyBadRowsError  4   more rows were left out than the command allows
    ├── PromptError              5   a row's values cannot be written as text and read back
    ├── PictureError             6   one picture cannot be decoded
    ├── CheckpointError          7   a model, an adapter or a run cannot be loaded or saved
    ├── TrainingError            8   training cannot start or go on
    ├── CheckError               9   a check found problems that are to be mended first, or an export that differs
    └── InferenceError          10   a model cannot write about a picture, or its predictions cannot be kept

Every message is one sentence that names the row, the field or the flag, and the fix.
"""


class CatalensError(Exception):
    """Base of every error that catalens raises on purpose."""

    exit_code = 1


class RecipeError(CatalensError):
    """A recipe, a flag or a `--set` override is wrong."""

    exit_code = 2


class CatalogError(CatalensError):
    """A table or a catalogue cannot be read, or lacks what is asked of it."""

    exit_code = 3


class TooManyBadRowsError(CatalogError):
    """More rows were left out than `--max-bad` allows."""

    exit_code = 4


class PromptError(CatalensError):
    """A row's values cannot be written as text and read back unchanged."""

    exit_code = 5


class PictureError(CatalensError):
    """One picture cannot be decoded."""

    exit_code = 6


class CheckpointError(CatalensError):
    """A model, an adapter or a run cannot be loaded or saved."""

    exit_code = 7


class TrainingError(CatalensError):
    """Training cannot start or cannot go on."""

    exit_code = 8


class CheckError(CatalensError):
    """A check found problems that are to be mended before training, or an export that answers otherwise."""

    exit_code = 9


class InferenceError(CatalensError):
    """A model cannot write about a picture, or its predictions cannot be kept."""

    exit_code = 10


def first_line(error: BaseException) -> str:
    """Shorten what a library raised to its first line, or to its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
