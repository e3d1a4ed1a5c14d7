"""The downloader against a real server that does what servers do."""

import asyncio
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from urllib.request import urlopen

import pytest
from aiohttp import web
from hostile import EXTRA, KINDS, PUBLIC, SLOW, Hostile, expected_reason, gzip_bomb, hostile_server, jpeg  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from catalens import __version__
from catalens.catalog import open_picture
from catalens.errors import PictureError
from catalens.preparing import (
    Downloader,
    DownloadSpec,
    Fetched,
    Host,
    Network,
    forbidding_directive,
    refusal,
    retry_after,
)
from catalens.preparing.download import TROUBLES

# Time-outs are far above what a busy machine takes for loopback, and are only waited for by what never comes.
QUICK = DownloadSpec(
    connect_timeout=6, read_timeout=3, total_timeout=6, max_bytes=500_000, retries=1, backoff=0.01, per_host_rate=1e6
)


def fetch(spec: DownloadSpec, urls: Iterable[str], network: Network | None = None) -> list[Fetched]:
    async def run() -> list[Fetched]:
        async with Downloader(spec, network) as downloader:
            return await asyncio.gather(*map(downloader.fetch, urls))

    return asyncio.run(run())


def changed(**settings: object) -> DownloadSpec:
    return QUICK.model_copy(update=settings)


def stem(fetched: Fetched) -> str | None:
    return fetched.reason and fetched.reason.split(":")[0]


def decodes(data: bytes | None) -> bool:
    try:
        open_picture(data or b"")
    except PictureError:
        return False
    return True


@pytest.fixture(scope="module")
def each_kind() -> tuple[dict[str, Fetched], dict[str, int]]:
    """What comes of one URL of every kind, and how often each was asked for."""
    with Hostile() as server:
        results = fetch(QUICK, [server.url(kind, 7, server.shop) for kind in KINDS], server.network())
        counts = {kind: server.counts[f"/{kind}/7"] for kind in KINDS}
    return dict(zip(KINDS, results, strict=True)), counts


class TestServers:
    def test_every_kind_of_answer_has_its_reason(self, each_kind: tuple[dict[str, Fetched], dict[str, int]]):
        results, _ = each_kind
        assert {kind: stem(one) for kind, one in results.items()} == {kind: expected_reason(kind) for kind in KINDS}
        assert all((one.body is None) == (one.reason is not None) for one in results.values())
        pictures = {kind for kind, one in results.items() if decodes(one.body)}
        assert pictures == {kind for kind in KINDS if KINDS[kind].picture}
        assert results["jpeg"].body == results["gzipped"].body == results["busy"].body == jpeg(7)
        assert (results["redirect"].final_url or "").endswith("/jpeg/7")

    def test_only_what_may_pass_is_asked_again(self, each_kind: tuple[dict[str, Fetched], dict[str, int]]):
        results, counts = each_kind
        lasting = {"broken", "silent", "stalled", "short", "cut-chunk", "hung-up"}
        again = lasting | {"busy", "shaky", "dropped"}
        assert {kind for kind, one in results.items() if one.attempts == 2} == again
        # The redirect ends at that jpeg, and redirect-far goes round by itself.
        alone = {kind: count for kind, count in counts.items() if kind not in ("jpeg", "hung-up", "redirect-far")}
        assert alone == {kind: 2 if kind in again else 1 for kind in alone}
        assert 2 <= counts["hung-up"] <= 4  # aiohttp repeats a request once by itself after a silent hang-up

    def test_reasons_are_one_short_printable_line(self, each_kind: tuple[dict[str, Fetched], dict[str, int]]):
        reasons = [one.reason for one in each_kind[0].values() if one.reason]
        assert reasons
        assert all(reason.isprintable() and len(reason) < 240 for reason in reasons)

    def test_2000_rows_end_each_with_its_reason(self, hostile: Hostile, caplog: pytest.LogCaptureFixture):
        kinds = [list(KINDS)[row % len(KINDS)] for row in range(2000)]
        kinds = [kind if kind not in SLOW or row < 600 else "jpeg" for row, kind in enumerate(kinds)]
        urls = [hostile.url(kind, row, hostile.shop) for row, kind in enumerate(kinds)]
        results = fetch(changed(concurrency=256, per_host=256), urls, hostile.network())
        wrong = [
            (url, one.reason)
            for url, kind, one in zip(urls, kinds, results, strict=True)
            if stem(one) != expected_reason(kind)
        ]
        assert not wrong
        assert all(one.body == jpeg(row) for row, one in enumerate(results) if kinds[row] == "jpeg")
        assert hostile.most_at_once <= 256
        assert not caplog.records

    def test_a_picture_of_just_the_largest_size_is_taken(self, hostile: Hostile):
        url, size = hostile.url("jpeg", 1), len(jpeg(1))
        taken, refused = (
            fetch(changed(max_bytes=most, allow_private_hosts=True), [url])[0] for most in (size, size - 1)
        )
        assert taken.body == jpeg(1)
        assert stem(refused) == "too large"

    def test_a_compressed_bomb_is_not_inflated(self, hostile: Hostile):
        gzip_bomb()  # made before memory is counted
        tracemalloc.start()
        try:
            result = fetch(QUICK, [hostile.url("gzip-bomb", 1, hostile.shop)], hostile.network())[0]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert stem(result) == "too large"
        assert peak < 16 * 2**20

    def test_nobody_asks_before_retry_after_has_passed(self, hostile: Hostile):
        spec = changed(allow_private_hosts=True, retries=3)
        results = fetch(spec, [hostile.url("asked-too-early", number) for number in range(5)])
        assert [one.reason for one in results] == [None] * 5
        assert all(one.attempts == 2 for one in results)


