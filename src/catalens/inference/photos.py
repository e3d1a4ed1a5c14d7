"""Pictures that are files of this machine -> one line each, with no more than the model needs imported.

    {"file": "photo.jpg", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0, ..., "error": null}

The lines are those of `batch.py`, which also reads folders, tables and URLs, and takes the libraries for them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from catalens.inference.predictor import Predictor
from catalens.inference.records import Outcome, json_line
from catalens.predictions import Prediction, record_of
from catalens.progress import Progress, silent
from catalens.reading.addresses import PICTURE_NAME


def are_photos(names: Sequence[str]) -> bool:
    """Tell whether all of these are files with the names of pictures."""
    return all(PICTURE_NAME.search(name) and Path(name).is_file() for name in names)


def predict_photos(
    names: Sequence[str], load: Callable[[], Predictor], write: Callable[[str], object], progress: Progress = silent
) -> Outcome:
    """Hand the record of each file to `write` as a line of JSON, in their order; raises what `load` raises."""
    predictor = load()
    outcome = Outcome(predictor.calibrated)
    for number, name in enumerate(names):
        progress("pictures", number, len(names), f"{outcome.failed:,} failed" if outcome.failed else "")
        try:
            (prediction,) = predictor.predict([Path(name).read_bytes()])
        except OSError as error:
            prediction = Prediction(None, error=f"picture cannot be read: {error.strerror}")
        record = {"file": name} | record_of(predictor.prompt, prediction)
        write(json_line(outcome.count(record)).decode())
    progress("pictures", len(names), len(names), "")
    return outcome
