"""The recipe: one short YAML file that says everything about a run.

    catalog: catalogs/burberry
    model: microsoft/Phi-3-vision-128k-instruct
    num_crops: 4
    prompt:
      question: What is shown in this image?
      fields:
        - {column: title, label: Product, kind: text}
        - {column: category3_code, label: Category, kind: category}
        - {column: full_price, label: Full Price, kind: number}
    training: {method: lora, epochs: 3, learning_rate: 1.0e-4}

Every object is frozen, every key is checked, and an unknown key is an error that names its nearest relative.
`catalens recipe-schema` prints the JSON schema, so that an editor completes keys and shows these descriptions.
"""

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from catalens.errors import RecipeError

Kind = Literal["text", "category", "number"]

SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>|<unk>")
"""The special tokens of Phi-3's tokenizer."""


class Frozen(BaseModel):
    """Base of every configuration object: immutable, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _odd(text: str) -> str | None:
    """The first special token, or character of control, in a text that goes into the prompt."""
    found = SPECIAL.search(text) or re.search(r"<\|", text)
    return found.group() if found else next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)


class FieldSpec(Frozen):
    """One field that the model learns to write."""

    column: str
    """Column of the catalogue."""
    label: str
    """What stands before the value in the answer: `Product` gives `Product: ...`."""
    kind: Kind
    """`text` is scored by match and similarity, `category` by accuracy and F1, `number` by relative error."""

    @field_validator("label")
    @classmethod
    def _plain(cls, label: str) -> str:
        if label != " ".join(label.split()) or not label or _odd(label):
            raise ValueError(f"label {label!r} is not one line of plain text without spaces around it")
        return label


class NumberFormat(Frozen):
    """How numbers are written and read back, one rule for every number field.

    `{prefix}{digits}{suffix}`: an optional minus sign, digits in groups of three divided by `thousands`, then
    `decimal` and the digits after it. With `decimals` unset a number is written with the digits that it has, as
    Python writes it (`390.0`, `1290`); with it, rounded half to even to that many digits.
    """

    decimal: Literal[".", ","] = "."
    """Sign before the digits after the point."""
    thousands: Literal["", ",", ".", " ", "'", "\u00a0", "\u202f"] = ""
    """Sign between groups of three digits."""
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None
    """Digits after the point; unset: as many as the value has."""
    prefix: str = ""
    """Before the number, such as `$`."""
    suffix: str = ""
    """After the number, such as ` EUR`."""

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}: choose two different signs")
        if any(character.isdigit() or character == "-" for character in self.prefix + self.suffix):
            raise ValueError("prefix and suffix hold no digits and no minus sign")
        if odd := _odd(self.prefix + self.suffix):
            raise ValueError(f"prefix or suffix holds {odd!r}: leave it out")
        if self.prefix[:1].isspace() or self.suffix[-1:].isspace():
            raise ValueError("prefix begins and suffix ends with a sign that is not a space")
        return self


REFERENCE_FIELDS = (
    FieldSpec(column="title", label="Product", kind="text"),
    FieldSpec(column="category3_code", label="Category", kind="category"),
    FieldSpec(column="full_price", label="Full Price", kind="number"),
)


class PromptSpec(Frozen):
    """What is asked and what is answered. The default is the text of the Phi-3 cookbook's Burberry recipe."""

    question: str = "What is shown in this image?"
    """Stands after the picture, in any language."""
    fields: tuple[FieldSpec, ...] = Field(default=REFERENCE_FIELDS, min_length=1)
    """The fields of the answer, in order."""
    numbers: NumberFormat = NumberFormat()
    """How numbers are written."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what in ("column", "label"):
            values = [getattr(field, what) for field in self.fields]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{what} {twice[0]!r} is used by two fields: name each field once")
        if odd := _odd(self.question.replace("\n", " ")):
            raise ValueError(f"the question holds {odd!r}: special tokens are added by catalens, leave it out")
        return self


class LoraSpec(Frozen):
    """Low-rank adaptation (Hu et al., 2021) through PEFT."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    """Names of the linear modules to adapt; Phi-3's own names. A name that matches no module is an error."""
    train_embeddings: bool = False
    """Also train input and output embeddings in full: needed where the catalogue uses new words (tiny model)."""


class TrainingSpec(Frozen):
    """How the model is trained."""

    method: Literal["full", "lora"] = "lora"
    """Train all weights, or low-rank adapters."""
    lora: LoraSpec = LoraSpec()
    """Used where the method is `lora`."""
    freeze_vision: bool = True
    """Under `full`: leave the CLIP tower as it is. Under `lora` nothing trains but adapters (and embeddings)."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training split."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""
    batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass on one device."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes in one optimizer step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the update of 2-D weights (Jordan et al., 2024) and leaves the rest to AdamW."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate: of Muon on the 2-D weights where it is used, of AdamW otherwise."""
    adamw_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Under `muon`: the peak of AdamW on everything else; unset, the same as `learning_rate`."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps spent warming up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay; norms and biases are left out."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    precision: Literal["auto", "fp32"] = "auto"
    """`auto`: bf16 where a GPU can, fp32 on a CPU."""
    evaluations: int = Field(default=3, ge=1)
    """Validation rounds in a run, evenly spaced, the last one at the end."""
    validation_rows: int = Field(default=64, ge=0)
    """Validation rows that are generated freely at each round; 0: validation loss only."""
    best_by: str = "loss"
    """What chooses the best checkpoint: `loss`, `parse_rate`, or `<column>.<metric>` such as `title.exact`."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept on disk, the best one always among them."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; `auto` takes transformers' choice for the machine."""
    picture_cache_gb: float = Field(default=2.0, ge=0)
    """Memory for decoded pictures; those that fit are decoded once, the others in every epoch."""
    seed: int = 0
    """Seeds initialisation, order and dropout."""


