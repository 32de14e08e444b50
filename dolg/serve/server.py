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

# What the environment of a request says: the seconds that it waited for its turn
WAITED = "dolg.waited"
# Besides the one that answers requests which take turns; the others show images
_THREADS = 4
_CONNECTIONS, _BACKLOG = 256, 1024
# Connections from which on clients that keep the server waiting are closed early
_CROWDED = 160
_HEADER_BYTES = 16 << 10
# A client that the server waits for has so many seconds, or so many in a crowd, and one more for each
# _RATE bytes that came or went meanwhile
_GRACE, _GRACE_IN_A_CROWD, _RATE = 5.0, 1.0, 16 << 10
# Seconds that a connection between two requests is kept
_IDLE = 15


def serve(app: "Flask", host: str, port: int, max_bytes: int, in_turn: str = "",
          deadline: float = 60.0) -> None:
    """Serve until Ctrl-C or SIGTERM; says the address when it is ready.

    port: 0: any that is free. max_bytes: of a request's body, with what is around its chunks, if it has
    any; larger ones are refused before they are read. in_turn: the path whose requests are answered one
    after another, in the order in which they arrived, by one thread; the application finds in WAITED how
    long each has waited. deadline: seconds that a request may take to arrive, its last byte included.
    Raises UserError where the address cannot be had, or waitress is not installed.
    """
    listening = _listen(host, port)
    server = _bounded_server(app, listening, max_bytes, in_turn, deadline)
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
        listening.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken: give another --port, or 0 for any that is "
                            "free") from None
        raise UserError(f"cannot serve on {host} port {port}: {error.strerror or error}") from None
    return listening


def _bounded_server(app: "Flask", listening: socket.socket, max_bytes: int, in_turn: str, deadline: float):
    try:
        import waitress.channel
        import waitress.server
        import waitress.task
    except ImportError:
        raise UserError("the page needs waitress: pip install flask waitress") from None
    logging.getLogger("waitress").setLevel(logging.ERROR)       # else it tells of each one that waits

    class Task(waitress.task.WSGITask):
        """A request that knows how long it waited."""

        def get_environment(self) -> dict:
            return {**super().get_environment(), WAITED: time.time() - self.channel.since}

    class Channel(waitress.channel.HTTPChannel):
        """A connection that knows since when it waits, for its client or its turn, and how many bytes were
        moved meanwhile."""

        task_class = Task
        since, moved = 0.0, 0

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self.wait()
            self.moved += len(data)
            return super().received(data)

        def send(self, data: bytes, do_close: bool = True) -> int:
            sent = super().send(data, do_close)
            self.moved += sent
            return sent

        def service(self) -> None:
            super().service()
            self.wait()     # for the client to take the answer

        def wait(self) -> None:
            self.since, self.moved = time.time(), 0

        def is_late(self, now: float, crowded: bool) -> bool:
            """Whether the client has kept the server waiting for too long."""
            if self.requests:       # it is the client that waits
                return False
            waits, grace = now - (self.since or self.creation_time), _GRACE_IN_A_CROWD if crowded else _GRACE
            if self.request is None and not self.total_outbufs_len:
                return waits > (grace if crowded else _IDLE)
            return waits > min(deadline, grace + self.moved / _RATE)

    class Server(waitress.server.TcpWSGIServer):
        """Closes the connections of late clients, where waitress closes those of silent ones alone."""

        channel_class = Channel

        def __init__(self, *args, **kwargs):
            self.turns = waitress.task.ThreadedTaskDispatcher()
            self.turns.set_thread_count(1)
            super().__init__(*args, **kwargs)

        def add_task(self, channel: Channel) -> None:
            channel.wait()
            takes_turns = getattr(channel.requests[0], "path", None) == in_turn     # broken ones have none
            (self.turns if takes_turns else self.task_dispatcher).add_task(channel)

        def maintenance(self, now: float) -> None:
            crowded = len(self.active_channels) >= _CROWDED
            for channel in list(self.active_channels.values()):
                if channel.is_late(now, crowded):
                    channel.will_close = True

        def run(self) -> None:
            super().run()
            self.turns.shutdown()

    adjustments = waitress.server.Adjustments(
        sockets=[listening], ident=None, threads=_THREADS, connection_limit=_CONNECTIONS, backlog=_BACKLOG,
        max_request_body_size=max_bytes + 1, max_request_header_size=_HEADER_BYTES, cleanup_interval=1,
        asyncore_use_poll=True, expose_tracebacks=False)
    return Server(app, _sock=listening, adj=adjustments, bind_socket=False,
                  sockinfo=(listening.family, listening.type, None, listening.getsockname()))
