"""One request to a server that nobody vouches for: which addresses are spoken to, what is read of an answer.

    https://shop.example/8043.jpg   200, b"\\xff\\xd8..."
    https://shop.example/gone.jpg   410, Failure("HTTP 410")
    https://shop.example/moved.jpg  301, URL("https://cdn.example/8043.jpg")
    http://127.0.0.1/               None, Failure("address refused: 127.0.0.1 is loopback")

A table must not make this machine ask its own network. A name is checked by the addresses that it resolves to, and
again at the moment of connecting, by the very address that the socket is given: an answer of DNS that changes in
between (rebinding) gains nothing. TLS certificates are verified; no cookie outlives its redirect; proxies and
credentials in the environment (`HTTPS_PROXY`, `.netrc`) are not used, because what stands behind a proxy cannot be
checked from here.

A reason is `stable words: details`, one line; summaries count by what stands before its first colon:

    invalid URL, scheme refused, credentials refused    the URL itself
    address refused, host not found, TLS failed         the way there
    connection failed, timed out, host given up         a later run may do better
    HTTP 404, HTTP 429, ...                             a status that is not 200
    redirect loop, too many redirects, noai             what the answer says
    too large, cut short, empty, broken answer          the body
    cannot be fetched                                   anything else
"""

import asyncio
import email.utils
import functools
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import Field
from yarl import URL

from catalens import __version__
from catalens.config import Frozen

MAX_URL = 8192  # RFC 9110, section 4.1, asks for at least 8,000
MAX_DETAIL = 160
WIRE_READY = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")  # RFC 3986, section 2
UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SLOW_DOWN = frozenset({429, 503})
TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})
FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives that keep a picture out: those of img2dataset, and `none`, Google's word for noindex, nofollow."""
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a value after their colon, and so are no crawler's name."""
METADATA = {ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "168.63.129.16")}
"""Services that tell a virtual machine its secrets: most clouds, AWS over IPv6, and Azure under a public address."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
SPECIAL = {
    ipaddress.ip_network("100.64.0.0/10"): "shared by a provider's customers",
    ipaddress.ip_network("192.0.0.0/24"): "reserved",
    ipaddress.ip_network("64:ff9b:1::/48"): "private",
    ipaddress.ip_network("3fff::/20"): "reserved",
    ipaddress.ip_network("5f00::/16"): "reserved",
    ipaddress.ip_network("fec0::/10"): "private",
}
"""Networks that `ipaddress` of Python 3.11 takes for public, or has no word for; source: IANA's registries."""
KINDS = ("unspecified", "loopback", "link_local", "multicast", "reserved", "private")
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""Family, type, protocol, canonical name and socket address, as `socket.getaddrinfo` gives them."""


class DownloadSpec(Frozen):
    """Settings of downloads."""

    concurrency: int = Field(default=64, ge=1, le=4096)
    """Requests at a time, to all hosts together."""
    per_host: int = Field(default=16, ge=1, le=4096)
    """Requests at a time to one host and port; never more than are left to all others, where others are asked."""
    per_host_rate: float = Field(default=50.0, ge=0.5, le=1e6)
    """Most requests a second to one host; a host that answers 429 or 503 is asked more slowly until it recovers."""
    connect_timeout: float = Field(default=10.0, gt=0, le=3600)
    """Seconds until a connection stands: name, TCP and TLS."""
    read_timeout: float = Field(default=20.0, gt=0, le=3600)
    """Longest silence of a server, in seconds, before its answer and within it."""
    total_timeout: float = Field(default=120.0, gt=0, le=3600)
    """Seconds for one request, from its turn to its last byte; a request that needs longer is not repeated."""
    max_bytes: int = Field(default=32 * 2**20, ge=1, le=2**31)
    """Largest picture, in bytes after decompression; up to `concurrency` of them are in memory at a time."""
    max_redirects: int = Field(default=5, ge=0, le=50)
    """Most redirects from one URL; each target is checked like the URL itself."""
    retries: int = Field(default=3, ge=0, le=20)
    """Times that a request is repeated after a time-out, a lost connection, 408, 425, 429 or 5xx."""
    backoff: float = Field(default=1.0, ge=0, le=60)
    """The n-th repetition waits a random time of up to this many seconds times 2^(n-1), never above 30."""
    max_retry_after: float = Field(default=60.0, ge=0, le=3600)
    """Longest pause of a host, in seconds, that a server's Retry-After can ask for."""
    host_patience: float = Field(default=180.0, gt=0, le=86400)
    """A host is given up after this many seconds in which nothing came but time-outs, bodies without end, lost
    connections, endless redirects, 429 and 503."""
    allow_private_hosts: bool = False
    """Also speak to loopback, private, link-local and other addresses that are not public."""
    obey_noai: bool = True
    """Leave out a picture whose server says noai, noimageai, noindex, noimageindex or none in X-Robots-Tag."""
    user_agent: str = Field(
        default=f"catalens/{__version__} (product picture preparation)", pattern=r"^[!-~][ -~]*$", max_length=200
    )
    """Name of the client: sent with every request, and the name by which X-Robots-Tag can address us."""


