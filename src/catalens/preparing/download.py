"""Many URLs -> bytes: turns at hosts, redirects, repetitions.

    async with Downloader(DownloadSpec()) as downloader:
        fetched = await downloader.fetch("https://shop.example/photos/10432877.jpg")
    fetched     Fetched(final_url="https://cdn.example/10432877.jpg", status=200, body=b"\\xff\\xd8...", attempts=1)
                Fetched("https://shop.example/gone.jpg", 410, None, reason="HTTP 410")

How often a host is asked:

    shop.example:443   4 requests at a time until something came, then 16; 50 a second
      429              25 a second, and nobody asks before its Retry-After has passed
      200 200 200 ...  a little faster with each, 50 a second again after about a minute
      8 time-outs      4 at a time again
      nothing else than 429, 503, time-outs and lost connections for 180 s: given up

Additive increase, multiplicative decrease (Chiu and Jain, 1989), as in TCP. A request that waits for its host holds
none of the slots that all hosts share. A host takes a slot only while it holds fewer than are free (dynamic
thresholds: Choudhury and Hahne, 1998), or no other is asked, so that a few slow hosts never hold them all.
"""

import asyncio
import math
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

from yarl import URL

from catalens.preparing.fetch import SLOW_DOWN, DownloadSpec, Failure, Network, ask, checked_url, open_session

MAX_BACKOFF = 30.0  # seconds
SLOWEST = 0.5  # requests a second
RECOVERY_SECONDS = 60.0  # from standstill to the full rate
TROUBLES = 8  # a few bad URLs are no dead host, however long they take
TRIAL = 1 / 4  # of its requests at a time, for a host of which nothing came yet, or nothing any more


@dataclass(frozen=True)
class Fetched:
    """Bytes of one URL, as the server sent them, at most undone from gzip; or why there are none."""

    final_url: str | None
    """The last URL that was asked, after redirects; None where none was."""
    status: int | None
    """HTTP status of the last answer; None where none came."""
    body: bytes | None
    """The bytes, at least one; None where `reason` is set."""
    attempts: int = 1
    """Times that the URL was tried; redirects are not counted."""
    reason: str | None = None
    """`stable words: details` (see `fetch`)."""


class Downloader:
    """Fetches URLs; an async context manager around one pool of connections.

    Start as many `fetch` at a time as there is memory for their results: they wait here for their host and then for
    one of the `concurrency` slots, so that those of a slow host hold up no others.
    """

    def __init__(self, spec: DownloadSpec, network: Network | None = None) -> None:
        """`network` replaces name resolution and sockets in tests; addresses are checked between the two."""
        self.spec, self._network = spec, network or Network()

    async def __aenter__(self) -> Self:
        self._pacer = Pacer(self.spec)
        self._session, self._resolver = open_session(self.spec, self._network)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str) -> Fetched:
        """Ask for a URL until its bytes are there or known not to come; raises nothing that a URL or a server causes.

        Redirects are followed, what may be passing is tried again as the settings say.
        """
        async with self.fetching(url) as fetched:
            return fetched

    @asynccontextmanager
    async def fetching(self, url: str) -> AsyncIterator[Fetched]:
        """`fetch`, with the connection's slot kept until the block ends: no more bodies are held than slots."""
        async with AsyncExitStack() as held:
            attempt = 1
            asked, status, outcome = await self._follow(url, held)
            while isinstance(outcome, Failure) and outcome.again and attempt <= self.spec.retries:
                longest = min(MAX_BACKOFF, self.spec.backoff * 2 ** (attempt - 1))
                await asyncio.sleep(random.uniform(0, longest))  # full jitter: those that failed together part
                attempt += 1
                asked, status, outcome = await self._follow(url, held)
            body = outcome if isinstance(outcome, bytes) else None
            reason = outcome.reason if isinstance(outcome, Failure) else None
            yield Fetched(str(asked) if asked else None, status, body, attempt, reason)

    async def _follow(self, text: str, held: AsyncExitStack) -> tuple[URL | None, int | None, bytes | Failure]:
        """One attempt, the URL and its redirects: the last URL asked, and what came of it.

        All hosts on the way are judged by what came in the end. The turn that brings a body is `held`.
        """
        url, status, outcome = None, None, checked_url(text)
        asked: dict[tuple[URL, frozenset[tuple[str, str]]], Host] = {}
        cookies: defaultdict[str | None, dict[str, str]] = defaultdict(dict)  # by host, within this way alone
        clock = asyncio.get_running_loop().time
        while isinstance(outcome, URL):
            step = outcome, frozenset(cookies[outcome.host].items())
            if step in asked:
                outcome = Failure("redirect loop: it leads back to where it came from", counts=True)
            elif len(asked) > self.spec.max_redirects:
                outcome = Failure(f"too many redirects: more than {self.spec.max_redirects}", counts=True)
            else:
                url = outcome
                async with AsyncExitStack() as turn:
                    waiting = self._pacer.turn((url.host, url.port), urgent=bool(asked))
                    asked[step] = host = await turn.enter_async_context(waiting)
                    if host.given_up:
                        silence = f"nothing that could be used came for {self.spec.host_patience:g} s"
                        status, outcome = None, Failure(f"host given up: {silence}", counts=True)
                        continue
                    asked_at = clock()
                    status, outcome, pause, given = await ask(self._session, url, self.spec, cookies[url.host])
                    cookies[url.host] |= given
                    if status in SLOW_DOWN:
                        host.objected(asked_at, pause, clock())
                    if isinstance(outcome, bytes):
                        held.push_async_exit(turn.pop_all())
        failed = isinstance(outcome, Failure) and outcome.counts
        for host in set(asked.values()):
            host.failed(clock()) if failed else host.answered()
        self._pacer.deal_soon()
        return url, status, outcome


