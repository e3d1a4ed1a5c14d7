"""What the decoder was sure of, field by field.

    Product :  Red  Tote  Bag  ,  Category :  B  A G S , Full Price : _ 1 2 9 . 0 <|end|>
               `-- title ----------------'    `-- category ---------'   `-- price -------'

A field's probability is that of its value's tokens and of the tokens up to the next value: that it ended there was a
choice too. That choice counts as one token, however many the label has; the label before the value is no part of it.
"""

from itertools import accumulate

from catalens.config import PromptSpec
from catalens.examples import END
from catalens.inference.calibration import FieldScore
from catalens.inference.decoding import Written


def field_scores(prompt: PromptSpec, written: Written) -> dict[str, FieldScore]:
    """The score of each field of an answer that parses, by column; forced tokens are certain."""
    text = b"".join(written.pieces)
    ends = list(accumulate(map(len, written.pieces)))  # bytes up to the end of each token
    starts = [0, *ends[:-1]]
    values: list[tuple[int, int]] = []  # bytes of each value, from and to
    place = 0
    for field, following in zip(prompt.fields, (*prompt.fields[1:], None), strict=True):
        first = text.index(f"{field.label}: ".encode(), place) + len(f"{field.label}: ".encode())
        place = text.index(f", {following.label}: ".encode(), first) if following else text.index(END.encode(), first)
        values.append((first, place))
    scores = {}
    for field, (first, last), (following, _) in zip(
        prompt.fields, values, [*values[1:], (len(text), 0)], strict=True
    ):
        spans = list(zip(starts, ends, written.log_probabilities, strict=True))
        own = [score for start, end, score in spans if first < end and start < last]
        ending = [score for start, end, score in spans if last <= start and end <= following]
        scores[field.column] = FieldScore(sum(own) + sum(ending), len(own) + bool(ending))
    return scores
