"""Which requests are answered: those of this page and of programs on this machine, not of other pages.

A page of another site may send requests to 127.0.0.1 (Origin and Sec-Fetch-Site tell it), and a name of its
own may lead there (DNS rebinding; the Host header tells it).
"""
import ipaddress
import re
import socket
from collections.abc import Mapping

# Nothing but what the page brings along; images of the photograph that was chosen are blobs
CONTENT_SECURITY_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                           "img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
                           "frame-ancestors 'none'")
HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
           "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY"}
# RFC 9110, section 7.2, without what no browser sends: [ADDRESS]:PORT or NAME:PORT, ports as they may be
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{1,5}))?",
                   re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own for itself alone."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def host_is_ours(header: str, host: str) -> bool:
    """Whether a Host header names the address that is served.

    On a loopback address only "localhost" and loopback addresses do. Else any address in numbers does,
    which no name server can turn elsewhere, and the names `host` and of this machine. A port is not
    looked at: it may be another end of a tunnel.
    """
    name = _host_name(header)
    if name is None:
        return False
    if is_loopback(name):
        return True
    if is_loopback(host):
        return False
    return _address(name) is not None or name in (host.lower(), socket.gethostname().lower())


def is_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site made a request. Programs say nothing."""
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None and site not in ("same-origin", "none"):
        return True
    host = headers.get("Host", "")      # https: where a tunnel ends in a proxy
    return origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())


def _host_name(header: str) -> str | None:
    """The name or address in a Host header, without brackets, a port and the one dot that may end a name;
    None where it is not exactly such a header."""
    parts = _HOST.fullmatch(header)
    if not parts or int(parts["port"] or 0) >= 1 << 16:
        return None
    if parts["address"] is None:
        return parts["name"].lower().removesuffix(".")
    return parts["address"] if isinstance(_address(parts["address"]), ipaddress.IPv6Address) else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
