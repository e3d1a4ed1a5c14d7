"""A real run of TensorBoard, read back by its own accumulator."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked import WARNING, picture, tell

from catalens.config import TrackingSpec
from catalens.tracking import LoggedExample, start_tracker


def read_events(folder: Path) -> Any:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events: Any) -> dict[str, list[tuple[int, float]]]:
    """Name to steps and values."""
    names = events.Tags()["scalars"]
    return {name: [(event.step, round(event.value, 6)) for event in events.Scalars(name)] for name in names}


def texts(events: Any, name: str) -> dict[int, str]:
    """Step to text."""
    return {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{name}/text_summary")}


def test_tensorboard_holds_everything_but_the_model(folder: Path, capfd: pytest.CaptureFixture[str]):
    tell(folder, TrackingSpec(to="tensorboard"))
    assert capfd.readouterr() == ("", "")
    events = read_events(folder)
    assert scalars(events) == {
        "train/loss": [(1, 2.5), (2, 1.5)],
        "train/learning_rate": [(1, 0.001)],
        "validation/loss": [(2, 1.25), (4, 0.75)],
        "best/loss": [(4, 0.75)],
        "best/shuffled_hurts": [(4, 0.0)],
    }
    assert "catalog: sha256:4f1c0ffee4f1c0ffee" in texts(events, "config")[0]
    assert sorted(events.Tags()["images"]) == ["validation/examples/bag-2", "validation/examples/coat-1"]
    (image,) = events.Images("validation/examples/coat-1")
    assert (image.step, image.width, image.height) == (2, 512, 384)
    read = texts(events, "validation/examples/coat-1")
    assert "| title | Coat | Cape |\n| price | 10.0 | 12.0 |" in read[2]
    assert "| price | 10.0 | 10.5 |" in read[4]
    hostile = texts(events, "validation/examples/bag-2")[4]
    assert r"| title | <img src=x onerror=alert(1)> \| <b>coat</b> |  |" in hostile  # TensorBoard shows no such HTML
    assert hostile.endswith("\n\nno price")
    assert texts(events, f"warning/{WARNING[0]}") == {4: WARNING[1]}
    assert texts(events, "best/by") == {4: "loss"}


def test_a_tracker_that_fails_in_the_middle_is_told_once_and_goes_on(folder: Path):
    warned: list[str] = []
    tracker = start_tracker(TrackingSpec(to="tensorboard"), folder, {}, warned.append)
    tracker.log({"train/loss": 2.5}, step=1)
    for step in (2, 4):
        tracker.examples([LoggedExample("coat-1", b"no picture", {"price": 10.0}, None, "no price")], step)
    tracker.log({"train/loss": 1.5}, step=4)
    tracker.finish()
    (line,) = warned
    assert line.startswith("tensorboard failed (not a picture in one of JPEG, ")
    assert line.endswith("): the run goes on, its metrics.jsonl holds every figure")
    assert scalars(read_events(folder)) == {"train/loss": [(1, 2.5), (4, 1.5)]}


@pytest.mark.parametrize(("allowed", "seen"), [(0, []), (1, ["coat-1"]), (16, ["bag-2", "coat-1"])])
def test_no_more_pictures_than_the_recipe_allows(folder: Path, allowed: int, seen: list[str]):
    tracker = start_tracker(TrackingSpec(to="tensorboard", examples=allowed), folder, {}, print)
    rows = [
        LoggedExample(name, picture("red"), {"price": 10.0}, {"price": 9.0}, None) for name in ("coat-1", "bag-2")
    ]
    tracker.examples(rows, step=1)
    tracker.finish()
    assert sorted(read_events(folder).Tags()["images"]) == [f"validation/examples/{name}" for name in seen]
