import base64
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile import HTML, SVG, Hostile, flat, jpeg, pixel_bomb
from served import FakePredictor, expected, serving, until

JPEG, TRUNCATED = jpeg(1), jpeg(1)[:9000]

PART = b'--x\r\nContent-Disposition: form-data; name="pictures"%b\r\n\r\nc'


@pytest.fixture(scope="module")
def server():
    with serving() as served:
        yield served


def in_base64(picture: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(picture).decode()}


def test_a_picture_is_answered_with_its_fields(server):
    answer = server.post(JPEG)
    assert answer.status_code == 200
    values, price = expected(JPEG), expected(JPEG)["full_price"]
    review = bool(int(price) % 2)
    assert answer.json() == {
        "predictions": [
            {
                "fields": {
                    "title": {"value": values["title"], "confidence": 0.97, "needs_review": False},
                    "category3_code": {"value": "BAGS", "confidence": 0.99, "needs_review": False},
                    "full_price": {
                        "value": price,
                        "confidence": 0.64,
                        "needs_review": review,
                        "low": price * 0.9,
                        "high": price * 1.1,
                    },
                },
                "needs_review": review,
                "error": None,
            }
        ],
        "calibrated": True,
        "model": "fake",
    }


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_many_pictures_are_answered_in_their_order(server, form: str):
    pictures = [jpeg(number) for number in (5, 3, 9, 5, 1)]
    if form == "multipart":
        answer = server.post(*pictures)
    else:
        answer = server.post_json({"pictures": [in_base64(picture) for picture in pictures]})
    read = [one["fields"]["title"]["value"] for one in answer.json()["predictions"]]
    assert read == [expected(picture)["title"] for picture in pictures]


def test_a_bad_picture_among_others_has_its_own_error(server):
    answer = server.post(JPEG, HTML, TRUNCATED, b"", pixel_bomb(), jpeg(2))
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert [one["error"] and one["error"].split("(")[0].strip() for one in predictions] == [
        None,
        "not a picture in one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
        "cannot be decoded",
        "not a picture in one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
        "more than 16,000,000 pixels: make the picture smaller",
        None,
    ]
    assert [one["needs_review"] for one in predictions[1:5]] == [True] * 4
    assert predictions[1]["fields"] == {}
    assert predictions[5]["fields"]["title"]["value"] == expected(jpeg(2))["title"]


