import gc
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from hostile import jpeg
from served import FakePredictor, Served, expected, serving, until

from catalens.errors import RecipeError
from catalens.serving import names_for, read_token

POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.jpg"\r\n\r\n'
PICTURE = jpeg(1)
BODY = PART + PICTURE + b"\r\n--x--\r\n"


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.fixture(scope="module")
def server():
    with serving(max_bytes=200_000) as served:
        yield served


@pytest.fixture(scope="module")
def hasty():
    """For what never comes."""
    with serving(max_bytes=200_000, timeout=2) as served:
        yield served


def alive(server: Served) -> bool:
    answer = server.post(PICTURE)
    return answer.json()["predictions"][0]["fields"]["title"]["value"] == expected(PICTURE)["title"]


def test_a_large_body_is_refused_with_and_without_its_length(server):
    announced = server.post(jpeg(1) * 20)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    large = PART + jpeg(1) * 20
    pieces = (large[start : start + 8192] for start in range(0, len(large), 8192))
    streamed = server.request("POST", "/v1/predict", data=pieces, headers=headers)
    for answer in (announced, streamed):
        assert answer.status_code == 413
        assert "larger than 200,000 bytes" in answer.json()["detail"]
        assert answer.headers["Connection"] == "close"
    assert alive(server)


def test_endless_bodies_and_headers_are_cut_off(server):
    for begun in (POST + FORM + b"Transfer-Encoding: chunked\r\n\r\n", POST + b"X: "):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(begun)
            with pytest.raises(ConnectionError):
                connection.sendall((b"10000\r\n" + bytes(65536) + b"\r\n") * 1000)
    assert alive(server)


def test_who_asks_before_sending_is_told_at_once(server):
    answer = server.raw(POST + FORM + b"Expect: 100-continue\r\nContent-Length: 90000000000\r\n\r\n")
    assert status(answer) == 413
    assert b"100 Continue" not in answer


def test_a_body_that_does_not_come_is_given_up(hasty):
    answer = hasty.raw(POST + FORM + b"Content-Length: 5000\r\n\r\n" + BODY[:300])
    assert status(answer) == 408
    until(lambda: hasty.post(PICTURE).status_code == 200)  # a busy machine may take more than its time-out


def test_headers_that_do_not_come_are_given_up(hasty):
    assert hasty.raw(POST) == b""
    assert hasty.raw() == b""
    answers = hasty.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", POST)  # then silence within the second
    assert answers.count(b"HTTP/1.1 200") == 1
    until(lambda: hasty.post(PICTURE).status_code == 200)


def test_a_connection_may_carry_several_requests(server):
    with requests.Session() as session:
        session.trust_env = False
        for number in range(5):
            files = {"pictures": jpeg(number)}
            answer = session.post(server.address + "/v1/predict", files=files, timeout=30).json()
            assert answer["predictions"][0]["fields"]["title"]["value"] == expected(jpeg(number))["title"]
    last = POST + b"Connection: close\r\n" + FORM + sized(BODY)
    pipelined = server.raw((POST + FORM + sized(BODY)) * 2 + last)
    assert pipelined.count(b"HTTP/1.1 200") == pipelined.count(expected(PICTURE)["title"].encode()) == 3


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        POST + FORM + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        POST + FORM + b"Content-Length: -5\r\n\r\n12345",
        POST + FORM + b"Content-Length: 99999999999999999999999999\r\n\r\n12345",
        POST + FORM + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + FORM + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
        POST + FORM + b"Transfer-Encoding: chunked\r\n\r\nno\r\n",
        POST + b"X\x00Y: 1\r\n\r\n",
        POST + b"Content-Type: \xff\xfe; boundary=\xff\r\n" + sized(BODY),
        POST + b"Content-Type: multipart/form-data; boundary=x; boundary=y; charset=\x01\r\n" + sized(BODY),
        b"POST /v1/predict/../../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /static/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_tricks_with_headers_are_refused(server, request_: bytes):
    assert 400 <= status(server.raw(request_, first=True)) < 500
    assert alive(server)