class TestPoliteness:
    def test_requests_say_who_asks_and_keep_no_secrets(
        self,
        hostile: Hostile,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine shop.test login me password secret\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        async def one_after_the_other() -> list[Fetched]:
            async with Downloader(QUICK, hostile.network()) as downloader:
                return [await downloader.fetch(hostile.url("echo", number, hostile.shop)) for number in range(2)]

        with caplog.at_level(logging.INFO, logger="aiohttp"):
            results = asyncio.run(one_after_the_other())
        assert not caplog.records
        for one in results:
            sent = json.loads(one.body or b"{}")
            assert sent["User-Agent"] == f"catalens/{__version__} (product picture preparation)"
            assert not {"Cookie", "Authorization", "Referer", "Proxy-Authorization"} & set(sent)

    def test_noai_is_obeyed_unless_told_otherwise(self, hostile: Hostile):
        urls = [hostile.url(kind, 3) for kind in ("noai", "noai-ours", "robots-others")]
        obeyed = fetch(changed(allow_private_hosts=True), urls)
        ignored = fetch(changed(allow_private_hosts=True, obey_noai=False), urls)
        assert [stem(one) for one in obeyed] == ["noai", "noai", None]
        assert [one.body for one in ignored] == [jpeg(3)] * 3

    @pytest.mark.parametrize(
        ("values", "directive"),
        [
            (["noai"], "noai"),
            (["all", "NoImageAI"], "noimageai"),
            (["nofollow, noindex"], "noindex"),
            (["none"], "none"),
            (["unavailable_after: Wed, 25 Jun 2031 15:00:00 GMT, noai"], "noai"),
            (["max-image-preview:none, noai"], "noai"),
            (["catalens: noai"], "noai"),
            (["googlebot: nofollow, CataLens : noindex"], "noindex"),
            (["googlebot: noindex, noai", "otherbot: noai"], None),
            (["noaindex, archive", "", ",,:", "max-image-preview: none"], None),
            ([], None),
        ],
    )
    def test_robots_directives(self, values: list[str], directive: str | None):
        assert forbidding_directive(values, "catalens") == directive

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("120", 120.0),
            (" 0 ", 0.0),
            ("Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
            ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
            ("-5", None),
            ("1.5", None),
            ("٣", None),
            ("soon", None),
            ("9" * 400, None),
            (None, None),
        ],
    )
    def test_retry_after(self, value: str | None, seconds: float | None):
        assert retry_after(value, now=1000.0) == seconds


