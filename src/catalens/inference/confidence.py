"""What the decoder was sure of, field by field.

    Product :  Red  Tote  Bag  ,  Category :  B  A G S , Full Price : _ 1 2 9 . 0 <|end|>
               `-- title ----------------'    `-- category ---------'   `-- price -------'

A field is made of the tokens of its value, and of those up to the next value: that it ended there was a choice too.
"""

from itertools import accumulate

from catalens.config import PromptSpec
from catalens.inference.calibration import FieldScore
from catalens.inference.decoding import Written


def field_scores(prompt: PromptSpec, written: Written) -> dict[str, FieldScore]:
    """The score of each field of an answer that parses, by column; forced tokens are certain."""
    text = b"".join(written.pieces)
    starts = [0, *accumulate(map(len, written.pieces))][:-1]  # bytes before each token
    places = [text.index(f"{field.label}: ".encode()) for field in prompt.fields[:1]]
    for field in prompt.fields[1:]:
        places.append(text.index(f", {field.label}: ".encode(), places[-1]) + len(", "))
    values = [place + len(f"{field.label}:".encode()) for place, field in zip(places, prompt.fields, strict=True)]
    scores = {}
    for field, first, last in zip(prompt.fields, values, [*values[1:], len(text)], strict=True):
        own = [score for start, score in zip(starts, written.log_probabilities, strict=True) if first <= start < last]
        scores[field.column] = FieldScore(log_probability=sum(own), tokens=max(1, len(own)))
    return scores