class Failure(NamedTuple):
    """Reason for having no body."""

    reason: str
    again: bool = False
    """Asking again at once may do better."""
    counts: bool = False
    """It counts against the hosts asked: after many in a row they are given up."""


# Addresses -------------------------------------------------------------------------------------------------------


class AddressRefusedError(OSError):
    """An address that is not spoken to; an OSError, so that it travels through aiohttp's connecting."""


@dataclass(frozen=True)
class Network:
    """The ways out of this machine. Tests lead a name elsewhere by them; the checks stand between the two."""

    getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo
    open_socket: Callable[[AddressInfo], socket.socket] = lambda info: socket.socket(*info[:3])
    """Makes the socket for an address that has been checked."""


def refusal(address: str) -> str | None:
    """Explain why an IP address is not spoken to, as `127.0.0.1 is loopback`; None for a public one.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is judged by itself.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if (inner := ip.ipv4_mapped or ip.sixtofour) is not None:
            return refusal(str(inner))
        if ip in NAT64:
            return refusal(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip in METADATA:
        return f"{ip} is a metadata service"
    kind = next((name.replace("_", "-") for name in KINDS if getattr(ip, f"is_{name}")), None)
    kind = kind or next((name for network, name in SPECIAL.items() if ip in network), None)
    if kind is None and not ip.is_global:
        kind = "not public"
    return f"{ip} is {kind}" if kind else None


class _Resolver(AbstractResolver):
    """Names -> addresses that may be spoken to.

    In threads of its own: the event loop's few would all wait for the names of dead hosts while others starve.
    """

    def __init__(self, spec: DownloadSpec, network: Network) -> None:
        self._getaddrinfo, self._allow_private = network.getaddrinfo, spec.allow_private_hosts
        self._threads = ThreadPoolExecutor(spec.concurrency, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host; AddressRefusedError where it has none that may be spoken to."""
        ask = functools.partial(self._getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        refused = [None if self._allow_private else refusal(address[0]) for *_, address in found]
        if found and all(refused):
            raise AddressRefusedError(refused[0])
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address[0], port=address[1], family=kind, proto=proto, flags=flags)
            for (kind, _, proto, _, address), why in zip(found, refused, strict=True)
            if why is None
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def open_session(spec: DownloadSpec, network: Network) -> tuple[aiohttp.ClientSession, AbstractResolver]:
    """A session that speaks to no refused address, and its resolver, to be closed after it.

    It sets no limits: a request that waited here would already hold its turn.
    """

    def open_checked(info: AddressInfo) -> socket.socket:
        if not spec.allow_private_hosts and (why := refusal(str(info[4][0]))):
            raise AddressRefusedError(why)
        return network.open_socket(info)

    resolver = _Resolver(spec, network)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=resolver, socket_factory=open_checked, limit=0),
        # pictures are compressed already; a server that does it all the same is understood
        headers={"User-Agent": spec.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(
            total=spec.total_timeout, connect=spec.connect_timeout, sock_read=spec.read_timeout
        ),
    )
    return session, resolver


# Requests and answers --------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """Outcome of one request."""

    status: int | None
    outcome: bytes | URL | Failure
    """A body, the target of a redirect, or why there is neither."""
    retry_after: float | None = None
    """Seconds that a 429 or 503 asks to wait, where it says so."""
    cookies: Mapping[str, str] = {}
    """Cookies that a redirect sets, for what its host is asked next on the way."""


def checked_url(text: str, base: URL | None = None) -> URL | Failure:
    """A URL that may be asked for, without its fragment; `base` is the one whose redirect says `text`.

    One with a user name or password is refused: it would end up in reports.
    """
    text = text.strip()
    if len(text) > MAX_URL:
        return Failure(f"invalid URL: longer than {MAX_URL:,} characters")
    if not text.isprintable():
        return Failure("invalid URL: it holds characters that are not printable")
    try:
        # a URL that is ready for the wire stays as it is to the letter: some are signed; others are quoted
        url = URL(text, encoded=WIRE_READY.fullmatch(text) is not None)
        url = url if base is None else base.join(url)
        if not url.scheme:
            return Failure("invalid URL: it does not begin with http:// or https://")
        if url.scheme not in ("http", "https"):
            return Failure(f"scheme refused: {url.scheme} is not http or https")
        if not url.host:
            return Failure("invalid URL: it names no host")
        if url.raw_user is not None or url.raw_password is not None:
            return Failure("credentials refused: take the user name and password out of the URL")
        if not url.port:
            return Failure("invalid URL: there is no port 0")
    except ValueError as error:
        return Failure(f"invalid URL: {_plain(error)}")
    return url.with_fragment(None) if url.raw_fragment else url