async def fetch_beside(
    ours: Downloader, hostile: Hostile, slow: list[str], fast: list[str], held: int = 0
) -> tuple[list[Fetched], int]:
    """What comes of the fast URLs beside slow ones, of which `held` are under way, and how many of these are done."""
    waiting = [asyncio.create_task(ours.fetch(url)) for url in slow]
    while hostile.at_once < held:
        await asyncio.sleep(0.01)
    results = await asyncio.gather(*map(ours.fetch, fast))
    done = sum(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return results, done


class TestPacing:
    def test_at_most_so_many_requests_at_a_time(self, hostile: Hostile):
        hostile.latency = 0.02
        spec = changed(per_host=3, concurrency=5)
        fetch(spec, [hostile.url("jpeg", n, hostile.shop) for n in range(30)], hostile.network())
        assert hostile.most_at_once == 3
        several = [f"http://{name}.test:{hostile.port}/jpeg/{n}" for n in range(30) for name in "abcdef"]
        fetch(spec, several, hostile.network())
        assert hostile.most_at_once == 5

    def test_a_host_alone_has_all_places_but_one(self, hostile: Hostile):
        """And whoever comes next gets that one at once, even where the first lets go of none."""
        fine = [hostile.url("jpeg", n, hostile.shop) for n in range(9)]
        slow = [hostile.url("drip", n, hostile.shop) for n in range(50)]
        fast = [f"http://fast.test:{hostile.port}/jpeg/{n}" for n in range(20)]

        async def run() -> tuple[list[Fetched], int]:
            spec = changed(concurrency=8, per_host=64, read_timeout=600, total_timeout=3600)
            async with Downloader(spec, hostile.network()) as ours:
                await asyncio.gather(*map(ours.fetch, fine))
                return await fetch_beside(ours, hostile, slow, fast, held=7)

        results, done = asyncio.run(run())
        assert [one.reason for one in results] == [None] * 20
        assert done == 0
        assert hostile.most_at_once == 8

    def test_a_slow_host_holds_up_no_other(self, hostile: Hostile):
        slow = [f"http://slow.test:{hostile.port}/silent/{n}" for n in range(200)]
        fast = [f"http://fast.test:{hostile.port}/jpeg/{n}" for n in range(20)]

        async def run() -> tuple[list[Fetched], int]:
            async with Downloader(changed(concurrency=4, per_host=3, read_timeout=600), hostile.network()) as ours:
                return await fetch_beside(ours, hostile, slow, fast)

        results, done = asyncio.run(run())
        assert [one.reason for one in results] == [None] * 20
        assert done == 0

    @pytest.mark.parametrize("kind", ["drip", "stalled", "drip-headers", "silent"])
    def test_slow_hosts_never_hold_all_places(self, hostile: Hostile, kind: str):
        """Three hosts that may hold all places by `per_host` begin; nobody loses patience in this test."""
        slow = [f"http://{name}.test:{hostile.port}/{kind}/{n}" for n in range(50) for name in ("a", "b", "c")]
        fast = [f"http://fast.test:{hostile.port}/jpeg/{n}" for n in range(200)]
        patient = changed(concurrency=8, per_host=4, read_timeout=600, total_timeout=3600)

        async def run() -> tuple[list[Fetched], int]:
            async with Downloader(patient, hostile.network()) as ours:
                return await fetch_beside(ours, hostile, slow, fast, held=3)

        results, done = asyncio.run(run())
        assert [one.body for one in results] == [jpeg(n) for n in range(200)]
        assert done == 0
        assert sum(count for path, count in hostile.counts.items() if kind in path) == 3  # one each, on trial

    def test_hosts_that_were_good_do_not_hold_all_places_either(self, hostile: Hostile):
        names = [f"http://{name}.test:{hostile.port}" for name in ("a", "b", "c")]
        slow = [f"{name}/drip/{n}" for name in names for n in range(50)]
        fast = [hostile.url("jpeg", n, hostile.shop) for n in range(50)]

        async def run() -> list[Fetched]:
            spec = changed(concurrency=8, per_host=8, read_timeout=600, total_timeout=3600)
            async with Downloader(spec, hostile.network()) as ours:
                await asyncio.gather(*(ours.fetch(f"{name}/jpeg/{n}") for name in names for n in range(9)))
                return (await fetch_beside(ours, hostile, slow, fast, held=6))[0]

        assert [one.body for one in asyncio.run(run())] == [jpeg(n) for n in range(50)]
        assert sum(count for path, count in hostile.counts.items() if "drip" in path) == 6  # of 8 places

    @pytest.mark.parametrize(
        ("kind", "requests"),
        [("silent", 1), ("drip", 1), ("stalled", 1), ("drip-headers", 1), ("redirect-loop", 1), ("redirect-far", 6)],
    )
    def test_a_host_of_which_nothing_comes_is_given_up(self, hostile: Hostile, kind: str, requests: int):
        """No more is asked for than its troubles and what is under way at the end; the time-outs always pass."""
        urls = [hostile.url(kind, 1000 * n, hostile.shop) for n in range(300)]
        spec = changed(connect_timeout=0.2, read_timeout=0.2, total_timeout=0.5, host_patience=1e-6, per_host=4)
        results = fetch(spec.model_copy(update={"retries": 0}), urls, hostile.network())
        assert all(one.body is None for one in results)
        assert sum(stem(one) == "host given up" for one in results) > 280
        assert sum(hostile.counts.values()) <= requests * (TROUBLES + spec.per_host)

    def test_a_slow_picture_is_waited_for_while_bytes_come(self, hostile: Hostile):
        """The whole takes longer than a read time-out, each of which has a byte at least."""
        spec = changed(allow_private_hosts=True, total_timeout=600)
        assert fetch(spec, [hostile.url("crawl", 1)])[0].body == jpeg(1)

    def test_a_cancelled_fetch_gives_its_place_back(self, hostile: Hostile):
        async def run() -> Fetched:
            async with Downloader(changed(concurrency=1, per_host=1, allow_private_hosts=True)) as downloader:
                for kind in ("silent", "stalled", "drip"):
                    stuck = [asyncio.create_task(downloader.fetch(hostile.url(kind, n))) for n in range(3)]
                    while not hostile.counts[f"/{kind}/0"]:
                        await asyncio.sleep(0.01)
                    for task in stuck:
                        task.cancel()
                    await asyncio.gather(*stuck, return_exceptions=True)
                return await downloader.fetch(hostile.url("jpeg", 1))

        assert asyncio.run(run()).body == jpeg(1)

    def test_a_host_that_never_lets_us_is_given_up(self, hostile: Hostile):
        bad = [f"http://bad.test:{hostile.port}/too-many/{n}" for n in range(300)]
        good = [f"http://good.test:{hostile.port}/jpeg/{n}" for n in range(30)]
        results = fetch(changed(host_patience=0.2), bad + good, hostile.network())
        stems = {stem(one) for one in results[:300]}
        assert "host given up" in stems
        assert stems <= {"host given up", "HTTP 429"}
        assert sum(hostile.counts[f"/too-many/{n}"] for n in range(300)) < 300
        assert [one.reason for one in results[300:]] == [None] * 30

    def test_objections_halve_the_rate_once_for_all_under_way_and_answers_bring_it_back(self):
        host = Host(DownloadSpec(per_host_rate=40))
        for start in range(100):
            host.started(start / 40)
        now = 100 / 40
        for _ in range(5):
            host.objected(asked_at=now - 0.1, pause=None, now=now)
        assert host.rate == pytest.approx(20)
        host.objected(asked_at=now + 1, pause=None, now=now + 2)
        assert host.rate == pytest.approx(10)
        seconds = 0.0
        while host.rate < 40:
            seconds += 1 / host.rate
            host.answered()
        assert 20 < seconds < 60  # three quarters of the rate come back in three quarters of a minute

    def test_the_rate_that_counts_is_the_one_that_was_reached(self):
        host = Host(DownloadSpec(per_host_rate=1000))
        for start in range(100):
            host.started(start / 10)
        host.objected(asked_at=10, pause=None, now=10)
        assert host.rate == pytest.approx(5, rel=0.01)

    def test_retry_after_pauses_the_host_within_the_limit(self):
        host = Host(DownloadSpec(max_retry_after=60))
        host.objected(asked_at=0, pause=7, now=100)
        assert host.ready_at == 107
        host.objected(asked_at=0, pause=1e9, now=100)
        assert host.ready_at == 160

    def test_a_host_is_given_up_for_silence_alone(self):
        host = Host(DownloadSpec(host_patience=100))
        for second in range(0, 1000, 10):
            host.failed(second)
            if second % 50 == 0:
                host.answered()
        assert not host.given_up
        for second in range(1000, 1110, 10):
            host.failed(second)
        assert host.given_up

    def test_two_bad_urls_far_apart_are_no_dead_host(self):
        host = Host(DownloadSpec(host_patience=100))
        for second in (0, 1000):
            host.failed(second)
        assert not host.given_up


REFUSED = """
0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.127.255.254 127.0.0.1 127.8.8.8 169.254.169.254 169.254.1.1 172.16.0.1
172.31.255.255 192.0.0.8 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1
255.255.255.255 168.63.129.16 100.100.100.200 192.0.0.192 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:a00:1
::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:db8::1
2002:7f00:1:: 2002:a00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fd12::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1
"""
SPOKEN_TO = """
1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.1 172.32.0.1 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::1.1.1.1
2002:101:101::1
"""
LOOPBACK = """
127.0.0.1 localhost [::1] [::ffff:7f00:1] 0x7f.1 0x7f000001 0177.0.0.01 2130706433 127.1 127.0.0.1. %3127.0.0.1
0.0.0.0 [::] \uff11\uff12\uff17.0.0.1 \u246b7.0.0.1 127\u30020.0.1
"""


class TestAddresses:
    @pytest.mark.parametrize("address", REFUSED.split())
    def test_refused(self, address: str):
        assert refusal(address)

    @pytest.mark.parametrize("address", SPOKEN_TO.split())
    def test_spoken_to(self, address: str):
        assert refusal(address) is None

    @given(st.ip_addresses(v=4))
    def test_an_address_inside_another_is_judged_by_itself(self, inner: ipaddress.IPv4Address):
        verdict = refusal(str(inner)) is None
        assert verdict <= inner.is_global
        assert (refusal(f"::ffff:{inner}") is None) == verdict
        assert (refusal(f"64:ff9b::{inner}") is None) == verdict
        number = int(inner)
        assert (refusal(f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1") is None) == verdict

    @given(st.ip_addresses(v=6))
    def test_nothing_that_is_not_global_is_spoken_to(self, address: ipaddress.IPv6Address):
        assert refusal(str(address)) is not None or address.is_global or address.sixtofour

    @pytest.mark.parametrize("host", LOOPBACK.split())
    def test_loopback_is_not_reached_however_it_is_written(self, hostile: Hostile, host: str):
        result = fetch(QUICK, [f"http://{host}:{hostile.port}/jpeg/1"])[0]
        assert stem(result) in ("address refused", "invalid URL", "host not found")
        assert not hostile.counts

    def test_a_redirect_to_loopback_is_refused_unless_allowed(self, hostile: Hostile):
        url = hostile.url("redirect-private", 1, hostile.shop)
        refused = fetch(QUICK, [url], hostile.network())[0]
        assert refused.reason == "address refused: 127.0.0.1 is loopback"
        assert hostile.counts == {"/redirect-private/1": 1}
        allowed = fetch(changed(allow_private_hosts=True), [url], hostile.network())[0]
        assert allowed.body == jpeg(1)
        assert allowed.final_url == hostile.url("jpeg", 1)

    def test_of_several_addresses_only_public_ones_are_spoken_to(self, hostile: Hostile):
        led = hostile.network()

        def answers(*addresses: str) -> Network:
            def getaddrinfo(host: str, port: int, *_: object, flags: int = 0) -> list:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

            return Network(getaddrinfo, led.open_socket)

        url = hostile.url("jpeg", 1, hostile.shop)
        assert fetch(QUICK, [url], answers("10.0.0.1", PUBLIC, "127.0.0.1"))[0].body == jpeg(1)
        refused = fetch(QUICK, [url], answers("10.0.0.1", "127.0.0.1"))[0]
        assert refused.reason == "host not found: shop.test at a public address: 10.0.0.1 is private"

    def test_an_answer_of_dns_that_changes_gains_nothing(self, hostile: Hostile):
        addresses = iter([PUBLIC] + ["127.0.0.1"] * 9)

        def getaddrinfo(host: str, port: int, *_: object, flags: int = 0) -> list:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

        # The first answer leads to a port where nobody listens, so that the name is asked for again.
        network = Network(getaddrinfo, hostile.network().open_socket)
        results = fetch(QUICK, ["http://rebind.test:1/jpeg/1", hostile.url("jpeg", 2, hostile.shop)], network)
        assert {stem(one) for one in results} <= {"connection failed", "host not found"}
        assert not hostile.counts

    def test_an_internal_name_counts_as_one_that_does_not_exist(self):
        """What a server tells strangers is the part before the colon."""

        def getaddrinfo(host: str, port: int, *_: object, flags: int = 0) -> list:
            if host.startswith("gone"):
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        network = Network(getaddrinfo)
        results = fetch(QUICK, [f"http://{name}.internal/a.jpg" for name in ("gone", "vault")], network)
        assert {(stem(one), one.attempts) for one in results} == {("host not found", 1)}

    def test_names_that_do_not_exist(self):
        def getaddrinfo(host: str, *_: object, flags: int = 0) -> list:
            raise socket.gaierror(socket.EAI_AGAIN if host.startswith("later") else socket.EAI_NONAME, "no such name")

        gone, later = fetch(QUICK, ["http://gone.test/a.jpg", "http://later.test/a.jpg"], Network(getaddrinfo))
        assert (gone.reason, gone.attempts) == ("host not found: gone.test", 1)
        assert (stem(later), later.attempts) == ("connection failed", 2)

    def test_a_certificate_that_nobody_signed_is_refused(self, tmp_path: Path):
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", certificate, "-addext", "subjectAltName=DNS:localhost"],
                check=True,
                capture_output=True,
            )
        except FileNotFoundError:
            pytest.skip("no openssl on the PATH")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        async def run() -> tuple[Fetched, int]:
            asked = 0

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal asked
                asked += 1
                writer.close()

            async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
                port = server.sockets[0].getsockname()[1]
                async with Downloader(changed(allow_private_hosts=True)) as downloader:
                    return await downloader.fetch(f"https://localhost:{port}/a.jpg"), asked

        result, asked = asyncio.run(run())
        assert stem(result) == "TLS failed"
        assert asked == 0


def no_network() -> Network:
    def getaddrinfo(*_: object, flags: int = 0) -> list:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    def open_socket(info: object) -> socket.socket:
        raise ConnectionRefusedError(111, "no network here")

    return Network(getaddrinfo, open_socket)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("", "invalid URL"),
            ("   ", "invalid URL"),
            ("photo.jpg", "invalid URL"),
            ("//shop.test/a.jpg", "invalid URL"),
            ("http://", "invalid URL"),
            ("http:///a.jpg", "invalid URL"),
            ("http://[::1", "invalid URL"),
            ("http://shop.test:99999/", "invalid URL"),
            ("http://shop.test:0/", "invalid URL"),
            ("http://shop.test:x/", "invalid URL"),
            ("http://shop.test/\r\nHost: other.test", "invalid URL"),
            ("http://shop.test/\x00", "invalid URL"),
            ("http://shop.test/\ud800", "invalid URL"),
            ("http://sh op.test/", "host not found"),
            ("http://" + "a" * 300 + ".test/", "host not found"),
            ("http://shop.test/" + "a" * 10_000, "invalid URL"),
            ("file:///etc/passwd", "scheme refused"),
            ("FTP://shop.test/a.jpg", "scheme refused"),
            ("data:image/png;base64,AAAA", "scheme refused"),
            ("javascript:alert(1)", "scheme refused"),
            ("gopher://127.0.0.1:25/", "scheme refused"),
            ("http://me:secret@shop.test/", "credentials refused"),
            ("https://me@shop.test/", "credentials refused"),
            ("http://:secret@shop.test/", "credentials refused"),
            ("  HTTP://SHOP.test/a b.jpg#top ", "host not found"),
            ("http://bücher.test/ä.jpg?q=ö", "host not found"),
        ],
    )
    def test_what_cannot_be_asked_for_has_its_reason(self, url: str, reason: str):
        result = fetch(QUICK, [url], no_network())[0]
        assert stem(result) == reason
        assert "secret" not in str(result)
        assert (result.body, result.status, result.attempts) == (None, None, 1)

    @given(st.lists(st.text(max_size=60), max_size=20), st.sampled_from(["", "http://", "https://shop.test/", "//"]))
    def test_no_text_makes_it_raise(self, texts: list[str], prefix: str):
        for one in fetch(QUICK, [prefix + text for text in texts], no_network()):
            assert one.reason
            assert one.reason.isprintable()

    def test_spaces_and_letters_beyond_ascii_are_written_for_the_wire(self, hostile: Hostile):
        result = fetch(changed(allow_private_hosts=True), [f" {hostile.base}/jpeg/3?name=rö b#a "])[0]
        assert result.final_url == f"{hostile.base}/jpeg/3?name=r%C3%B6+b"
        assert result.body == jpeg(3)

    def test_what_is_ready_for_the_wire_stays_as_it_is_to_the_letter(self, hostile: Hostile):
        signed = f"{hostile.base}/jpeg/3?s=a%2Fb%7e&t=%%2"
        result = fetch(changed(allow_private_hosts=True), [signed])[0]
        assert result.final_url == signed
        assert result.body == jpeg(3)