class Host:
    """Rate and state of one host; times are seconds of one clock, the event loop's."""

    def __init__(self, spec: DownloadSpec) -> None:
        self.users = self.slots = 0
        """Requests that wait for it or are under way; slots that it holds."""
        self.rate = spec.per_host_rate
        self.ready_at = 0.0
        self.given_up = False
        self._spec = spec
        self._gap = 1 / spec.per_host_rate
        self._started_at: float | None = None
        self._slowed_at = self._troubled_at = 0.0
        self._troubles = 0
        self._alive = False

    @property
    def window(self) -> int:
        """Most requests at a time."""
        return self._spec.per_host if self._alive else max(1, int(TRIAL * self._spec.per_host))

    def started(self, now: float) -> None:
        """Note that a request goes out."""
        if self._started_at is not None:
            self._gap += 0.1 * (min(now - self._started_at, 1 / SLOWEST) - self._gap)
        self._started_at = now
        self.ready_at = now + 1 / self.rate

    def answered(self) -> None:
        """Note an answer that is no objection: 200 or 404, it does not matter."""
        self._troubles, self._alive = 0, True
        gain = self._spec.per_host_rate / RECOVERY_SECONDS / self.rate
        self.rate = min(self._spec.per_host_rate, self.rate + gain)

    def objected(self, asked_at: float, pause: float | None, now: float) -> None:
        """Note a 429 or 503 to a request sent at `asked_at`, with the seconds of its Retry-After, if any."""
        if asked_at >= self._slowed_at:  # one decrease for all the requests that were under way together
            self.rate = max(SLOWEST, min(self.rate, 1 / self._gap) / 2)
            self._slowed_at = now
        pause = 1 / self.rate if pause is None else min(pause, self._spec.max_retry_after)
        self.ready_at = max(self.ready_at, now + pause)

    def failed(self, now: float) -> None:
        """Note that no answer came that can be used: a time-out, a lost connection, an objection."""
        if not self._troubles:
            self._troubled_at = now
        self._troubles += 1
        self._alive = self._alive and self._troubles < TROUBLES
        if self._troubles >= TROUBLES and now - self._troubled_at >= self._spec.host_patience:
            self.given_up = True


class Pacer:
    """Turns at all hosts: a queue for each, and the slots that they share."""

    def __init__(self, spec: DownloadSpec) -> None:
        self._free = spec.concurrency
        self._hosts: defaultdict[tuple[str | None, int | None], Host] = defaultdict(partial(Host, spec))
        self._queues: dict[Host, deque[asyncio.Future[bool]]] = {}
        """Requests that wait, by host; the host that was served longest ago comes first."""
        self._in_use = 0
        """Hosts with users."""
        self._dealing = False
        self._wakes_at = 0.0

    @asynccontextmanager
    async def turn(self, key: tuple[str | None, int | None], urgent: bool = False) -> AsyncIterator[Host]:
        """Wait until a host, by name and port, may be asked; the steps of a redirect are `urgent`, and come first.

        A host that is given up costs no waiting.
        """
        host = self._hosts[key]
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(host, deque())
        queue.insert(0 if urgent else len(queue), turn)
        host.users += 1
        self._in_use += host.users == 1
        self.deal_soon()
        try:
            await turn
            yield host
        finally:
            host.users -= 1
            self._in_use -= host.users == 0
            if not turn.cancelled() and turn.result():
                host.slots -= 1
                self._free += 1
            self.deal_soon()

    def deal_soon(self) -> None:
        """Give out turns when all that happens now has happened: who comes together is seen together."""
        if not self._dealing:
            self._dealing = True
            asyncio.get_running_loop().call_soon(self._deal)

    def _deal(self) -> None:
        """Give a turn to each host in turn, past those that may not be asked yet or hold as many slots as are free.

        A host that is alone may hold all but one, which is for whoever comes next.
        """
        loop, self._dealing, wake, served = asyncio.get_running_loop(), False, math.inf, True
        while served:
            served = False
            for host, queue in list(self._queues.items()):
                while queue and queue[0].cancelled():
                    queue.popleft()
                room = host.slots < self._free or (self._in_use == 1 and self._free > 1)
                if not queue:
                    del self._queues[host]
                elif host.given_up:
                    queue.popleft().set_result(False)
                    served = True
                elif room and host.slots < host.window:
                    now = loop.time()
                    if now < host.ready_at:
                        wake = min(wake, host.ready_at)
                        continue
                    queue.popleft().set_result(True)
                    host.started(now)
                    host.slots += 1
                    self._free -= 1
                    self._queues[host] = self._queues.pop(host)
                    served = True
        if wake < math.inf and not loop.time() < self._wakes_at <= wake:
            self._wakes_at = wake
            loop.call_at(wake, self.deal_soon)
