"""Which requests are answered: those of this page and of programs on this machine, not of other pages.

A page of another site may send requests to 127.0.0.1 (Origin and Sec-Fetch-Site tell it), and a name of its
own may lead there (DNS rebinding; the Host header tells it).
"""
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

# Nothing but what the page brings along; images of the photograph that was chosen are blobs
CONTENT_SECURITY_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                           "img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
                           "frame-ancestors 'none'")
HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
           "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY"}


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
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("Host", "").lower()
    except ValueError:      # no address at all, so not this one
        return True


def _host_name(header: str) -> str | None:
    """The name in a Host header, without a port and the dot that may end it; None where it is no such
    header."""
    try:
        parts = urlsplit(f"//{header}")
        name = parts.hostname
        parts.port       # raises for what is no number
    except ValueError:
        return None
    if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return name.lower().removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
