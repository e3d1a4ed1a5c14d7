"""Pictures -> predictions, by a finished run."""

from catalens.lazy import exports

HOMES = {
    "batch": "BatchSpec Outcome predict_lines predict_to run_version",
    "calibration": "Calibration fit_calibration load_calibration",
    "generation": "Generator",
    "grammar": "Constraint Vocabulary",
    "inputs": "Input InputSpec open_input",
    "output_writer": "finish_output",
    "predictor": "field_scores load_predictor Predictor question_inputs",
    "records": "Completion csv_cell FieldScore record_schema",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
