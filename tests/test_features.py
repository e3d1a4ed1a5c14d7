"""Features of a frozen tower are computed once, kept whole, and change no result."""

import json
import pickle
import resource

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from catalens import features
from catalens.catalog import Catalog
from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec, TrainingSpec
from catalens.data import Collator, Encoder, Examples, load_examples
from catalens.errors import TrainingError
from catalens.features import Estimate, FeatureCache
from catalens.model.modeling import Phi3VImageEmbedding
from catalens.training.train import train


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CATALENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), PromptSpec())


@pytest.fixture
def examples(drawn, encoder) -> Examples:
    found = load_examples(Catalog(drawn), encoder, "train")
    del found.rows[20:]
    return found


@pytest.fixture
def pictures(examples):
    return examples.pictures


def cache_of(encoder: Encoder, model=None, dtype=torch.float32) -> FeatureCache:
    cache = FeatureCache(encoder, 0, features=False)
    cache.open(model or load_model("tiny"), dtype)
    return cache


def runs_of(monkeypatch) -> list[int]:
    """How many pictures each pass through the tower has."""
    seen: list[int] = []
    original = Phi3VImageEmbedding.crop_features

    def counted(self, pixels):
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Phi3VImageEmbedding, "crop_features", counted)
    return seen


def test_pictures_are_decoded_once_while_they_fit(encoder, examples, monkeypatch):
    decoded = []
    original = Encoder.image
    monkeypatch.setattr(Encoder, "image", lambda self, data: decoded.append(1) or original(self, data))
    size = original(encoder, bytes(examples.pictures[0])).pixels.nbytes
    for room, expected in ((10 * size, 3), (0, 6)):
        decoded.clear()
        examples.images = FeatureCache(encoder, room, features=False)
        first, again = ([examples[index] for index in range(3)] for _ in range(2))
        assert len(decoded) == expected
        assert all(
            torch.equal(a["images"][0].pixels, b["images"][0].pixels) for a, b in zip(first, again, strict=True)
        )


def test_cached_features_train_like_pictures(encoder, examples):
    model = load_model("tiny")
    cache = cache_of(encoder, model)
    cache.fill(examples.pictures, lambda done: None)
    collate = Collator(encoder.family, encoder.tokenizer.pad_token_id)
    losses = []
    for source in (FeatureCache(encoder, 0, features=False), cache):
        examples.images = source
        batch = collate([examples[index] for index in range(len(examples))])
        losses.append(model(**batch).loss)
    assert "crop_features" in batch
    assert "pixel_values" not in batch
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)  # the tower saw other batches


def test_each_picture_is_seen_once_by_this_run_and_the_next(encoder, pictures, monkeypatch):
    seen, done = runs_of(monkeypatch), []
    tiles = sum(len(encoder.family.normalised_pixels([encoder.image(bytes(picture))])) for picture in pictures)
    cache_of(encoder).fill(pictures, done.append)
    assert sum(seen) == tiles
    assert done == [8, 16, 20]
    again = cache_of(encoder)
    again.fill(pictures, done.append)
    assert sum(seen) == tiles
    assert all(picture in again for picture in pictures)


def test_what_a_kill_left_is_ignored_and_the_rest_goes_on(encoder, pictures, monkeypatch):
    monkeypatch.setattr(features, "SHARD_BYTES", 1)  # a shard for each pass
    whole = cache_of(encoder)
    whole.fill(pictures, lambda done: None)
    shards = sorted(whole.folder.glob("*.safetensors"))
    assert len(shards) == 3
    first = {path.name: load_file(path) for path in shards}
    shards[0].rename(shards[0].with_name(f".{shards[0].name}.partial"))
    seen = runs_of(monkeypatch)
    cache_of(encoder).fill(pictures, lambda done: None)
    assert sum(seen) == sum(map(len, first[shards[0].name].values()))
    again = load_file(shards[0])
    assert all(torch.equal(again[name], tensor) for name, tensor in first[shards[0].name].items())