def test_an_upgrade_is_not_made(server):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    answer = server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n", first=True)
    assert status(answer) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "evil.example:80@localhost"]
)
def test_another_name_for_loopback_is_refused(server, host: str):
    assert server.request("GET", "/", headers={"Host": host}).status_code == 400
    assert server.post(PICTURE, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000"])
def test_names_of_loopback_are_known(server, host: str):
    assert server.request("GET", "/", headers={"Host": host}).status_code == 200


def test_another_sites_page_may_not_ask(server):
    assert server.post(PICTURE, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert server.post(PICTURE, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    own, other = f"http://127.0.0.1:{server.port}", "https://evil.example"
    assert [server.post(PICTURE, headers={"Origin": origin}).status_code for origin in (own, other, "null")] == [
        200,
        403,
        403,
    ]


def test_every_answer_keeps_a_browser_safe(server):
    answers = [
        server.request("GET", path)
        for path in ("/", "/static/page.js", "/healthz", "/metrics", "/none", "/openapi.json")
    ] + [server.post(PICTURE), server.post(b""), server.post(PICTURE * 20), server.request("DELETE", "/")]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "server" not in answer.headers
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_token_is_asked_for():
    with serving(token="sesame-sesame", max_bytes=10**6) as server:
        wrong = ("Bearer wrong", "Basic sesame-sesame", "Bearer ", "sesame-sesame", b"Bearer \xff")
        for given in ({}, *({"Authorization": value} for value in wrong)):
            for answer in (
                server.post(jpeg(1) * 30, headers=given),
                server.request("GET", "/metrics", headers=given),
            ):
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        right = {"Authorization": "bearer sesame-sesame"}
        assert server.post(PICTURE, headers=right).status_code == 200
        assert 'status="401"' in server.request("GET", "/metrics", headers=right).text
        for path in ("/", "/healthz", "/readyz"):
            assert server.request("GET", path).status_code == 200
        assert "sesame" not in server.request("GET", "/").text
        assert "sesame" not in repr(server.settings)


def test_a_full_queue_says_when_to_come_back():
    predictor = FakePredictor()
    predictor.go_on.clear()
    with serving(predictor, queue=4, batch_size=1) as server, ExitStack() as clients:
        clients.enter_context(sent(server, BODY))
        until(lambda: predictor.batches)
        for _ in range(4):
            clients.enter_context(sent(server, BODY))
        until(lambda: server.service.batcher.depth == 4)
        refused = server.post(PICTURE)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.post(*[PICTURE] * 5).status_code == 413  # more than could ever wait
        predictor.go_on.set()
        until(lambda: server.service.batcher.depth == 0)
        assert alive(server)


def test_bodies_under_way_are_bounded_together():
    with serving(max_bytes=100_000) as server, ExitStack() as clients:
        for _ in range(8):
            clients.enter_context(sent(server, BODY[:95_000].ljust(95_000), length=99_000))
        until(lambda: server.service.in_flight == 8)
        until(lambda: server.post(b"x" * 90_000).status_code == 429)
    with serving(max_bytes=100_000) as server:
        for _ in range(20):  # what was held is let go
            assert server.post(PICTURE, b"x" * 50_000).status_code == 200


def test_pictures_of_a_client_that_left_are_never_read(caplog):
    predictor = FakePredictor()
    predictor.go_on.clear()
    with serving(predictor, batch_size=1) as server:
        first = sent(server, BODY)
        until(lambda: predictor.batches)
        left = [sent(server, BODY) for _ in range(6)]
        until(lambda: server.service.batcher.depth == 6)
        for connection in left:
            connection.close()
        until(lambda: server.service.batcher.depth == 0)
        predictor.go_on.set()
        assert status(first.recv(65536)) == 200
        first.close()
        assert alive(server)
        assert len(predictor.batches) == 2
        assert server.metric('catalens_requests_total{status="499"}') == 6
        assert server.metric('catalens_requests_total{status="500"}') == 0
    gc.collect()
    assert not caplog.text  # such as an exception that nobody retrieved


def test_a_client_that_leaves_within_its_body_is_forgotten(server):
    before = server.service.in_flight
    for cut in (1, 100, 5000):
        sent(server, BODY[:cut], length=len(BODY)).close()
    until(lambda: server.service.in_flight == before)
    assert alive(server)


def test_an_answer_that_takes_too_long_is_given_up_and_its_pictures_dropped():
    predictor = FakePredictor()
    predictor.go_on.clear()
    with serving(predictor, timeout=0.3, batch_size=1) as server:
        for number in (1, 2):
            answer = server.post(jpeg(number))
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert server.service.batcher.depth == 0
        predictor.go_on.set()
        until(lambda: server.post(jpeg(3)).status_code == 200)  # a busy machine may take more than this time-out
        assert [jpeg(1)] in predictor.batches
        assert [jpeg(2)] not in predictor.batches


def test_more_connections_than_a_process_can_hold_get_503(server):
    def full() -> bool:
        for _ in range(512):  # on a busy machine the first ones may have been idle for too long by now
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        answer = server.request("GET", "/healthz")
        return (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")

    with ExitStack() as clients:
        assert any(full() for _ in range(3))
    until(lambda: server.request("GET", "/healthz").status_code == 200)
    assert alive(server)


def sent(server: Served, body: bytes, length: int | None = None) -> socket.socket:
    """A connection with a request under way."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(POST + FORM + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body)
    return connection


def test_only_loopback_is_served_without_a_token():
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert "localhost" in names_for(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "shop.example", ""):
        with pytest.raises(RecipeError, match="--token-file"):
            names_for(host, None)
        assert names_for(host, "sesame-sesame") == ("*",)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CATALENS_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("CATALENS_TOKEN", "sesame-sesame")
    assert read_token(None) == "sesame-sesame"
    (tmp_path / "token").write_text("open-sesame\n")
    assert read_token(tmp_path / "token") == "open-sesame"
    for bad in ("", "short", "two words", "s\u00e9same-s\u00e9same", "two\nlines-of-it"):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(RecipeError, match="holds no token"):
            read_token(tmp_path / "token")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_token(tmp_path)
