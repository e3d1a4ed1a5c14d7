"""A recipe is read as written, or refused in one sentence that names the key and the fix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from catalens.config import (
    REFERENCE_FIELDS,
    FieldSpec,
    NumberFormat,
    PromptSpec,
    Recipe,
    TrainingSpec,
    dump_recipe,
    load_recipe,
    make_recipe,
)
from catalens.errors import RecipeError
from catalens.metrics import METRICS, metrics_of


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_catalogue_is_all_that_a_recipe_needs(tmp_path: Path):
    recipe = load_recipe(written(tmp_path, "catalog: catalogs/demo"))
    assert recipe == Recipe(catalog="catalogs/demo")
    assert recipe.model == "tiny"
    assert recipe.prompt.fields == REFERENCE_FIELDS


def test_the_example_of_the_module_is_a_recipe(tmp_path: Path):
    from catalens import config

    example = (config.__doc__ or "").split("\n\n")[1]
    recipe = load_recipe(written(tmp_path, example.replace("\n    ", "\n").removeprefix("    ")))
    assert recipe.training.learning_rate == 1e-4
    assert [field.label for field in recipe.prompt.fields] == ["Product", "Category", "Full Price"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("5%", [0.05, 0.05, 0.05]),
        (0.2, [0.2, 0.2, 0.2]),
        ({"full_price": "10%"}, [0.05, 0.05, 0.1]),
        ({"full_price": 0.1, "title": "2%"}, [0.02, 0.05, 0.1]),
    ],
)
def test_wrong_values_are_borne_by_column(told, expected, tmp_path: Path):
    recipe = make_recipe({"catalog": "x", "evaluation": {"accept_error": told}})
    columns = [field.column for field in recipe.prompt.fields]
    assert list(recipe.evaluation.bearable(columns).values()) == expected
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (2, "2 is no share of wrong values: give one such as 5%"),
        ("much", "'much' is no share"),
        ({"full_price": "100%"}, "is no share"),
        ({"full_price": None}, "is no share"),
        ({"price": 0.1}, "accept_error names 'price': did you mean 'full_price'"),
    ],
)
def test_what_is_no_share_of_wrong_values(told, reason: str):
    with pytest.raises(RecipeError, match=reason):
        make_recipe({"catalog": "x", "evaluation": {"accept_error": told}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("catalogue: x", r"unknown key 'catalogue': did you mean 'catalog'\?"),
        ("catalog: x\ntraning: {epochs: 1}", r"unknown key 'traning': did you mean 'training'\?"),
        ("catalog: x\ntraining: {epoch: 1}", r"unknown key 'training.epoch': did you mean 'epochs'\?"),
        ("catalog: x\ntraining: {lora: {rnk: 1}}", r"unknown key 'training.lora.rnk': did you mean 'rank'\?"),
        (
            "catalog: x\nprompt: {fields: [{colum: a, label: A, kind: text}]}",
            r"yaml: unknown key 'prompt.fields.0.colum': did you mean 'column'\?",
        ),
        ("catalog: x\nzzz: 1", r"unknown key 'zzz' \(known: catalog, .*tracking, training\)"),
    ],
)
def test_an_unknown_key_names_its_nearest_relative(tmp_path: Path, text: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping"),
        ("- a", "a recipe is a mapping"),
        ("42", "a recipe is a mapping"),
        ("null", "a recipe is a mapping"),
        ("model: tiny", "key 'catalog' is missing: add it"),
        ("catalog:", "catalog: input should be a valid string, not None"),
        ("catalog: [a]", r"catalog: input should be a valid string, not \['a'\]"),
        ("catalog: 2020-02-30", r"not valid YAML \(day is out of range"),
        ("catalog: !!int five", "not valid YAML"),
        ("catalog: !!bool perhaps", "not valid YAML"),
        ("catalog: !!timestamp soon", "not valid YAML"),
        ("catalog: !!python/object/apply:os.system [true]", "not valid YAML .*python/object"),
        ("catalog: x\ncatalog: y", "key 'catalog' stands twice"),
        ("catalog: x\ntraining:\n  epochs: 1\n  epochs: 2", "line 3: .*key 'epochs' stands twice"),
        ("catalog: x\n? [a]\n: b", "line 2: not valid YAML"),
        ("catalog: x\n1: b", "1: keys should be strings"),
        ("catalog: x\n\ttraining: 1", "line 2: not valid YAML"),
        ("catalog: &a [*a]", "catalog: input should be a valid string"),
        ("[" * 5000, "not valid YAML"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"catalog: \x00", "not valid YAML"),
        ("catalog: x\ntraining:", "training: should be a group of keys, not None"),
        ("catalog: x\ntraining: [1]", r"training: should be a group of keys, not \[1\]"),
        ("catalog: x\nprompt: {numbers:}", "prompt.numbers: should be a group of keys, not None"),
        ("catalog: x\nprompt: {fields: []}", "prompt.fields: list should have at least 1 item"),
        ("catalog: x\nprompt: {fields: {a: 1}}", "prompt.fields: input should be a valid list"),
        ("catalog: x\nprompt: {fields: [a]}", "yaml: prompt.fields.0: should be a group of keys, not 'a'$"),
        ("catalog: x\ntraining: {epochs: many}", "training.epochs: input should be a valid number, .* not 'many'"),
        ("catalog: x\ntraining: {epochs: 0}", "training.epochs: input should be greater than 0, not 0"),
        ("catalog: x\ntraining: {learning_rate: .inf}", "training.learning_rate: input should be a finite number"),
        ("catalog: x\ntraining: {learning_rate: .nan}", "training.learning_rate: input should be"),
        (
            "catalog: x\ntraining: {method: prefix}",
            "training.method: input should be 'full', 'lora' or 'qlora', not 'prefix'",
        ),
        ("catalog: x\nnum_crops: 1.5", "num_crops: input should be a valid integer"),
        (
            "catalog: x\ntracking: {to: mlflow}",
            "tracking.to: input should be 'wandb', 'trackio', 'tensorboard' or 'none'",
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_hostile_file_is_one_sentence(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml"))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_file_that_grows_when_it_is_printed_is_refused_at_once(tmp_path: Path):
    """Ten lists of ten lists of ...: gigabytes when written out."""
    lists = ["&a0 [x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    with pytest.raises(RecipeError, match=r"training: should be a group of keys, not \[\[") as caught:
        load_recipe(written(tmp_path, f"catalog: x\ntraining: [{', '.join(lists)}]"))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    with pytest.raises(RecipeError, match=r"cannot be read .*give the path of a recipe"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"fields": [{"column": "a", "label": "A", "kind": "text"}] * 2}, "prompt: column 'a' is used by two fields"),
        (
            {"fields": [{"column": c, "label": "A", "kind": "text"} for c in "ab"]},
            "prompt: label 'A' is used by two fields: name each field once",
        ),
        *(
            ({"fields": [{"column": "a", "label": label, "kind": "text"}]}, r"prompt.fields.0.label: .*plain text")
            for label in ("", " A", "A ", "A  B", "A\nB", "A\tB", "<|end|>", "A<|", "</s>", "A\x00", "A\x07")
        ),
        ({"question": "What?<|end|>"}, r"prompt: the question holds '<\|end\|>'"),
        ({"question": "<s>What?"}, "prompt: the question holds '<s>'"),
        ({"question": "What?\x00"}, "prompt: the question holds '.x00'"),
        ({"numbers": {"decimal": ",", "thousands": ","}}, "prompt.numbers: decimal and thousands are both ','"),
        ({"numbers": {"thousands": "."}}, "prompt.numbers: decimal and thousands are both '.'"),
        ({"numbers": {"decimal": ";"}}, "prompt.numbers.decimal: input should be '.' or ','"),
        ({"numbers": {"decimals": -1}}, "prompt.numbers.decimals: input should be greater than or equal to 0"),
        ({"numbers": {"decimals": 7}}, "prompt.numbers.decimals: input should be less than or equal to 6"),
        *(
            ({"numbers": {key: text}}, "prompt.numbers: prefix")
            for key, text in [
                ("prefix", "1x"),
                ("suffix", "-"),
                ("prefix", " $"),
                ("suffix", "EUR "),
                ("prefix", "²"),
            ]
        ),
        ({"numbers": {"prefix": "<|user|>"}}, r"prompt.numbers: prefix or suffix holds '<\|user\|>': leave it out"),
        ({"numbers": {"suffix": "a\nb"}}, "prompt.numbers: prefix or suffix holds"),
    ],
    ids=lambda value: repr(value)[:70],
)
def test_a_prompt_that_could_not_be_read_back_is_refused(prompt: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        make_recipe({"catalog": "x", "prompt": prompt})


@pytest.mark.parametrize(
    "label", ["Product", "Full Price", "Preis, netto", "商品", "Größe: cm", "السعر", "a|b", "<3"]
)
def test_labels_in_any_language(label: str):
    assert FieldSpec(column="a", label=label, kind="text").label == label


def test_a_word_for_what_is_absent_is_of_texts_and_categories():
    fields = [{"column": "material", "label": "Material", "kind": "category", "absent": "not visible"}]
    recipe = make_recipe({"catalog": "x", "prompt": {"fields": fields}})
    assert recipe.prompt.fields[0].absent == "not visible"
    assert make_recipe({"catalog": "x"}).prompt.fields[1].absent is None
    assert PromptSpec.model_validate_json(recipe.prompt.model_dump_json()) == recipe.prompt
    for field, message in (
        (
            {"kind": "number"},
            "prompt.fields.0: a number has no word for a missing value: leave absent out of 'material'",
        ),
        ({"absent": ""}, "absent '' is not one line of plain text"),
        ({"absent": "not\nvisible"}, "absent 'not\\\\nvisible' is not one line of plain text"),
        ({"absent": "<|end|>"}, "absent .* is not one line of plain text"),
        ({"absent": False}, "prompt.fields.0.absent: input should be a valid string, not False"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_recipe({"catalog": "x", "prompt": {"fields": [fields[0] | field]}})


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("training.epochs=3", "training.epochs", 3.0),
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("training.learning_rate=3E-2", "training.learning_rate", 3e-2),
        ("training.batch_size=1e2", "training.batch_size", 100),
        (" training.seed = 7 ", "training.seed", 7),
        ("training.max_steps=null", "training.max_steps", None),
        ("training.lora.dora=true", "training.lora.dora", True),
        ("training.lora.rank=4", "training.lora.rank", 4),
        ("training.lora.targets=[qkv_proj, o_proj]", "training.lora.targets", ("qkv_proj", "o_proj")),
        ("training={epochs: 2}", "training.epochs", 2.0),
        ("prompt.question=Was ist das: ein Bild?", None, "prompt.question: .*valid string, not {"),
        ("prompt.question='Was ist das: ein Bild?'", "prompt.question", "Was ist das: ein Bild?"),
        ("prompt.numbers.decimal=','", "prompt.numbers.decimal", ","),
        ("model=a=b", "model", "a=b"),
        ("model=/models/phi", "model", "/models/phi"),
        ("evaluation.split=1e4", None, "evaluation.split: input should be .test. or .validation., not 10000.0"),
        ("training.epochs", None, "--set training.epochs: write it as key.key=value, such as training.epochs=3"),
        ("=3", None, "write it as key.key=value"),
        ("", None, "write it as key.key=value"),
        ("training..epochs=3", None, "write it as key.key=value"),
        (".epochs=3", None, "write it as key.key=value"),
        ("training.epochs.more=3", None, "'epochs' is a value, not a group of keys"),
        ("model.name=tiny", None, "'model' is a value, not a group of keys"),
        ("training.epochs=[", None, r"--set training.epochs=\[: not valid YAML"),
        ("training.epochs=2020-02-30", None, "--set training.epochs=2020-02-30: not valid YAML"),
        ("training.epoch=3", None, r"unknown key 'training.epoch': did you mean 'epochs'\?"),
        ("training=3", None, "training: should be a group of keys, not 3"),
    ],
)
def test_overrides(override: str, place: str | None, value: object):
    data = {"catalog": "x", "model": "tiny", "training": {"epochs": 1, "batch_size": 2}}
    if place is None:
        with pytest.raises(RecipeError, match=str(value)):
            make_recipe(data, [override])
        return
    node = make_recipe(data, [override])
    for part in place.split("."):
        node = getattr(node, part)
    assert node == value
    assert type(node) is type(value)


def test_overrides_apply_in_order_keep_what_they_do_not_name_and_leave_the_mapping_alone():
    data = {"catalog": "x", "training": {"epochs": 1, "batch_size": 2}}
    recipe = make_recipe(data, ["training.epochs=2", "training.epochs=3", "evaluation.rows=5"])
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.evaluation.rows) == (3, 2, 5)
    assert data == {"catalog": "x", "training": {"epochs": 1, "batch_size": 2}}


def test_an_override_fills_a_group_that_stands_empty():
    assert make_recipe({"catalog": "x", "training": None}, ["training.epochs=2"]).training.epochs == 2


@pytest.mark.parametrize("empty", [[], "", 0, False])
def test_an_override_does_not_paper_over_a_value_in_the_place_of_a_group(empty: object):
    with pytest.raises(RecipeError, match="'training' is a value, not a group of keys"):
        make_recipe({"catalog": "x", "training": empty}, ["training.epochs=2"])


@pytest.mark.parametrize("kind", ["text", "category", "number"])
def test_metric_for_best_model_knows_the_metrics_of_each_kind(kind: str):
    fields = [{"column": "a.b", "label": "A", "kind": kind}]
    for metric in metrics_of(kind):
        recipe = make_recipe(
            {"catalog": "x", "prompt": {"fields": fields}}, [f"training.metric_for_best_model=a.b.{metric}"]
        )
        assert recipe.training.metric_for_best_model == f"a.b.{metric}"
    others = {name for name, metric in METRICS.items() if metric.kind not in (kind, "answer")}
    for metric in others:
        with pytest.raises(RecipeError, match="the choices are "):
            make_recipe(
                {"catalog": "x", "prompt": {"fields": fields}}, [f"training.metric_for_best_model=a.b.{metric}"]
            )


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("evaluations: 4", "num_evals: 4"),
        ("checkpoints: 7", "num_checkpoints: 7"),
        ("best_by: title.exact", "metric_for_best_model: title.exact"),
    ],
)
def test_a_key_of_an_earlier_version_is_read_with_a_notice(old: str, now: str, tmp_path):
    for name, line in (("old", old), ("now", now)):
        (tmp_path / f"{name}.yaml").write_text(f"catalog: x\ntraining:\n  {line}\n")
    with pytest.warns(FutureWarning, match=f"training.{old.split(':')[0]} is now training.{now.split(':')[0]}"):
        read = load_recipe(tmp_path / "old.yaml")
    assert read == load_recipe(tmp_path / "now.yaml")
    key, value = old.split(": ")
    with pytest.warns(FutureWarning, match="--set"):
        assert make_recipe({"catalog": "x"}, [f"training.{key}={value}"]) == read


def test_a_key_that_is_gone_is_read_over_with_a_notice():
    with pytest.warns(FutureWarning, match="training.liger is left out"):
        assert make_recipe({"catalog": "x", "training": {"liger": True}}) == make_recipe({"catalog": "x"})


def test_metric_for_best_model_suggests_and_needs_rows_to_measure_on():
    with pytest.raises(RecipeError, match=r"metric_for_best_model is 'title.exct': did you mean 'title.exact'\?"):
        make_recipe({"catalog": "x", "training": {"metric_for_best_model": "title.exct"}})
    with pytest.raises(RecipeError, match=r"'parse_rate' needs .*validation_rows above 0"):
        make_recipe({"catalog": "x", "training": {"metric_for_best_model": "parse_rate", "validation_rows": 0}})
    assert make_recipe({"catalog": "x", "training": {"validation_rows": 0}}).training.metric_for_best_model == "loss"


def test_everything_is_frozen():
    recipe = Recipe(catalog="x")
    for holder, name in [(recipe, "model"), (recipe.training.lora, "rank"), (recipe.prompt.fields[0], "label")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(holder, name, "changed")


PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="<\u2028\u2029"), min_size=1)
LABELS = PLAIN.map(lambda text: " ".join(text.split())).filter(bool)
NUMBERS = st.builds(
    NumberFormat,
    decimal=st.just("."),
    thousands=st.sampled_from(["", ",", " ", "'", "\u00a0", "\u202f"]),
    decimals=st.none() | st.integers(0, 6),
    prefix=st.sampled_from(["", "$", "€ ", "US$"]),
    suffix=st.sampled_from(["", " EUR", "円"]),
)
PROMPTS = st.builds(
    PromptSpec,
    question=PLAIN,
    fields=st.lists(LABELS, min_size=1, max_size=4, unique=True).map(
        lambda labels: [FieldSpec(column=f"c{n}", label=label, kind="text") for n, label in enumerate(labels)]
    ),
    numbers=NUMBERS,
)
TRAININGS = st.builds(
    TrainingSpec,
    learning_rate=st.floats(1e-12, 10),
    epochs=st.floats(0.01, 1e6),
    max_steps=st.none() | st.integers(1, 10**9),
    method=st.sampled_from(["full", "lora"]),
)


@given(recipe=st.builds(Recipe, catalog=PLAIN, model=PLAIN, prompt=PROMPTS, training=TRAININGS))
def test_a_dumped_recipe_reads_back_equal(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_dump_writes_every_default_out():
    dumped = dump_recipe(Recipe(catalog="x"))
    for name in (
        "metric_for_best_model: loss",
        "rank: 16",
        "decimal: .",
        "to: wandb",
        "label: Full Price",
        "resamples: 1000",
    ):
        assert name in dumped


def test_the_schema_describes_every_key():
    schema = Recipe.model_json_schema()
    for group in (schema, *schema["$defs"].values()):
        assert group["additionalProperties"] is False
        for name, key in group["properties"].items():
            described = {**schema["$defs"].get(key.get("$ref", "").rpartition("/")[2], {}), **key}
            assert len(described.get("description", "")) > 10, name


def test_defaults_hold_by_their_own_rules():
    """Pydantic does not check defaults."""
    assert Recipe.model_validate(Recipe(catalog="x").model_dump()) == Recipe(catalog="x")
