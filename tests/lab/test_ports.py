"""The owner of a port is named by its process."""

import os
import socket
import sys

import pytest

from labstack.lab import ports
from tests.conftest import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems show no owner")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listening_process_is_named(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as listener:
        owner = ports.owner(listener.getsockname()[1])
    assert owner is not None
    assert owner.pid == os.getpid()
    assert str(owner).endswith(f" (process {os.getpid()})")


def test_a_free_port_has_no_owner_nor_has_one_that_is_only_connected_to() -> None:
    assert ports.owner(free_port()) is None
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert ports.owner(client.getsockname()[1]) is None


def test_the_message_names_the_owner_and_the_setting() -> None:
    assert ports.conflict(5002, "api", ports.Owner(7, "nc -l"), "API_PORT") == (
        "Port 5002, which api needs, is taken by 'nc -l' (process 7). "
        "Stop it, or choose another port: API_PORT=<port> in .env."
    )
    assert str(ports.Owner(None)) == "a process of another user"