def test_other_weights_or_crops_are_another_cache(encoder):
    model, other = load_model("tiny"), Encoder(load_processor("tiny", 1), PromptSpec())
    folders = {cache_of(encoder, model).folder, cache_of(other, model).folder}
    next(p for n, p in model.named_parameters() if "img_processor" in n).data += 1
    folders.add(cache_of(encoder, model).folder)
    assert len(folders) == 3
    model.lm_head.weight.data += 1
    assert cache_of(encoder, model).folder in folders


def test_features_are_of_the_precision_that_the_run_has(encoder, pictures):
    wide, narrow = cache_of(encoder), cache_of(encoder, dtype=torch.bfloat16)
    for cache in (wide, narrow):
        cache.fill(pictures, lambda done: None)
    assert wide.folder != narrow.folder
    assert [cache(pictures[0]).features.dtype for cache in (wide, narrow)] == [torch.float32, torch.bfloat16]


@pytest.mark.integration
def test_workers_that_are_not_forked_read_the_cache_without_a_model(encoder, examples, pictures):
    """As Python 3.14 starts them by default."""
    cache = cache_of(encoder)
    cache.fill(pictures, lambda done: None)
    dataset = examples
    dataset.images = cache
    wanted = [dataset[index]["images"][0].features for index in range(len(dataset))]  # shards are open from here on
    assert len(pickle.dumps(cache)) < 10**6  # the tiny model's weights are seven times that
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="forkserver", generator=torch.Generator()
    )
    assert all(torch.equal(row["images"][0].features, features) for row, features in zip(loader, wanted, strict=True))


def test_a_copy_has_nothing_in_memory_and_decodes_by_itself(encoder, pictures):
    images, picture = FeatureCache(encoder, features=False), pictures[0]
    images(picture)
    copy = pickle.loads(pickle.dumps(images))
    assert picture in images
    assert picture not in copy
    assert torch.equal(copy(picture).pixels, images(picture).pixels)


def test_the_estimate_is_of_the_real_thing(encoder, pictures):
    cache = cache_of(encoder)
    before = cache.estimate(pictures, 10)
    assert (before.pictures, before.missing, before.passes) == (len(pictures), len(set(pictures)), 10)
    cache.fill(pictures, lambda done: None)
    written = sum(path.stat().st_size for path in cache.folder.iterdir())
    assert before.size == pytest.approx(written, rel=0.3)
    after = cache.estimate(pictures, 10)
    assert after.missing == 0
    assert f"{len(pictures)} of them there" in str(after)
    assert len(list(cache.folder.iterdir())) == 1  # the trial is gone


@pytest.mark.parametrize(
    ("changed", "pays"),
    [
        ({}, True),
        ({"passes": 1.0}, False),  # seen once: computing and writing is dearer
        ({"read": 0.2}, False),  # a slow disk
        ({"missing": 0, "passes": 1.0}, True),  # all there already
        ({"free": 1e9}, False),  # half of the disk stays free
    ],
)
def test_when_it_pays(changed, pays):
    usual = {"pictures": 100, "missing": 100, "size": 1e9, "free": 1e10}
    times = {"computed": 0.1, "read": 0.01, "written": 0.02, "passes": 3.0}
    assert Estimate(**{**usual, **times, **changed}).pays is pays


@pytest.mark.integration
def test_a_run_says_what_it_decided_and_keeps_to_it(recipe, tmp_path, capsys):
    def asked(**training):
        return recipe.model_copy(
            update={"training": TrainingSpec.model_validate(recipe.training.model_dump() | training)}
        )

    short = {"max_steps": 2, "num_evals": 1, "validation_rows": 0}
    train(asked(**short, feature_cache=True), tmp_path / "cached")
    assert "with the cache: on" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "cached" / "setup.json").read_text())["cached_features"] is True
    train(asked(**short, feature_cache=False), tmp_path / "plain")
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("cached", "plain"))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_a_file_that_cannot_be_written_is_one_sentence(encoder, pictures):
    cache = cache_of(encoder)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))  # what a full disk does, to this process alone
    try:
        with pytest.raises(TrainingError, match=r"File too large.*CATALENS_CACHE.*feature_cache=false"):
            cache.fill(pictures[:1], lambda done: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert pictures[0] not in cache_of(encoder)
