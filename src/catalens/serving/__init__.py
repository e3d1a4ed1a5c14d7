"""A run behind HTTP: `catalens serve`.

app = create_app(load_predictor("runs/demo"), ServeSettings(), read_card(Path("runs/demo")))
run_server(app, open_socket("127.0.0.1", 8000))
"""

from catalens.lazy import exports

HOMES = {
    "app": "create_app",
    "batching": "Batcher PredictorError QueueFullError",
    "page": "ModelCard read_card",
    "requests": "ServeSettings",
    "server": "address_of make_server names_for open_socket read_token run_server",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
