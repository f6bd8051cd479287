"""Which hosts are this computer, and which names the server answers to."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit


def local(host: str) -> bool:
    """Whether a host name or address means this computer and nothing else."""
    found = _address(host)
    return found.is_loopback if found else host == "localhost"


def answers(host_header: str, served: str, names: Collection[str]) -> bool:
    """Whether a request with this Host is for the server that listens on `served`, or that is called by one of `names`.

    A web page elsewhere can have a name of its own point at this computer, but not an address. So a server of every address (0.0.0.0
    or ::) answers to any address, and a server of this computer alone to all of its loopback addresses.
    """
    try:
        host = urlsplit(f"//{host_header}").hostname or ""
    except ValueError:
        return False
    if host in names or host == served.lower():
        return True
    here = _address(served)
    if here and here.is_unspecified:
        return local(host) or _address(host) is not None
    return local(served) and local(host)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
