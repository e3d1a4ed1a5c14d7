"""Which addresses are spoken to.

    93.184.216.34     public: spoken to
    127.0.0.1         refused: it is loopback
    169.254.169.254   refused: it is a metadata service
    ::ffff:10.0.0.1   refused: 10.0.0.1 is private

A table must not make this machine ask its own network. A name is checked by the addresses that it resolves to, and
again at the moment of connecting, by the very address that the socket is given: an answer of DNS that changes in
between (rebinding) gains nothing. Sources: IANA's special-purpose address registries, through `ipaddress`.
"""

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from catalens.preparing.downloading.settings import DownloadSpec

METADATA = {ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "168.63.129.16")}
"""Services that tell a virtual machine its secrets: most clouds, AWS over IPv6, and Azure under a public address."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
SPECIAL = {
    ipaddress.ip_network(text): kind
    for text, kind in {
        "100.64.0.0/10": "shared by a provider's customers",
        "192.0.0.0/24": "reserved",
        "64:ff9b:1::/48": "private",
        "3fff::/20": "reserved",
        "5f00::/16": "reserved",
        "fec0::/10": "private",
    }.items()
}
"""Networks that `ipaddress` of Python 3.11 takes for public, or has no word for."""
KINDS = (
    ("is_unspecified", "unspecified"),
    ("is_loopback", "loopback"),
    ("is_link_local", "link-local"),
    ("is_multicast", "multicast"),
    ("is_reserved", "reserved"),
    ("is_private", "private"),
)
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""Family, type, protocol, canonical name and socket address, as `socket.getaddrinfo` gives them."""


class AddressRefusedError(OSError):
    """An address that is not spoken to; an OSError, so that it travels through aiohttp's connecting."""


class NameRefusedError(AddressRefusedError):
    """A name that leads to such addresses only."""


@dataclass(frozen=True)
class Network:
    """The ways out of this machine. Tests lead a name elsewhere by them; the checks stand between the two."""

    getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo
    """Resolves a name."""
    open_socket: Callable[[AddressInfo], socket.socket] = lambda info: socket.socket(*info[:3])
    """Makes the socket for an address that has been checked."""


def refusal(address: str) -> str | None:
    """Why an IP address is not spoken to, as `127.0.0.1 is loopback`; None for a public one.

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
    kind = next((name for attribute, name in KINDS if getattr(ip, attribute)), None)
    kind = kind or next((name for network, name in SPECIAL.items() if ip in network), None)
    if kind is None and not ip.is_global:
        kind = "not public"
    return f"{ip} is {kind}" if kind else None


def _is_number(host: str) -> bool:
    """Recognise an address in one of the old ways to write one, such as 0x7f.1, which names nothing."""
    try:
        return bool(socket.inet_aton(host))
    except OSError:
        return False


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
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        results, refused = [], None
        for kind, _, proto, _, address in found:
            why = None if self._allow_private else refusal(address[0])
            refused = refused or why
            if why is None:
                results.append(
                    ResolveResult(
                        hostname=host, host=address[0], port=address[1], family=kind, proto=proto, flags=flags
                    )
                )
        if refused and not results:
            raise (AddressRefusedError if _is_number(host) else NameRefusedError)(refused)
        return results

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def connector(spec: DownloadSpec, network: Network) -> tuple[TCPConnector, AbstractResolver]:
    """aiohttp's connector that speaks to no refused address, and its resolver, to be closed after it.

    The connector sets no limits: `pacing` does, and a request that waited here would already hold its turn.
    """

    def open_checked(info: AddressInfo) -> socket.socket:
        if not spec.allow_private_hosts and (why := refusal(str(info[4][0]))):
            raise AddressRefusedError(why)
        return network.open_socket(info)

    resolver = _Resolver(spec, network)
    return TCPConnector(resolver=resolver, socket_factory=open_checked, limit=0), resolver
