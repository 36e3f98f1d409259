"""IPv4 and IPv6: the sockets that listen on a host's addresses, and by which of its addresses a task is known."""

from __future__ import annotations

import ipaddress
import socket

from emberpool_proxy.settings import EVERY_ADDRESS

BACKLOG = 128
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 (compared; what is listened on is the settings')


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`; on EVERY_ADDRESS by IPv6 too where there is any. Raises OSError."""
    if host != EVERY_ADDRESS:
        return socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    if not has_ipv6():
        return socket.create_server((ANY_IPV4, port), backlog=BACKLOG)
    return socket.create_server((ANY_IPV6, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)


def check_is_free(host: str, port: int) -> None:
    """Raise OSError when somebody listens on the port already."""
    hosts = (host,) if host != EVERY_ADDRESS else (ANY_IPV4, *((ANY_IPV6,) if has_ipv6() else ()))
    for each in hosts:
        family = _family(each)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as PgBouncer does
            probe.bind((each, port))


def families_of(host: str) -> tuple[socket.AddressFamily, ...] | None:
    """Return the kinds of addresses that a listener on `host` has, None for one address or name."""
    return {
        ANY_IPV4: (socket.AF_INET,),
        ANY_IPV6: (socket.AF_INET6,),
        EVERY_ADDRESS: (socket.AF_INET, socket.AF_INET6),
    }.get(host)


def as_known(address: str) -> str:
    """Return the address of somebody who connected; by IPv4 to a socket for both, it has an IPv6 form."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def is_of_other_family(address: str, own: str) -> bool:
    """Whether one is an IPv4 address and the other an IPv6 address; a name is of neither kind."""
    try:
        return ipaddress.ip_address(address).version != ipaddress.ip_address(own).version
    except ValueError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def has_ipv6() -> bool:
    """Whether one socket can listen on addresses of both kinds: in some containers IPv6 is switched off."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((ANY_IPV6, 0))
    except OSError:
        return False
    return True
