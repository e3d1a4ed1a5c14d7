"""Pictures -> predictions, by a finished run."""

from catalens.inference.predictor import Predictor, load_predictor
from catalens.predictions import Prediction, record_columns, record_of

__all__ = ["Prediction", "Predictor", "load_predictor", "record_columns", "record_of"]