class EvaluationSpec(Frozen):
    """How a run is scored."""

    split: Literal["test", "validation"] = "test"
    """Split whose rows are generated; training never saw `test`, and chose its best checkpoint by `validation`."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Score a sample of this many rows, the same one every time; unset: all."""
    batch_size: int = Field(default=16, ge=1)
    """Rows generated together."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer; one that is cut off does not parse and counts as wrong."""
    before: bool = True
    """Also score the base model as it was before training."""
    image_use: bool = True
    """Also score with blanked and with shuffled pictures: the score has to fall."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples behind each 95 % interval."""


class TrackingSpec(Frozen):
    """Where the run is tracked."""

    to: Literal["wandb", "none"] = "wandb"
    """Weights & Biases (offline when nobody is logged in), or nowhere."""
    project: str = "catalens"
    """W&B project; the entity is the one of the login."""


class Recipe(Frozen):
    """Everything about a run."""

    catalog: str
    """Folder of the catalogue, relative to the current directory."""
    model: str = "tiny"
    """A hub id, a local folder, or `tiny` for the model that ships with catalens."""
    num_crops: Annotated[int, Field(ge=1)] | None = None
    """Most high-resolution crops of a picture, the big lever on cost; unset: what the processor was saved with."""
    prompt: PromptSpec = PromptSpec()
    """Question, fields and number format."""
    training: TrainingSpec = TrainingSpec()
    """How the model is trained."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """How the run is scored."""
    tracking: TrackingSpec = TrackingSpec()
    """Where the run is tracked."""

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        names = {"loss", "parse_rate"} | {f"{f.column}.{m}" for f in self.prompt.fields for m in METRICS[f.kind]}
        if self.training.best_by not in names:
            raise ValueError(
                f"training.best_by is {self.training.best_by!r}{_suggestion(self.training.best_by, names)}; "
                f"the choices are {', '.join(sorted(names))}"
            )
        if self.training.best_by != "loss" and not self.training.validation_rows:
            raise ValueError(f"training.best_by {self.training.best_by!r} needs training.validation_rows above 0")
        return self


METRICS: Mapping[Kind, tuple[str, ...]] = {
    "text": ("exact", "similarity"),
    "category": ("accuracy", "macro_f1"),
    "number": ("mae", "mdape", "within_10pct"),
}
"""Names of the figures that each kind of field is scored by."""
LOWER_IS_BETTER = ("loss", "mae", "mdape")
"""Figures that are errors."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.key=value` overrides, whose values are read as YAML.

    Raises RecipeError with one sentence that names the file, the key and the fix.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8; give the path of a recipe") from error
    data = _read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping such as `catalog: catalogs/demo`")
    return make_recipe(data, overrides, source=str(path))


def make_recipe(data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe, after overrides; RecipeError as in `load_recipe`."""
    merged = dict(data)
    for override in overrides:
        merged = _override(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from error


SettingsT = TypeVar("SettingsT", bound=Frozen)


def from_flags(settings: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Settings out of a command's flags; RecipeError that names the flag."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"flags: {_explain(error)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load_recipe` reads back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error; PyYAML would keep the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # besides YAMLError: all that int(), datetime() and deep nesting raise
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and mark.line else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{source}{line}: not valid YAML ({reason})") from error


def _override(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as key.key=value, such as training.epochs=3")
    parsed = _read_yaml(value, f"--set {override}")
    if isinstance(parsed, str) and (number := _scientific(parsed)) is not None:
        parsed = number
    result = dict(data)
    node = result
    for part in parts[:-1]:
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, Mapping):
            raise RecipeError(f"--set {override}: {part!r} is a value, not a group of keys")
        node[part] = dict(child)
        node = node[part]
    node[parts[-1]] = parsed
    return result


def _scientific(text: str) -> float | None:
    """YAML 1.1 reads `1e-4` as a string; people mean a number."""
    try:
        return float(text) if "e" in text.lower() else None
    except ValueError:
        return None


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    places = [problem["loc"] for problem in problems]
    # a list whose item is wrong is reported a second time, as too short
    problems = [p for p in problems if not any(len(o) > len(n := p["loc"]) and o[: len(n)] == n for o in places)]
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelt key is missing, too
    sentences = [_explain_one(problem) for problem in problems[:3]]
    if len(problems) > 3:
        sentences.append(f"and {len(problems) - 3} more")
    return "; ".join(sentences)


def _explain_one(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        return f"unknown key {place!r}{_suggestion(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"key {place!r} is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    message = (message[:1].lower() + message[1:]).replace("tuple", "list")
    if problem["type"] == "model_type":
        message = "should be a group of keys"
    where = f"{place}: " if place else ""
    return where + message + ("" if problem["type"] == "value_error" else f", not {_BRIEF.repr(problem['input'])}")


_BRIEF = reprlib.Repr()  # what stands in a recipe may be huge, or hold itself
_BRIEF.maxlevel, _BRIEF.maxstring = 2, 60


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys that are known at a place of the recipe, for suggestions."""
    schema = Recipe.model_json_schema()
    node: Any = schema
    for part in location:
        node = node["items"] if isinstance(part, int) else node.get("properties", {}).get(part, {})
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))


def _suggestion(name: str, known: Sequence[str] | set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(known))})"