async def ask(
    session: aiohttp.ClientSession, url: URL, spec: DownloadSpec, cookies: Mapping[str, str] | None = None
) -> Answer:
    """Send one request, follow no redirect, and read what comes, unless it is too large or takes too long.

    Never raises: what a server or the way to it does wrong is a Failure.
    """
    status = None
    too_large = Failure(f"too large: more than {spec.max_bytes / 2**20:.3g} MB")
    try:
        async with session.get(url, allow_redirects=False, cookies=cookies) as response:
            status = response.status
            if (decided := _from_headers(url, response, spec)) is not None:
                return decided
            if (response.content_length or 0) > spec.max_bytes:
                return Answer(status, too_large)
            chunks, size = [], 0
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > spec.max_bytes:
                    return Answer(status, too_large._replace(counts=True))
                chunks.append(chunk)
            return Answer(status, b"".join(chunks) or Failure("empty: 0 bytes"))
    except Exception as error:
        return Answer(status, _explained(error, spec))


def _from_headers(url: URL, response: aiohttp.ClientResponse, spec: DownloadSpec) -> Answer | None:
    """The answer where its head decides; leaving the response with bytes unread closes its connection."""
    status, headers = response.status, response.headers
    if spec.obey_noai and (status == 200 or status in REDIRECTS):
        name = spec.user_agent.partition("/")[0].strip()
        if directive := forbidding_directive(headers.getall("X-Robots-Tag", ()), name):
            return Answer(status, Failure(f"noai: X-Robots-Tag says {directive}"))
    if status in REDIRECTS and (target := headers.get("Location")):
        return Answer(status, checked_url(target, url), cookies={m.key: m.value for m in response.cookies.values()})
    if status == 200:
        return None
    failure = Failure(f"HTTP {status}", again=status in TRANSIENT, counts=status in SLOW_DOWN)
    return Answer(status, failure, retry_after(headers.get("Retry-After"), time.time()))


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


def _explained(error: Exception, spec: DownloadSpec) -> Failure:
    """Explain an exception of a request; what may pass counts against the host."""
    match error:
        case aiohttp.ClientConnectorError():
            return _unconnected(error)
        case aiohttp.ConnectionTimeoutError():
            return Failure(f"timed out: no connection within {spec.connect_timeout:g} s", True, True)
        case aiohttp.SocketTimeoutError():
            return Failure(f"timed out: no byte for {spec.read_timeout:g} s", True, True)
        case TimeoutError():
            return Failure(f"timed out: not complete after {spec.total_timeout:g} s", counts=True)
        case aiohttp.ClientConnectionError():
            return Failure(f"connection failed: {_plain(error)}", True, True)
        case aiohttp.ClientPayloadError() if "content-encoding" in str(error):
            return Failure(f"broken answer: {_plain(error)}")
        case aiohttp.ClientPayloadError():
            return Failure("cut short: fewer bytes came than were announced", True, True)
        case aiohttp.ClientResponseError():
            return Failure(f"broken answer: {_plain(error.message)}")
        case ValueError():  # aiohttp's InvalidURL, and names that cannot be written for DNS
            return Failure(f"invalid URL: {_plain(error)}")
        case _:
            return Failure(f"cannot be fetched: {type(error).__name__} {_plain(error)}")


def _unconnected(error: aiohttp.ClientConnectorError) -> Failure:
    cause = error.os_error
    if isinstance(cause, AddressRefusedError):
        with suppress(OSError):  # what inet_aton takes, such as 0x7f.1, names nothing
            if ":" in error.host or socket.inet_aton(error.host):
                return Failure(f"address refused: {_plain(cause)}")
        # counted as a name that is none: strangers who ask a server must not learn which internal names exist
        return Failure(f"host not found: {_plain(error.host)} at a public address: {_plain(cause)}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(f"TLS failed: {_plain(getattr(cause, 'verify_message', '') or error.certificate_error)}")
    if isinstance(error, aiohttp.ClientSSLError):
        return Failure(f"TLS failed: {_plain(getattr(cause, 'reason', None) or cause)}", counts=True)
    if isinstance(cause, socket.gaierror) and cause.errno in UNKNOWN_NAME:
        return Failure(f"host not found: {_plain(error.host)}")
    return Failure(f"connection failed: {_plain(cause.strerror or cause)}", True, True)


def _plain(text: object) -> str:
    """One short printable line: what stands here may be a server's own words."""
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    return line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 1] + "…"
