"""What the rows of a catalogue cost a model, counted before anything is trained.

plan_check   catalens check: does a row's text read back, how many tokens and crops has it at each `num_crops`
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalens.catalog.storage import Catalog
from catalens.checking.check import Plan
from catalens.checking.scanning import Cost, Describe, Description
from catalens.checkpoint import TINY, load_processor
from catalens.collation import Encoder
from catalens.config import FieldSpec, Kind, PromptSpec, Recipe, TrainingSpec
from catalens.errors import CheckpointError, PromptError, RecipeError
from catalens.estimates import NUM_CROPS, PHI3_VISION, ModelShape
from catalens.examples import format_number, parse_number, render_answer, render_prompt
from catalens.model import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

CHARACTERS_PER_TOKEN = 2.8
"""Of Phi-3's tokenizer on product texts (docs/estimates.md): the estimate where it is not on disk."""


def plan_check(folder: Path, recipe: Recipe | None) -> Plan:
    """What a check of a catalogue needs of a recipe; without one, of a prompt with all its fields and Phi-3-Vision.

    Where the model cannot be loaded, picture tokens are those of Phi-3-Vision and text is estimated. Raises
    CatalogError where there is no catalogue, RecipeError where it lacks a column of the recipe.
    """
    fields = Catalog(folder).card.roles.fields
    prompt = recipe.prompt if recipe else _prompt_of(fields)
    if absent := [field.column for field in prompt.fields if field.column not in fields]:
        raise RecipeError(f"prompt.fields: {folder} has no column {absent[0]!r}; its columns are {', '.join(fields)}")
    training = recipe.training if recipe else TrainingSpec()
    processor, shape, basis = None, PHI3_VISION, "No recipe was given"
    if recipe:
        basis = f"The recipe\u2019s model, {recipe.model}, cannot be loaded from disk"
        try:
            processor = load_processor(recipe.model)
            shape = ModelShape.from_config(
                Phi3VConfig.get_config_dict(TINY if recipe.model == "tiny" else recipe.model)[0]
            )
        except (CheckpointError, OSError):
            processor = None
    if processor and recipe:
        basis = f"For the recipe\u2019s model, {recipe.model}, with its own tokenizer."
    else:
        basis += f": reckoned for Phi-3-Vision, text by {CHARACTERS_PER_TOKEN} characters a token."
    return Plan(_describe(prompt, processor), shape, training, basis)


def _prompt_of(fields: Mapping[str, Kind]) -> PromptSpec:
    """The default prompt where the catalogue has its fields, else one with the columns as labels."""
    default = PromptSpec()
    if {field.column: field.kind for field in default.fields} == dict(fields):
        return default
    labels = {name: " ".join("".join(c if c.isalnum() else " " for c in name).split()) for name in fields}
    specs = [
        FieldSpec(column=name, label=labels[name] or f"Field {number}", kind=kind)
        for number, (name, kind) in enumerate(fields.items(), start=1)
    ]
    if len({spec.label for spec in specs}) < len(specs):
        specs = [spec.model_copy(update={"label": f"Field {n}"}) for n, spec in enumerate(specs, start=1)]
    return PromptSpec(fields=tuple(specs))


def _describe(prompt: PromptSpec, processor: Phi3VProcessor | None) -> Describe:
    """The function that a check calls with every row: does its text read back, how long is it."""
    images = processor.image_processor if processor else Phi3VImageProcessor()
    encoder = Encoder(processor, prompt) if processor else None

    def describe(row: Mapping[str, Any], name: str, size: tuple[int, int] | None) -> Description:
        try:
            answer = render_answer(prompt, row, name)
            if encoder:
                encoder.check(answer, name)
        except PromptError as error:
            return Description(problem=str(error))
        costs = {}
        if size:
            text = encoder.text_tokens(answer) if encoder else _estimated(render_prompt(prompt) + answer)
            for num_crops in NUM_CROPS:
                height, width = images.hd_size(*size, num_crops)
                crops = 1 + height * width // images.crop_size**2
                costs[num_crops] = Cost(text + images.num_image_tokens(height, width), crops)
        return Description(rounded=_rounded(prompt, row), costs=costs)

    return describe


def _estimated(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _rounded(prompt: PromptSpec, row: Mapping[str, Any]) -> str | None:
    """The first number that its written form is not equal to."""
    for field in prompt.fields:
        if field.kind == "number":
            text = format_number(prompt.numbers, row[field.column])
            if parse_number(prompt.numbers, text) != row[field.column]:
                return f"{field.column} {row[field.column]!r} is written {text!r}"
    return None
