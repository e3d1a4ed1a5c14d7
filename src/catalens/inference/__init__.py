"""Pictures -> predictions, by a finished run."""

from catalens.lazy import exports

HOMES = {
    "batch": "BatchSpec predict_lines predict_to run_version",
    "calibration": "Calibration confidences is_below load_calibration log_odds",
    "decoding": "Decoder",
    "fitting": "fit_calibration",
    "generation": "Generator",
    "grammar": "Constraint Vocabulary",
    "inputs": "Input InputSpec open_input",
    "onnx": "describe open_export",
    "output_writer": "finish_output",
    "predictor": "field_scores load_predictor Predictor question_inputs",
    "records": "Completion csv_cell FieldScore Outcome record_schema",
    "steps": "KeyValues Step",
    "vllm": "Local open_vllm Server",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
