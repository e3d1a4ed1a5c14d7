"""One URL -> one `Fetched`, whatever the server does.

    async with Downloader(DownloadSpec()) as downloader:
        fetched = await downloader.fetch("https://shop.example/photos/10432877.jpg")
    fetched.body     b"\\xff\\xd8..."
    fetched.reason   None; or, with no body, such as "HTTP 404" or "timed out: no byte for 20 s"

The body is what the server sent, at most undone from gzip: whether it is a picture is for a decoder to say.
"""

import asyncio
import email.utils
import random
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp
from yarl import URL

from catalens.preparing.downloading.network import Network, connector
from catalens.preparing.downloading.pacing import Host, Pacer
from catalens.preparing.downloading.reasons import Failure, checked_url, explained
from catalens.preparing.downloading.settings import DownloadSpec

REDIRECTS = frozenset({301, 302, 303, 307, 308})
SLOW_DOWN = frozenset({429, 503})
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})
LONGEST_BACKOFF = 30.0  # seconds
FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives that keep a picture out: those that img2dataset obeys, and `none`, which is Google's word for noindex
with nofollow."""
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a value after their colon, and so are no crawler's name."""


@dataclass(frozen=True)
class Fetched:
    """What came of one URL."""

    final_url: str | None
    """The last URL that was asked, after redirects; None where none was."""
    status: int | None
    """HTTP status of the last answer; None where none came."""
    body: bytes | None
    """The bytes, at least one; None where `reason` is set."""
    attempts: int
    """Times that the URL was tried; redirects are not counted."""
    reason: str | None
    """Why there is no body, as `stable words: details` (`reasons` lists them); None where there is one."""
    retryable: bool
    """Whether a later run may do better."""


