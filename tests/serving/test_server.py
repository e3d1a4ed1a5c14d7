import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from hostile import jpeg
from served import FakePredictor, expected, metric, serving, until

from catalens.cli.using import serve
from catalens.errors import RecipeError
from catalens.serving import address_of, open_socket

SERVED = Path(__file__).parents[1] / "served.py"


@contextmanager
def process(seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, str(SERVED), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


def ask(address: str, number: int) -> tuple[int, bool]:
    """The status, and whether the answer is this picture's."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{address}/v1/predict", files={"pictures": jpeg(number)}, timeout=60)
    if answer.status_code != 200:
        return answer.status_code, False
    (read,) = answer.json()["predictions"]
    return 200, read["fields"]["title"]["value"] == expected(jpeg(number))["title"]


def get(address: str, path: str) -> int | None:
    """A status; None where nobody listens."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(address + path, timeout=30).status_code
    except requests.ConnectionError:
        return None


def accepted(address: str) -> float:
    """Pictures that wait or were begun."""
    return metric(address, "catalens_queue_pictures") + metric(address, "catalens_batch_pictures_sum")


@pytest.mark.integration
def test_a_server_that_is_told_to_end_answers_what_it_accepted():
    with process(seconds=2) as (server, address), ThreadPoolExecutor(40) as clients:
        until(lambda: get(address, "/readyz") == 200)
        answers: list[Future[tuple[int, bool]]] = [clients.submit(ask, address, number) for number in range(36)]
        until(lambda: accepted(address) == 36)
        server.send_signal(signal.SIGTERM)
        until(lambda: get(address, "/readyz") != 200)
        assert get(address, "/readyz") == 503
        assert ask(address, 99) == (503, False)
        assert get(address, "/healthz") == 200
        assert [answer.result() for answer in answers] == [(200, True)] * 36
        assert server.wait(30) == 0
        assert get(address, "/readyz") is None
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def test_a_second_signal_ends_at_once():
    predictor = FakePredictor()
    predictor.go_on.clear()
    with serving(predictor) as server, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(ask, server.address, 1)
        until(lambda: predictor.batches)
        server.server.handle_exit(signal.SIGTERM, None)
        assert get(server.address, "/readyz") == 503
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(60)
        assert not server.thread.is_alive()
        assert answer.exception(60) or answer.result() == (503, False)


def test_an_address_that_cannot_be_had_is_an_error_with_the_fix():
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=f"--port {port}: Address already in use.*: choose another"):
            open_socket("127.0.0.1", port)
    with pytest.raises(RecipeError, match=r"--host 203\.0\.113\.7"):
        open_socket("203.0.113.7", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_addresses_are_written_as_in_urls():
    try:
        with open_socket("::1", 0) as listening:
            assert address_of(listening).startswith("http://[::1]:")
    except RecipeError:
        pytest.skip("no IPv6 on this machine")


def test_a_server_in_a_thread_ends_too():
    with serving() as server:
        assert server.request("GET", "/readyz").status_code == 200
    assert get(server.address, "/readyz") is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 is open to others: give --token-file"),
        ({"token_file": Path("none")}, "--token-file none cannot be read"),
        ({"max_pixels": 65_000_000}, "max_pixels"),
    ],
)
def test_wrong_flags_are_one_sentence_before_a_model_is_loaded(flags: dict, words: str):
    with pytest.raises(RecipeError, match=words):
        serve(Path("runs/none"), **flags)
