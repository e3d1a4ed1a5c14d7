"""What a caller decides about downloading.

    DownloadSpec(per_host=4, per_host_rate=5, obey_noai=False)

What nobody decides: TLS certificates are verified; no cookie is kept; proxies and credentials in the environment
(`HTTPS_PROXY`, `.netrc`) are not used, because what stands behind a proxy cannot be checked from here; a URL with a
user name or password in it is refused, because it would end up in reports.
"""

from pydantic import Field

from catalens import __version__
from catalens.config import Frozen


class DownloadSpec(Frozen):
    """How pictures are asked for."""

    concurrency: int = Field(default=64, ge=1, le=4096)
    """Requests at a time, to all hosts together."""
    per_host: int = Field(default=16, ge=1, le=4096)
    """Requests at a time to one host and port; never more than are left to all others."""
    per_host_rate: float = Field(default=50.0, ge=0.5, le=1e6)
    """Most requests a second to one host; a host that answers 429 or 503 is asked more slowly until it recovers."""
    connect_timeout: float = Field(default=10.0, gt=0, le=3600)
    """Seconds until a connection stands: name, TCP and TLS."""
    read_timeout: float = Field(default=20.0, gt=0, le=3600)
    """Longest silence of a server, in seconds, before its answer and within it."""
    least_rate: float = Field(default=1000.0, ge=0, le=1e9)
    """Fewest bytes a second of a body, counted over each `read_timeout`; what comes slower is not waited for."""
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
    """Who asks: sent with every request, and the name by which X-Robots-Tag can address us."""
