"""Ports for servers that are started as programs of their own."""

import contextlib
import random
import socket

# Below those that systems hand out to whoever connects somewhere (Linux: 32,768 and up, else 49,152): such a port can
# be taken again between its being found free and the server's start, seconds later.
_PORTS = range(10_000, 30_000)


def free_ports(count):
    """Different ports of this machine that nobody listens at; drawn at random, for others look for some too."""
    found = []
    while len(found) < count:
        port = random.SystemRandom().choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found
