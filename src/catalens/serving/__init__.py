"""A run behind HTTP: `catalens serve`.

app = create_app(load_predictor("runs/demo"), ServeSettings(), read_card(Path("runs/demo")))
run_server(app, open_socket("127.0.0.1", 8000))
"""

from catalens.serving.app import create_app
from catalens.serving.page import ModelCard, read_card
from catalens.serving.requests import ServeSettings
from catalens.serving.server import address_of, make_server, names_for, open_socket, read_token, run_server

__all__ = [
    "ModelCard",
    "ServeSettings",
    "address_of",
    "create_app",
    "make_server",
    "names_for",
    "open_socket",
    "read_card",
    "read_token",
    "run_server",
]
