"""What counts as this computer."""

import ipaddress


def local(host: str) -> bool:
    """Whether a host name or address means this computer and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
