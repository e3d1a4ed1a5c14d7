"""Rows with several pictures, and questions with texts of their own: from a table to predictions and a server."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from served import serving

import catalens
from catalens.catalog import Catalog
from catalens.checkpoint import load_processor
from catalens.config import FieldSpec, PromptSpec, make_recipe
from catalens.data import Encoder, load_examples
from catalens.errors import CatalogError, RecipeError
from catalens.evaluation.evaluate import evaluate
from catalens.examples import LONGEST_INPUT, complete_question
from catalens.features import FeatureCache
from catalens.inference import InputSpec, open_input, question_inputs
from catalens.preparing import PrepareSpec
from catalens.reading import Columns

SHADES = {"RED": (200, 30, 30), "GREEN": (20, 150, 40), "BLUE": (30, 60, 220)}
WORDS = {"RED": "crimson", "GREEN": "olive", "BLUE": "navy"}
FIELDS = [
    {"column": "front", "label": "Front", "kind": "category"},
    {"column": "back", "label": "Back", "kind": "category"},
]


def card(shade: str, n: int) -> bytes:
    """A picture of a shade, a little different each time."""
    rng = random.Random(f"{shade} {n}")
    image = Image.new("RGB", (96, 96), tuple(c + rng.randint(-20, 20) for c in SHADES[shade]))
    for _ in range(60):
        image.putpixel((rng.randrange(96), rng.randrange(96)), (255, 255, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*dict.fromkeys(name for row in rows for name in row)])
        writer.writeheader()
        writer.writerows(rows)
    return path


def shop(folder: Path, products: int) -> Path:
    """Products with a picture of the front and one of the back, each of any shade, and words for the back."""
    rng, rows = random.Random(1), []
    for n in range(products):
        front, back = rng.choice([*SHADES]), rng.choice([*SHADES])
        row = {"sku": f"P{n}", "front": front, "back": back, "words": f"a thing, {WORDS[back]} behind"}
        for number, shade in ((1, front), (2, back)):
            name = f"{n}-{number}.png"
            (folder / name).write_bytes(card(shade, 2 * n + number))
            row[f"image_{number}"] = name
        rows.append(row)
    return write(folder / "shop.csv", rows)


def prepared(table: Path, out: str, pictures: str = "all", **columns) -> tuple[Path, list[str]]:
    told: list[str] = []
    spec = PrepareSpec.model_validate({"table": {"pictures": pictures}, "max_bad": 0.5})
    named = {"image": "image_1", "id": "sku", "fields": {"front": "category", "back": "category"}} | columns
    folder, _ = catalens.prepare(str(table), table.parent / out, Columns(**named), spec, notice=told.append)
    return folder, told


def recipe_of(catalog: Path, question: str, steps: int, **more):
    training = {"method": "full", "parts": {"vision": "frozen"}, "optimizer": "muon", "learning_rate": 3e-3}
    return make_recipe(
        {
            "catalog": str(catalog),
            "prompt": {"question": question, "fields": FIELDS} | more,
            "training": training | {"max_steps": steps, "batch_size": 16, "num_evals": 1, "validation_rows": 4},
            "evaluation": {"batch_size": 16, "max_new_tokens": 24, "resamples": 100, "before": False},
            "tracking": {"to": "none"},
        }
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return shop(tmp_path_factory.mktemp("shop"), 300)


@pytest.fixture(scope="module")
def several(table: Path) -> Path:
    return prepared(table, "several")[0]


@pytest.fixture(scope="module")
def worded(table: Path) -> Path:
    return prepared(table, "worded", "first", inputs=("words",))[0]


@pytest.fixture(scope="module")
def fronts_and_backs(several: Path, tmp_path_factory) -> Path:
    """A run that learned the front from the first picture and the back from the second."""
    run = tmp_path_factory.mktemp("runs") / "several"
    catalens.train(recipe_of(several, "What is shown?", 130), run)
    return run


@pytest.fixture(scope="module")
def told_by_words(worded: Path, tmp_path_factory) -> Path:
    """A run that learned the front from the picture and the back from the words."""
    run = tmp_path_factory.mktemp("runs") / "worded"
    catalens.train(recipe_of(worded, "What is shown? The shop says: {words}", 130), run)
    return run


# Several pictures


def test_all_pictures_of_a_row_are_stored_in_one(several: Path, table: Path):
    import datasets

    catalog = Catalog(several)
    assert catalog.card.roles.images == ["image", "image_2"]
    assert sum(catalog.card.rows.values()) == 300
    row = catalog.rows("test")[0]
    number = int(row["sku"][1:])
    pictures = [(table.parent / f"{number}-{place}.png").read_bytes() for place in (1, 2)]
    assert [row["image"], row["image_2"]] == pictures
    opened = datasets.load_dataset(str(several), split="test", keep_in_memory=True)
    assert opened[0]["image_2"].getpixel((50, 50)) == Image.open(io.BytesIO(pictures[1])).getpixel((50, 50))


def test_the_second_picture_is_used_and_only_for_what_it_shows(fronts_and_backs: Path):
    metrics = evaluate(fronts_and_backs).metrics
    assert all(field["accuracy"]["value"] > 0.9 for field in metrics["model"]["fields"].values())
    first, second = metrics["image_use"]["positions"]
    assert [first["fields"][name]["shown"] for name in ("front", "back")] == [True, False]
    assert [second["fields"][name]["shown"] for name in ("front", "back")] == [False, True]
    assert first["verdict"] == second["verdict"] == "uses_image"
    assert first["rows"] == metrics["rows"]
    page = (fronts_and_backs / "evaluation" / "report.html").read_text()
    assert "It uses picture 1 and picture 2." in page
    assert page.count('alt="Picture 2 of ') == metrics["rows"]


def test_predictions_of_a_table_are_those_of_the_catalogue(fronts_and_backs: Path, several: Path, table: Path):
    predictor = catalens.load_predictor(fronts_and_backs)
    rows = Catalog(several).rows("test")
    asked = [predictor.query([row["image"], row["image_2"]]) for row in rows]
    known = {row["sku"]: found.values for row, found in zip(rows, predictor.predict(asked), strict=True)}
    assert sum(known[row["sku"]]["back"] == row["back"] for row in rows) > 0.9 * len(rows)
    spec = {"image": "image_1", "id": "sku", "pictures": "all"}
    for where, settings in ((several, {"split": "test"}), (table, spec)):
        source = open_input([str(where)], InputSpec(**settings))
        products = [rows for rows in source.products() if rows[0].id in known]
        assert len(products) == len(known)
        assert {len(rows) for rows in products} == {2}
    out = table.parent / "predicted.jsonl"
    from typer.testing import CliRunner

    from catalens.cli.app import app

    flags = ["--image", "image_1", "--id", "sku", "--pictures", "all", "--out", str(out)]
    done = CliRunner().invoke(app, ["predict", str(fronts_and_backs), str(table), *flags])
    assert done.exit_code == 0, done.output
    records = {one["id"]: one for one in map(json.loads, out.read_text().splitlines())}
    assert len(records) == 300
    assert all({name: records[id][name] for name in values} == values for id, values in known.items())


def test_lengths_and_costs_count_every_picture(several: Path):
    encoder = Encoder(load_processor("tiny"), recipe_of(several, "What is shown?", 1).prompt)
    examples = load_examples(Catalog(several), encoder, "train", FeatureCache(encoder, features=False))
    assert examples.lengths()[:3] == [len(examples[n]["input_ids"]) for n in range(3)]
    assert examples.tiles()[:3] == [len(encoder.family.normalised_pixels(examples[n]["images"])) for n in range(3)]
    view = catalens.check(several, recipe_of(several, "What is shown?", 1)).view
    own = encoder.processor.image_processor.num_crops
    mean = sum(examples.lengths()) / len(examples)
    assert next(cost.tokens for cost in view["costs"] if cost.num_crops == own) == pytest.approx(mean)


PICTURE_ROWS = [  # as Shopify exports them: further pictures in rows of their own
    {"Handle": "a", "Title": "Bag", "Price": "5", "Image": "0-1.png"},
    {"Handle": "a", "Title": "", "Price": "", "Image": "0-2.png"},
    {"Handle": "a", "Title": "", "Price": "", "Image": "1-1.png"},
    {"Handle": "b", "Title": "Hat", "Price": "7", "Image": "1-2.png"},
    {"Handle": "c", "Title": "Cap", "Price": "8", "Image": "2-1.png"},
    {"Handle": "c", "Title": "", "Price": "9", "Image": "2-2.png"},
]


@pytest.mark.parametrize(("most", "pictures"), [(4, [3, 1, 1, 1]), (2, [2, 1, 1, 1])])
def test_rows_of_pictures_alone_belong_to_the_row_before(table: Path, most: int, pictures: list[int]):
    path = write(table.parent / "rows.csv", PICTURE_ROWS)
    told: list[str] = []
    settings = {"table": {"pictures": "all", "max_pictures": most}, "fractions": {"train": 1.0}}
    spec = PrepareSpec.model_validate(settings)
    columns = Columns("Image", "Handle", {"Title": "text", "Price": "number"})
    folder, card = catalens.prepare(str(path), table.parent / f"rows{most}", columns, spec, notice=told.append)
    rows = Catalog(folder).rows("train")
    assert [sum(bool(row[name]) for name in card.roles.images) for row in rows] == pictures
    assert [(row["Handle"], row["Title"], row["Price"]) for row in rows[:2]] == [("a", "Bag", 5), ("b", "Hat", 7)]
    assert any("--max-pictures" in text for text in told) == (most == 2)
    again, _ = catalens.prepare(str(path), folder, columns, spec, notice=told.append)
    assert "is complete" in told[-1]
    assert again == folder


@pytest.mark.parametrize(
    ("cell", "pictures"),
    [
        ("0-1.png, 0-2.png", 2),
        ('["0-1.png", "0-2.png", "1-1.png"]', 3),
        ("0-1.png|none.png|0-2.png", 2),  # one of them is not there
        ("none.png, 0-1.png", 1),
        ("0-1.png, 0-1.png", 1),
        ("0-1.png, same.png", 1),  # the same bytes
    ],
)
def test_of_several_pictures_those_count_that_there_are(table: Path, tmp_path: Path, cell: str, pictures: int):
    (table.parent / "same.png").write_bytes((table.parent / "0-1.png").read_bytes())
    path = write(table.parent / "cell.csv", [{"sku": "A", "title": "Bag", "photos": cell}])
    spec = PrepareSpec.model_validate({"table": {"pictures": "all"}, "fractions": {"train": 1.0}, "max_bad": 0.6})
    folder, card = catalens.prepare(str(path), tmp_path / "out", Columns("photos", "sku", {"title": "text"}), spec)
    (row,) = Catalog(folder).rows("train")
    assert sum(bool(row[name]) for name in card.roles.images) == pictures == card.roles.pictures
    assert sum(card.left_out.values()) == cell.count("none")


@pytest.mark.parametrize("pictures", ["first", "each"])
def test_numbered_columns_are_further_pictures(table: Path, pictures: str):
    folder, told = prepared(table, f"numbered-{pictures}", pictures)
    assert sum(Catalog(folder).card.rows.values()) == {"first": 300, "each": 600}[pictures]
    assert ("more pictures of a row: image_2" in told) == (pictures == "each")


# Texts in the question


def test_texts_are_used_and_baselines_say_so(told_by_words: Path):
    metrics = evaluate(told_by_words).metrics
    assert all(field["accuracy"]["value"] > 0.9 for field in metrics["model"]["fields"].values())
    alone = metrics["baselines"]["text_alone"]["fields"]
    assert alone["back"]["accuracy"]["value"] > 0.9
    assert alone["front"]["accuracy"]["value"] < 0.7
    shown = {name: field["shown"] for name, field in metrics["image_use"]["fields"].items()}
    assert shown == {"front": True, "back": False}
    page = (told_by_words / "evaluation" / "report.html").read_text()
    assert "Text alone" in page


def test_predict_and_serve_are_given_the_texts(told_by_words: Path, worded: Path, table: Path):
    predictor = catalens.load_predictor(told_by_words)
    picture = Catalog(worded).rows("test")[0]["image"]
    for shade, word in WORDS.items():
        (found,) = predictor.predict([predictor.query([picture], {"words": f"a thing, {word} behind"})])
        assert found.values["back"] == shade
    source = open_input([str(table)], InputSpec(image="image_1", id="sku"), texts=["words"])
    assert {rows[0].fields["words"] for rows in source.products()} == {f"a thing, {w} behind" for w in WORDS.values()}
    told: list[str] = []
    open_input([str(table.parent / "0-1.png")], InputSpec(), told.append, ["words"])
    assert told == ["the question has no 'words' for pictures alone: give a table for them"]


def test_a_server_takes_products(told_by_words: Path, worded: Path):
    import base64

    predictor = catalens.load_predictor(told_by_words)
    picture = Catalog(worded).rows("test")[0]["image"]
    source = {"base64": base64.b64encode(picture).decode()}
    with serving(predictor) as server:
        products = [{"pictures": [source], "texts": {"words": f"a thing, {word} behind"}} for word in WORDS.values()]
        answer = server.post_json({"products": products}).json()
        assert [one["fields"]["back"]["value"] for one in answer["predictions"]] == [*WORDS]
        for body in (
            {"products": []},
            {},
            {"products": [{"pictures": []}]},
            {"products": products, "pictures": [source]},
        ):
            assert server.post_json(body).status_code == 422
        refused = server.post_json({"products": [{"pictures": [source], "texts": {"price": "5"}}]})
        assert refused.status_code == 422
        assert refused.json()["detail"] == "the model is given no 'price': it takes words"
        files = [("pictures", ("a.png", picture, "image/png"))] * 2
        form = {"words": "a thing, navy behind"}
        apart = server.request("POST", "/v1/predict", files=files, data=form).json()["predictions"]
        assert [one["fields"]["back"]["value"] for one in apart] == ["BLUE", "BLUE"]
        form["together"] = "true"
        together = server.request("POST", "/v1/predict", files=files, data=form).json()
        assert len(together["predictions"]) == 1
        broken = server.post_json({"products": [{"pictures": [source, {"base64": "AAAA"}]}, *products[:1]]}).json()
        assert [one["error"] is None for one in broken["predictions"]] == [False, True]


PROMPT = PromptSpec(
    question="What is it? {words} And: {words}, {number}.",
    fields=(FieldSpec(column="title", label="Product", kind="text"),),
)


@pytest.mark.parametrize(
    ("name", "pictures", "words", "inputs"),
    [("fronts_and_backs", 2, "What is shown?", []), ("told_by_words", 1, "a thing, ", ["words"])],
)
def test_an_export_is_proven_with_all_pictures_and_texts(
    name: str, pictures: int, words: str, inputs: list[str], request: pytest.FixtureRequest, tmp_path: Path
):
    export = catalens.export(request.getfixturevalue(name), "merged", tmp_path / "out", rows=4)
    assert export.certificate.passed
    rows = pq.read_table(export.folder / "reference.parquet").to_pylist()
    assert [len(row["pictures"]) for row in rows] == [pictures] * 4
    assert all(words in row["question"] for row in rows)
    assert question_inputs(export.folder) == inputs


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), PROMPT)


TAGS = ["<|end|>", "<|", "|>", "<", "<|image_1|>", "</s>", "<s>", "<unk>", "<|image|>", "<|assistant|>"]
HOSTILE = st.lists(st.sampled_from([*TAGS, "\n", "\x00", "\ud83d", "{words}", "a", " "])).map("".join)


@given(HOSTILE | st.text(max_size=40))
def test_no_text_can_forge_a_token(encoder: Encoder, words: str):
    special = set(encoder.tokenizer.all_special_ids) | {encoder.processor.image_token_id}
    special |= set(encoder.tokenizer.get_added_vocab().values())
    size = encoder.hd_size((50, 50))

    def specials(question: str) -> list[int]:
        return [token for token in encoder.prompt_ids([size], question).tolist() if token in special]

    question = complete_question(PROMPT, {"words": words, "number": 5.0})
    assert specials(question) == specials(complete_question(PROMPT, {}))
    assert "\n" not in question
    assert question.endswith(", 5.0.")


def test_what_is_missing_or_long_is_left_empty_or_cut():
    assert complete_question(PROMPT, {"words": None, "number": float("nan")}) == "What is it?  And: , ."
    assert len(complete_question(PROMPT, {"words": "word " * 5000})) < 2 * LONGEST_INPUT + 50


def test_questions_that_cannot_be_asked_are_refused(worded: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="gives 'back' away, which the model is to write"):
        recipe_of(worded, "Given {back}?", 1)
    recipe = recipe_of(worded, "Given {price}?", 1)
    for refused in (lambda: catalens.train(recipe, tmp_path / "run"), lambda: catalens.check(worded, recipe)):
        with pytest.raises(CatalogError, match=r"no column 'price' for the question .*: it has words, front, back"):
            refused()


def test_a_field_that_the_model_does_not_write_can_be_given(worded: Path):
    prompt = PromptSpec(question="Seen from behind it is {back}.", fields=(FieldSpec(**FIELDS[0]),))
    examples = load_examples(Catalog(worded), Encoder(load_processor("tiny"), prompt), "test")
    rows = Catalog(worded).rows("test")
    assert [one.question for one in examples.queries] == [f"Seen from behind it is {row['back']}." for row in rows]
