"""Serving an application by waitress: on one address, within bounds, until Ctrl-C."""
import errno
import logging
import signal
import socket
import time
from typing import TYPE_CHECKING

from dolg.core.logging import say
from dolg.errors import UserError
from dolg.serve.guards import is_loopback

if TYPE_CHECKING:
    from flask import Flask

# One searches, and two wait; the others show images
_THREADS = 7
_CONNECTIONS = 64
_HEADER_BYTES = 16 << 10
# Seconds without a byte, and between two looks at who is slow
_SILENCE, _LOOK = 15, 2


def serve(app: "Flask", host: str, port: int, max_bytes: int, deadline: float = 60.0) -> None:
    """Serve until Ctrl-C or SIGTERM; says the address when it is ready.

    port: 0: any that is free. max_bytes: of a request's body, with what is around its chunks, if it has
    any; larger ones are refused before they are read. deadline: seconds that a request may take to
    arrive, its last byte included.
    Raises UserError where the address cannot be had, or waitress is not installed.
    """
    listening = _listen(host, port)
    server = _bounded_server(app, listening, max_bytes, deadline)
    if not is_loopback(host):
        say(f"WARNING: {host} can be reached from other machines: whoever reaches it sees the "
            "database's images, and may use this machine's time; there is no password")
    shown, number = listening.getsockname()[:2]
    shown = f"[{shown}]" if ":" in shown else shown
    say(f"ready: http://{shown}:{number}/ (Ctrl-C ends it)")
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run()        # returns after Ctrl-C, when what is being answered is answered
    finally:
        signal.signal(signal.SIGTERM, previous)
        server.close()
    say("ended")


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}: give 0 (any that is free) to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # Now: else another might have the port meanwhile
        listening.listen(_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken: give another --port, or 0 for any that is "
                            "free") from None
        raise UserError(f"cannot serve on {host} port {port}: {error.strerror or error}") from None
    return listening


def _bounded_server(app: "Flask", listening: socket.socket, max_bytes: int, deadline: float):
    try:
        import waitress.channel
        import waitress.server
    except ImportError:
        raise UserError("the page needs waitress: pip install flask waitress") from None
    logging.getLogger("waitress").setLevel(logging.ERROR)       # else it tells of each one that waits

    class Channel(waitress.channel.HTTPChannel):
        """A connection that knows when the request it reads has begun."""

        began = 0.0

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self.began = time.time()
            return super().received(data)

    class Server(waitress.server.TcpWSGIServer):
        """Closes connections whose request is late; waitress does it to silent ones alone."""

        channel_class = Channel

        def maintenance(self, now: float) -> None:
            super().maintenance(now)
            for channel in list(self.active_channels.values()):
                if channel.request is not None and not channel.requests and channel.began < now - deadline:
                    channel.will_close = True

    sockets = {"sockets": [listening], "ident": None, "threads": _THREADS, "connection_limit": _CONNECTIONS,
               "max_request_body_size": max_bytes + 1, "max_request_header_size": _HEADER_BYTES,
               "channel_timeout": _SILENCE, "cleanup_interval": _LOOK, "expose_tracebacks": False}
    adjustments = waitress.server.Adjustments(**sockets)
    return Server(app, _sock=listening, adj=adjustments, bind_socket=False,
                  sockinfo=(listening.family, listening.type, None, listening.getsockname()))