@pytest.mark.parametrize(
    ("picture", "status", "words"),
    [
        (HTML, 422, "not a picture"),
        (SVG, 422, "not a picture"),
        (TRUNCATED, 422, "truncated"),
        (b"", 422, "not a picture"),
        (pixel_bomb(), 413, "more than 16,000,000 pixels"),
    ],
)
def test_a_single_bad_picture_is_refused(server, picture: bytes, status: int, words: str):
    for answer in (server.post(picture), server.post_json({"pictures": [in_base64(picture)]})):
        assert answer.status_code == status
        assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "type", "status", "words"),
    [
        (b"", None, 415, "multipart/form-data"),
        (JPEG, "image/jpeg", 415, "multipart/form-data"),
        (b"pictures=1", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
        (b"{", "application/json", 422, "Invalid JSON"),
        (b"[" * 60_000, "application/json", 422, "recursion limit"),
        (b"[" * 100_000, "application/json", 422, "not of the form"),
        (b"[1" + b",1" * 10**6 + b"]", "application/json", 422, "not of the form"),
        (b"[]", "application/json", 422, "object"),
        (b'"pictures"', "application/json", 422, "object"),
        (b'{"pictures": []}', "application/json", 422, "pictures"),
        (b'{"pictures": [{}]}', "application/json", 422, "either base64 or url"),
        (b'{"pictures": [{"base64": "", "url": ""}]}', "application/json", 422, "either base64 or url"),
        (b'{"pictures": [{"base64": 7}]}', "application/json", 422, "pictures.0.base64"),
        (b'{"pictures": [{"base64": "*"}]}', "application/json", 422, "not base64"),
        (b'{"pictures": [{"base64": "\\ud800"}]}', "application/json", 422, "Invalid JSON"),
        (b'{"pictures": [{"path": "/etc/passwd"}]}', "application/json", 422, "pictures.0"),
        (b'{"pictures": [{"url": "https://shop.example/1.jpg"}]}', "application/json", 422, "--allow-urls"),
        (b'"' * 10**6, "application/json", 422, "Invalid JSON"),
        (b"\xff\xfe{", "application/json", 422, "Invalid JSON"),
        (b"--x\r\n", "multipart/form-data", 400, "RFC 7578"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "RFC 7578"),
        (b"", "multipart/form-data; boundary=x", 400, "cut short"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 422, "no file named"),
        (b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, "RFC 7578"),
        (PART % b"" + b"\r\n--x--\r\n", "multipart/form-data; boundary=x", 422, "no file named"),
        (PART % b'; filename="a"', "multipart/form-data; boundary=x", 400, "cut short"),
        (PART % b"" + b"\r\n--x--\r\n", "multipart/form-data; boundary=x; charset=undefined", 400, "RFC 7578"),
        (b"", "multipart/form-data; boundary=" + "x" * 5000, 400, ""),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_body_of_another_form_is_refused(server, body: bytes, type: str | None, status: int, words: str):
    headers = {"Content-Type": type} if type else {}
    answer = server.request("POST", "/v1/predict", data=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_a_compressed_body_is_refused(server):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert server.request("POST", "/v1/predict", data=b"{}", headers=headers).status_code == 415


def test_other_files_of_a_form_are_left_alone(server):
    files = [("receipt", ("a.jpg", jpeg(2))), ("pictures", ("b.jpg", JPEG))]
    answer = server.request("POST", "/v1/predict", files=files, data={"note": "x"})
    assert [one["fields"]["title"]["value"] for one in answer.json()["predictions"]] == [expected(JPEG)["title"]]


def test_too_many_pictures(server):
    assert server.post(*[JPEG] * 64).status_code == 200
    for answer in (server.post(*[JPEG] * 65), server.post_json({"pictures": [in_base64(b"x")] * 65})):
        assert answer.status_code == 413
        assert "more than 64" in answer.json()["detail"]


def test_a_picture_may_have_only_so_many_pixels():
    with serving(max_pixels=320 * 240) as server:
        assert server.post(jpeg(1)).status_code == 200
        assert server.post(jpeg(1, 400, 240)).status_code == 413
        assert server.predictor.batches == [[jpeg(1)]]  # nothing else was decoded


@pytest.mark.parametrize("form", ["multipart", "json", "urls"])
def test_pictures_that_would_hold_up_all_others_are_refused_undecoded(form: str):
    """64 pictures of 64 megapixels in one small request, then 64 that are small enough one by one."""
    with Hostile() as shop, serving(allow_urls=True, network=shop.network()) as server:

        def ask(side: int, count: int):
            if form == "multipart":
                return server.post(*[flat(side)] * count)
            if form == "json":
                return server.post_json({"pictures": [in_base64(flat(side))] * count})
            return server.post_json({"pictures": [{"url": f"{shop.shop}/flat/{side}"}] * count})

        assert {one["error"] for one in ask(8000, 64).json()["predictions"]} == {
            "more than 16,000,000 pixels: make the picture smaller"
        }
        refused = ask(4000, 9)
        assert refused.status_code == 413
        detail = "144,000,000 pixels together are more than 128,000,000: send fewer pictures at a time"
        assert refused.json() == {"detail": detail}
        assert not server.predictor.batches
        assert server.post(JPEG).status_code == 200  # nobody waits for them


def test_the_queue_holds_so_many_pixels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("catalens.serving.requests.REQUEST_PIXELS", 8 * 320 * 240)
    predictor = FakePredictor()
    predictor.go_on.clear()
    with serving(predictor, max_pixels=320 * 240) as server, ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(server.post, JPEG)]
        until(lambda: predictor.batches)
        waiting += [clients.submit(server.post, *[jpeg(n)] * 8) for n in range(4)]
        until(lambda: server.service.batcher.depth == 32)
        refused = server.post(JPEG)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "the queue is full" in refused.json()["detail"]
        predictor.go_on.set()
        assert {answer.result().status_code for answer in waiting} == {200}
        assert {len(batch) for batch in predictor.batches} == {1, 8}  # though 16 pictures may share a batch


def test_health_readiness_and_what_is_not_there(server):
    assert server.request("GET", "/healthz").json() == {"status": "alive"}
    assert server.request("GET", "/readyz").json() == {"status": "ready"}
    assert server.request("GET", "/v1/predict").status_code == 405
    for path in ("/docs", "/redoc", "/v1", "/static/", "/static/../app.py", "/static/%2e%2e/app.py"):
        assert server.request("GET", path).status_code == 404


def test_metrics_count_requests_pictures_and_batches():
    with serving() as server:
        server.post(jpeg(1), jpeg(2), HTML)
        server.post(HTML)
        assert server.metric('catalens_requests_total{status="200"}') == 1
        assert server.metric('catalens_requests_total{status="422"}') == 1
        assert server.metric('catalens_pictures_total{outcome="read"}') == 2
        assert server.metric('catalens_pictures_total{outcome="failed"}') == 1
        assert server.metric("catalens_batch_pictures_sum") == 2
        assert server.metric("catalens_request_seconds_count") == 2
        assert server.metric("catalens_queue_pictures") == 0


def test_the_description_has_every_status_and_examples_that_hold(server):
    described = server.request("GET", "/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert {"200", "400", "401", "403", "408", "413", "415", "422", "429", "503"} == set(described["responses"])
    asked = described["requestBody"]["content"]
    assert set(asked) == {"multipart/form-data", "application/json"}
    assert set(asked["application/json"]["schema"]["properties"]["pictures"]["items"]["properties"]) == {
        "base64",
        "url",
    }
    example = described["responses"]["200"]["content"]["application/json"]["example"]
    real = server.post(JPEG, HTML).json()
    for shown, answered in zip(example["predictions"], real["predictions"], strict=True):
        assert {c: set(f) for c, f in shown["fields"].items()} == {c: set(f) for c, f in answered["fields"].items()}


@pytest.mark.parametrize("token", [None, "sesame-sesame"])
def test_the_description_says_whether_a_token_is_needed_and_what_metrics_are(token: str | None):
    with serving(token=token) as server:
        described = server.request("GET", "/openapi.json").json()
    asked = [described["paths"][path][method] for path, method in (("/v1/predict", "post"), ("/metrics", "get"))]
    assert [one.get("security") for one in asked] == [[{"HTTPBearer": []}] if token else None] * 2
    assert ("securitySchemes" in described.get("components", {})) == (token is not None)
    answers = asked[1]["responses"]
    assert set(answers["200"]["content"]) == {"text/plain"}
    assert {"200", "401", "403"} <= set(answers)


def test_a_broken_form_leaves_nothing_in_the_log(server, caplog: pytest.LogCaptureFixture):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"nonsense", b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n", b"--x\r\n\x00: b\r\n"):
        assert server.request("POST", "/v1/predict", data=body, headers=headers).status_code == 400
    headers = {"Content-Type": "multipart/form-data"}
    assert server.request("POST", "/v1/predict", data=b"x", headers=headers).status_code == 400
    assert not caplog.records


def test_the_page_may_be_asked_for_its_head(server):
    head, page = (server.request(method, "/") for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == page.headers["Content-Length"] == str(len(page.content))
    assert head.headers["Content-Security-Policy"] == page.headers["Content-Security-Policy"]


def test_a_picture_that_the_model_fails_on(caplog):
    with serving(FakePredictor(poison=frozenset({jpeg(13)}))) as server:
        alone = server.post(jpeg(13))
        assert (alone.status_code, alone.headers.get("Retry-After")) == (503, None)  # it would fail again
        first, second = server.post(jpeg(13), jpeg(1)).json()["predictions"]
        assert first["error"] == "the model failed on this picture"
        assert second["fields"]["title"]["value"] == expected(jpeg(1))["title"]
        assert server.post(jpeg(2)).status_code == 200


def test_answers_never_go_to_another_request():
    with serving(FakePredictor(seconds=0.001)) as server, ThreadPoolExecutor(64) as clients:

        def ask(number: int) -> bool:
            pictures = [jpeg(100 + (number * step) % 50, 80, 80) for step in (1, 2, 3)][: 1 + number % 3]
            read = [one["fields"]["title"]["value"] for one in server.post(*pictures).json()["predictions"]]
            return read == [expected(picture)["title"] for picture in pictures]

        assert all(clients.map(ask, range(400)))
        assert max(map(len, server.predictor.batches)) > 4


def test_urls_go_through_the_guards_of_the_downloader():
    with Hostile() as shop, serving(allow_urls=True, network=shop.network(), max_bytes=10**6) as server:

        def ask(*urls: str):
            return server.post_json({"pictures": [{"url": url} for url in urls]})

        read = ask(shop.url("jpeg", 1, shop.shop), shop.url("redirect", 2, shop.shop)).json()["predictions"]
        assert [one["fields"]["title"]["value"] for one in read] == [expected(jpeg(n))["title"] for n in (1, 2)]
        private = {
            shop.url("jpeg", 3): "address refused",
            shop.url("redirect-private", 3, shop.shop): "address refused",
            shop.url("redirect-file", 3, shop.shop): "scheme refused",
            "http://169.254.169.254/latest/meta-data/": "address refused",
            "http://[::1]:1/": "address refused",
            "http://0x7f000001/": "address refused",
            "http://me:secret@shop.test/": "credentials refused",
            "file:///etc/passwd": "scheme refused",
            "nonsense": "invalid URL",
            shop.url("missing", 3, shop.shop): "HTTP 404",
            shop.url("huge", 3, shop.shop): "too large",
            shop.url("gzip-bomb", 3, shop.shop): "too large",
        }
        for url, reason in private.items():
            answer = ask(url)
            assert (answer.status_code, answer.json()) == (422, {"detail": f"URL cannot be fetched: {reason}"})
        assert shop.counts["/jpeg/3"] == 0
        mixed = ask(shop.url("html", 4, shop.shop), shop.url("jpeg", 5, shop.shop), "file:///etc/passwd").json()
        assert [one["error"] is None for one in mixed["predictions"]] == [False, True, False]
        together = ask(*[shop.url("jpeg", number, shop.shop) for number in range(60)])
        assert together.status_code == 413
