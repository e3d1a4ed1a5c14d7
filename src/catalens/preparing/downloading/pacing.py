"""How often a host is asked, and how many places it may hold.

    shop.example:443   4 requests at a time until something came, then 16; 50 a second
      429              25 a second, and nobody asks before its Retry-After has passed
      200 200 200 ...  a little faster with each, 50 a second again after about a minute
      8 time-outs      4 at a time again
      nothing else than 429, 503, time-outs and lost connections for 180 s: given up

Additive increase, multiplicative decrease (Chiu and Jain, 1989), as in TCP. A request waits for its host before it
takes one of the places that all hosts share. A host takes a place only while it holds fewer than are free (dynamic
thresholds: Choudhury and Hahne, 1998), so that a few slow hosts never hold them all.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from catalens.preparing.downloading.settings import DownloadSpec

SLOWEST = 0.5  # requests a second
RECOVERY_SECONDS = 60.0  # from standstill to the full rate
TROUBLES = 8  # a few bad URLs are no dead host, however long they take
TRIAL = 1 / 4  # of its requests at a time, for a host of which nothing came yet, or nothing any more
HOSTS_KEPT = 10_000  # besides those in use: a table may name a million


Key = tuple[str | None, int | None]
"""Name and port of a host."""


class Host:
    """Rate and state of one host; times are seconds of one clock, the event loop's."""

    def __init__(self, spec: DownloadSpec) -> None:
        self.gate = asyncio.Lock()
        self.users = 0
        self.places = 0
        """Places that it holds."""
        self.rate = spec.per_host_rate
        self.ready_at = 0.0
        self.given_up = False
        self._spec = spec
        self._gap = 1 / spec.per_host_rate
        self._started_at: float | None = None
        self._slowed_at = self._troubled_at = 0.0
        self._troubles = 0
        self._heard = False
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def window(self) -> int:
        """Most requests at a time."""
        return self._spec.per_host if self._heard else max(1, int(TRIAL * self._spec.per_host))

    @asynccontextmanager
    async def turn(self, urgent: bool) -> AsyncIterator[None]:
        """Wait until fewer requests than the window are under way; urgent ones come before all others."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.insert(0 if urgent else len(self._waiting), turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self._under_way -= 1
                self._admit()

    def _admit(self) -> None:
        while self._waiting and self._under_way < self.window:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self._under_way += 1
                turn.set_result(None)

    def started(self, now: float) -> None:
        """A request goes out."""
        if self._started_at is not None:
            self._gap += 0.1 * (min(now - self._started_at, 1 / SLOWEST) - self._gap)
        self._started_at = now
        self.ready_at = now + 1 / self.rate

    def answered(self) -> None:
        """An answer came that is no objection: 200 or 404, it does not matter."""
        self._troubles, self._heard = 0, True
        self._admit()
        gain = self._spec.per_host_rate / RECOVERY_SECONDS / self.rate
        self.rate = min(self._spec.per_host_rate, self.rate + gain)

    def objected(self, asked_at: float, pause: float | None, now: float) -> None:
        """429 or 503 came, to a request sent at `asked_at`, with the seconds of its Retry-After, if any."""
        if asked_at >= self._slowed_at:  # one decrease for all the requests that were under way together
            self.rate = max(SLOWEST, min(self.rate, 1 / self._gap) / 2)
            self._slowed_at = now
        pause = 1 / self.rate if pause is None else min(pause, self._spec.max_retry_after)
        self.ready_at = max(self.ready_at, now + pause)

    def unheard(self, now: float) -> None:
        """No answer came that can be used: a time-out, a lost connection, an objection."""
        if not self._troubles:
            self._troubled_at = now
        self._troubles += 1
        self._heard = self._heard and self._troubles < TROUBLES
        if self._troubles >= TROUBLES and now - self._troubled_at >= self._spec.host_patience:
            self.given_up = True


class Pacer:
    """Turns at all hosts."""

    def __init__(self, spec: DownloadSpec) -> None:
        self._spec = spec
        self._free = spec.concurrency
        self._waiting: list[tuple[Host, asyncio.Future[None]]] = []
        self._hosts: OrderedDict[Key, Host] = OrderedDict()

    @asynccontextmanager
    async def turn(self, key: Key, urgent: bool = False) -> AsyncIterator[Host]:
        """Wait until a host may be asked; first come, first served, but for `urgent` ones: the steps of a redirect.

        A host that is given up costs no waiting.
        """
        host = self._hosts.get(key) or self._new(key)
        host.users += 1
        try:
            async with host.turn(urgent):
                await self._wait(host)
                async with nullcontext() if host.given_up else self._place(host):
                    yield host
        finally:
            host.users -= 1

    @asynccontextmanager
    async def _place(self, host: Host) -> AsyncIterator[None]:
        """One of the places, as soon as this host may have another."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((host, place))
        self._deal()
        try:
            await place
            yield
        finally:
            if not place.cancelled():
                host.places -= 1
                self._free += 1
                self._deal()

    def _deal(self) -> None:
        """Give the free places to those who waited longest, past hosts that hold as many as are free."""
        waiting, self._waiting = self._waiting, []
        for host, place in waiting:
            if place.cancelled():
                continue
            if host.places < self._free:
                host.places += 1
                self._free -= 1
                place.set_result(None)
            else:
                self._waiting.append((host, place))

    def _new(self, key: Key) -> Host:
        if len(self._hosts) >= HOSTS_KEPT:
            oldest, idle = self._hosts.popitem(last=False)
            if idle.users:
                self._hosts[oldest] = idle
        self._hosts[key] = Host(self._spec)
        return self._hosts[key]

    @staticmethod
    async def _wait(host: Host) -> None:
        clock = asyncio.get_running_loop().time
        async with host.gate:
            while not host.given_up and (wait := host.ready_at - clock()) > 0:
                await asyncio.sleep(wait)
            host.started(clock())