class TestSettings:
    @pytest.mark.parametrize(
        "settings",
        [{"concurrency": 0}, {"per_host_rate": 0}, {"user_agent": "a\r\nX: y"}, {"user_agent": ""}, {"retires": 3}],
    )
    def test_wrong_ones_are_refused(self, settings: dict[str, object]):
        with pytest.raises(ValidationError):
            DownloadSpec.model_validate(settings)

    def test_the_command_line_loads_no_http_library(self):
        code = "import sys, catalens.cli; sys.exit('aiohttp' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestHostile:
    def test_it_runs_alone_and_tells_its_counts(self):
        file = Path(__file__).parents[1] / "hostile.py"
        with subprocess.Popen([sys.executable, file, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            try:
                fetched = fetch(changed(allow_private_hosts=True), [f"{base}/jpeg/1", f"{base}/busy/1"])
                with urlopen(f"{base}/-/counts") as answer:
                    counts = json.load(answer)
            finally:
                process.terminate()
        assert [one.body for one in fetched] == [jpeg(1)] * 2
        assert counts == {"/jpeg/1": 1, "/busy/1": 2}

    def test_kinds_and_extras_do_not_share_a_name(self):
        assert not set(KINDS) & set(EXTRA)


def test_a_cookie_lives_as_long_as_its_redirect():
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.cookies))
        if "pass" in request.cookies:
            return web.Response(body=jpeg(1))
        response = web.Response(status=302, headers={"Location": request.path})
        response.set_cookie("pass", "1")
        return response

    async def fetched() -> list[Fetched]:
        app = web.Application()
        app.router.add_get("/photo.jpg", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/photo.jpg"
        async with Downloader(DownloadSpec(allow_private_hosts=True)) as downloader:
            found = [await downloader.fetch(url) for _ in range(2)]
        await runner.cleanup()
        return found

    assert [one.body for one in asyncio.run(fetched())] == [jpeg(1)] * 2
    assert asked == [{}, {"pass": "1"}] * 2