class Downloader:
    """Fetches URLs; an async context manager around one pool of connections.

    Start as many `fetch` at a time as there is memory for their results: they wait here for their host and then for
    one of the `concurrency` places, so that those of a slow host hold up no others.
    """

    def __init__(self, spec: DownloadSpec, network: Network | None = None) -> None:
        """`network` replaces name resolution and sockets in tests; addresses are checked between the two."""
        self.spec = spec
        self._network = network or Network()
        self._name = spec.user_agent.partition("/")[0].strip()

    async def __aenter__(self) -> Self:
        self._pacer = Pacer(self.spec)
        tcp, self._resolver = connector(self.spec, self._network)
        self._client = aiohttp.ClientSession(
            connector=tcp,
            # Pictures are compressed already; a server that does it all the same is understood.
            headers={
                "User-Agent": self.spec.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(
                total=self.spec.total_timeout,
                connect=self.spec.connect_timeout,
                sock_read=self.spec.read_timeout,
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._resolver.close()

    async def fetch(self, url: str) -> Fetched:
        """Ask for a URL until its bytes are there or known not to come; raises nothing that a URL or a server causes.

        Redirects are followed, what may be passing is tried again as the settings say.
        """
        async with self.fetching(url) as fetched:
            return fetched

    @asynccontextmanager
    async def fetching(self, url: str) -> AsyncIterator[Fetched]:
        """`fetch`, with the connection's place kept until the block ends: no more bodies are held than places."""
        async with AsyncExitStack() as held:
            yield await self._fetch(url, held)

    async def _fetch(self, url: str, held: AsyncExitStack) -> Fetched:
        attempts = 0
        while True:
            attempts += 1
            asked, status, outcome = await self._follow(url, held)
            final_url = str(asked) if asked else None
            if isinstance(outcome, bytes):
                return Fetched(final_url, status, outcome, attempts, None, False)
            if not outcome.again or attempts > self.spec.retries:
                return Fetched(final_url, status, None, attempts, outcome.reason, outcome.retryable)
            longest = min(LONGEST_BACKOFF, self.spec.backoff * 2 ** (attempts - 1))
            await asyncio.sleep(random.uniform(0, longest))  # full jitter: those that failed together part

    async def _follow(self, text: str, held: AsyncExitStack) -> tuple[URL | None, int | None, bytes | Failure]:
        """One attempt, the URL and its redirects: the last URL asked, its status, and a body or why there is none.

        All hosts on the way are judged by what came of it in the end. The turn that brings a body is `held`.
        """
        url, status, outcome = None, None, checked_url(text)
        asked: dict[URL, Host] = {}
        while isinstance(outcome, URL):
            if outcome in asked:
                outcome = Failure("redirect loop: it leads back to where it came from", counts=True)
            elif len(asked) > self.spec.max_redirects:
                outcome = Failure(f"too many redirects: more than {self.spec.max_redirects}", counts=True)
            else:
                url = outcome
                async with AsyncExitStack() as turn:
                    place = self._pacer.turn((url.host, url.port), urgent=bool(asked))
                    asked[url] = host = await turn.enter_async_context(place)
                    status, outcome = (None, self._given_up()) if host.given_up else await self._ask(url, host)
                    if isinstance(outcome, bytes):
                        held.push_async_exit(turn.pop_all())
        failed = isinstance(outcome, Failure) and outcome.counts
        for host in set(asked.values()):
            host.unheard(asyncio.get_running_loop().time()) if failed else host.answered()
        return url, status, outcome

    def _given_up(self) -> Failure:
        silence = f"nothing that could be used came for {self.spec.host_patience:g} s"
        return Failure(f"host given up: {silence}", retryable=True, counts=True)

    async def _ask(self, url: URL, host: Host) -> tuple[int | None, bytes | URL | Failure]:
        """Status and outcome of one request; a redirect's outcome is its target."""
        clock = asyncio.get_running_loop().time
        asked_at, status, body = clock(), None, _Body(self.spec)
        try:
            async with (
                asyncio.timeout(self.spec.connect_timeout + self.spec.read_timeout) as body.deadline,
                self._client.get(url, allow_redirects=False) as response,
            ):
                status = response.status
                if status in SLOW_DOWN:
                    host.objected(asked_at, retry_after(response.headers.get("Retry-After"), time.time()), clock())
                return status, await self._read(url, response, body)
        except Exception as error:
            return status, body.too_slow() if body.deadline.expired() else explained(error, self.spec)

    async def _read(self, url: URL, response: aiohttp.ClientResponse, body: "_Body") -> bytes | URL | Failure:
        """What an answer holds; leaving the response with bytes unread closes its connection."""
        status, headers = response.status, response.headers
        if status == 200 or status in REDIRECTS:
            directive = forbidding_directive(headers.getall("X-Robots-Tag", ()), self._name)
            if directive and self.spec.obey_noai:
                return Failure(f"noai: X-Robots-Tag says {directive}")
        if status in REDIRECTS and (target := headers.get("Location")):
            return checked_url(target, url)
        if status != 200:
            passing = status in TRANSIENT
            return Failure(f"HTTP {status}", retryable=passing, again=passing, counts=status in SLOW_DOWN)
        return await body.read(response)


class _Body:
    """The body of one answer, as it comes: not too large and not too slowly."""

    deadline: asyncio.Timeout
    """Ends the request: at first where no headers come, then where too few bytes do."""

    def __init__(self, spec: DownloadSpec) -> None:
        self._spec = spec
        self._begun, self._fresh = False, 0

    async def read(self, response: aiohttp.ClientResponse) -> bytes | Failure:
        """All of it, or why not."""
        largest = self._spec.max_bytes
        too_large = f"too large: more than {largest / 2**20:.3g} MB"
        if (response.content_length or 0) > largest:
            return Failure(too_large)
        self._begun = True
        self._wait_on()
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > largest:
                return Failure(too_large, counts=True)
            chunks.append(chunk)
            self._fresh += len(chunk)
            if self._fresh >= self._spec.least_rate * self._spec.read_timeout:
                self._wait_on()
        return b"".join(chunks) or Failure("empty: 0 bytes")

    def too_slow(self) -> Failure:
        """Why the deadline passed."""
        seconds = self._spec.read_timeout
        if not self._begun:
            slow = f"no answer within {self._spec.connect_timeout + seconds:g} s"
        elif self._fresh:
            slow = f"fewer than {self._spec.least_rate:g} bytes a second for {seconds:g} s"
        else:  # aiohttp's own clock was about to say so
            return explained(aiohttp.SocketTimeoutError(), self._spec)
        return Failure(f"timed out: {slow}", retryable=True, counts=True)

    def _wait_on(self) -> None:
        self._fresh = 0
        self.deadline.reschedule(asyncio.get_running_loop().time() + self._spec.read_timeout)


def forbidding_directive(values: Iterable[str], name: str) -> str | None:
    """The first directive in the X-Robots-Tag headers `values` that forbids the picture to the crawler `name`.

    A directive after `somebody:` is theirs, up to the next name or the end of the header; case does not matter.
    Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
    """
    for value in values:
        ours = True
        for part in value.lower().split(","):
            directive = part.strip()
            if found := re.fullmatch(r"([a-z][\w.-]*)\s*:\s*(.*)", directive):
                if found[1] in VALUED:
                    continue
                ours, directive = found[1] == name.lower(), found[2].strip()
            if ours and directive in FORBIDDING:
                return directive
    return None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` (Unix time) that a Retry-After header asks for, 0 at least; None where it says nothing."""
    text = (value or "").strip()
    if re.fullmatch(r"\d{1,9}", text, flags=re.ASCII):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
