"""What went wrong, in words that can be counted.

    ClientConnectorError(AddressRefusedError("127.0.0.1 is loopback")) -> "address refused: 127.0.0.1 is loopback"
    SocketTimeoutError()                                               -> "timed out: no byte for 20 s"

What stands before the first colon is stable, and summaries count by it:

    invalid URL, scheme refused, credentials refused    the URL itself
    address refused, host not found, TLS failed         the way there
    connection failed, timed out, host given up         a later run may do better
    HTTP 404, HTTP 429, ...                             a status that is not 200
    redirect loop, too many redirects, noai             what the answer says
    too large, cut short, empty, broken answer          the body
    cannot be fetched                                   anything else
"""

import re
import socket
from typing import NamedTuple

import aiohttp
from yarl import URL

from catalens.preparing.downloading.network import AddressRefusedError, NameRefusedError
from catalens.preparing.downloading.settings import DownloadSpec

LONGEST_URL = 8192  # RFC 9110, section 4.1, asks for at least 8,000
LONGEST_DETAIL = 160
READY = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")  # RFC 3986, section 2
UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Failure(NamedTuple):
    """Why there is no body."""

    reason: str
    """`stable words: details`, one line."""
    retryable: bool = False
    """Whether a later run may do better."""
    again: bool = False
    """Whether asking again at once may do better."""
    counts: bool = False
    """Whether it counts against the hosts asked: after many in a row they are given up."""


def checked_url(text: str, base: URL | None = None) -> URL | Failure:
    """A URL that may be asked for, without its fragment; `base` is the one whose redirect says `text`."""
    text = text.strip()
    if len(text) > LONGEST_URL:
        return Failure(f"invalid URL: longer than {LONGEST_URL:,} characters")
    if not text.isprintable():
        return Failure("invalid URL: it holds characters that are not printable")
    try:
        # A URL that is ready for the wire stays as it is to the letter: some are signed. Others are quoted.
        url = URL(text, encoded=READY.fullmatch(text) is not None)
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


def explained(error: Exception, spec: DownloadSpec) -> Failure:
    """What an exception of a request means; what may pass counts against the host."""
    failure = _explained(error, spec)
    return failure._replace(counts=failure.retryable)


def _explained(error: Exception, spec: DownloadSpec) -> Failure:
    """One case a kind of exception: aiohttp and what is below it raise many."""
    match error:
        case aiohttp.ClientConnectorError():
            return _unconnected(error)
        case aiohttp.ConnectionTimeoutError():
            return Failure(f"timed out: no connection within {spec.connect_timeout:g} s", True, True)
        case aiohttp.SocketTimeoutError():
            return Failure(f"timed out: no byte for {spec.read_timeout:g} s", True, True)
        case TimeoutError():
            return Failure(f"timed out: not complete after {spec.total_timeout:g} s", True)
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
    if isinstance(cause, NameRefusedError):
        # Counted as a name that is none: strangers who ask a server must not learn which internal names exist.
        return Failure(f"host not found: {_plain(error.host)} at a public address: {_plain(cause)}")
    if isinstance(cause, AddressRefusedError):
        return Failure(f"address refused: {_plain(cause)}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(f"TLS failed: {_plain(getattr(cause, 'verify_message', '') or error.certificate_error)}")
    if isinstance(error, aiohttp.ClientSSLError):
        return Failure(f"TLS failed: {_plain(getattr(cause, 'reason', None) or cause)}", True)
    if isinstance(cause, socket.gaierror) and cause.errno in UNKNOWN_NAME:
        return Failure(f"host not found: {_plain(error.host)}")
    return Failure(f"connection failed: {_plain(cause.strerror or cause)}", True, True)


def _plain(text: object) -> str:
    """One short printable line: what stands here may be a server's own words."""
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    return line if len(line) <= LONGEST_DETAIL else line[: LONGEST_DETAIL - 1] + "…"
