"""Whatever becomes of a tracker, there is one, and the run goes on."""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from tracked import CONFIG, rows

from catalens.config import TrackingSpec
from catalens.errors import RecipeError
from catalens.tracking import NoTracker, start_tracker
from catalens.tracking.tracker import thumbnail


def test_none_is_a_tracker_that_does_nothing(folder: Path):
    before = dict(os.environ)
    tracker = start_tracker(TrackingSpec(to="none"), folder, {}, print)
    assert isinstance(tracker, NoTracker)
    tracker.log({"loss": 1.0}, step=1)
    tracker.examples(rows(12.0), step=1)
    tracker.warn("Title", "text")
    tracker.model(folder, 1, {})
    tracker.summary({"loss": 1.0})
    tracker.finish()
    assert list(folder.iterdir()) == []
    assert dict(os.environ) == before


def test_a_tracker_that_cannot_start_is_one_sentence_and_no_tracker(folder: Path):
    (folder / "tensorboard").write_text("a file where a folder should be")
    warned: list[str] = []
    tracker = start_tracker(TrackingSpec(to="tensorboard"), folder, CONFIG, warned.append)
    tracker.log({"train/loss": 2.5}, step=1)
    tracker.finish()
    (line,) = warned
    assert line.startswith("tensorboard cannot start (")
    assert line.endswith("): the run is tracked in its metrics.jsonl alone")


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_stops_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)  # what find_spec takes for a module that is not there
    with pytest.raises(RecipeError, match=rf"'{name}', which is not installed: pip install 'catalens\[{name}\]'"):
        start_tracker(TrackingSpec.model_validate({"to": name}), folder, CONFIG, print)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_thumbnail_carries_nothing_but_pixels(format: str):
    """Saved in any format, as trackers do; comments, EXIF and profiles of the shop's file stay behind."""
    exif = Image.Exif()
    exif[0x010E] = "secret studio"
    original, saved = io.BytesIO(), io.BytesIO()
    picture = Image.new("RGB", (400, 300), "red")
    picture.save(original, format, exif=exif, icc_profile=b"secret profile", comment=b"secret comment")
    thumbnail(original.getvalue()).save(saved, format)
    assert b"secret" in original.getvalue()
    assert b"secret" not in saved.getvalue()
