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

from catalens.config.characters import visible, visible_json
from catalens.config.loading import dump_recipe, from_flags, load_recipe, load_resolved, make_recipe
from catalens.config.prompt import (
    PLACEHOLDER,
    REFERENCE_FIELDS,
    SPECIAL,
    FieldSpec,
    Frozen,
    Kind,
    NumberFormat,
    PromptSpec,
)
from catalens.config.recipe import EvaluationSpec, NumberSpec, Recipe, TrackingSpec
from catalens.config.training import PARTS, LoraSpec, Part, PartSpec, PartsSpec, TrainingSpec

__all__ = [
    "PARTS",
    "PLACEHOLDER",
    "REFERENCE_FIELDS",
    "SPECIAL",
    "EvaluationSpec",
    "FieldSpec",
    "Frozen",
    "Kind",
    "LoraSpec",
    "NumberFormat",
    "NumberSpec",
    "Part",
    "PartSpec",
    "PartsSpec",
    "PromptSpec",
    "Recipe",
    "TrackingSpec",
    "TrainingSpec",
    "dump_recipe",
    "from_flags",
    "load_recipe",
    "load_resolved",
    "make_recipe",
    "visible",
    "visible_json",
]
