"""A run behind HTTP: `catalens serve`.

app = create_app(load_predictor("runs/demo"), ServeSettings(), read_card(Path("runs/demo")))
run_server(app, open_socket("127.0.0.1", 8000))
"""

from catalens.serving.app import create_app
from catalens.serving.page import ModelCard, read_card
from catalens.serving.requests import ServeSettings
from catalens.serving.server import make_server, open_socket, run_server

__all__ = ["ModelCard", "ServeSettings", "create_app", "make_server", "open_socket", "read_card", "run_server"]
