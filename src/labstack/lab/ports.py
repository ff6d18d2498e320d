"""The owner of a port of this machine, as Linux shows it in /proc; other systems name none."""

from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"  # the state of a listening socket in /proc/net/tcp


@dataclass(frozen=True)
class Owner:
    """The process that listens on a port; its id is None when it belongs to another user."""

    pid: int | None
    command: str = ""

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"{self.command!r} (process {self.pid})"


def owner(port: int) -> Owner | None:
    """Return who listens on a port; None when the port is free."""
    sockets = _listening(port)
    if not sockets:
        return None
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) not in sockets:
                continue
            command = Path("/proc", descriptor.parts[2], "cmdline").read_text(errors="replace")
        except OSError:
            continue  # another user's process, or one that has just ended
        return Owner(int(descriptor.parts[2]), command.replace("\0", " ").strip()[:120])
    return Owner(None)


def conflict(port: int, service: str, owner: object, setting: str) -> str:
    """Return that a service's port is taken, by whom, and what to do."""
    return (
        f"Port {port}, which {service} needs, is taken by {owner}. "
        f"Stop it, or choose another port: {setting}=<port> in .env."
    )


def _listening(port: int) -> set[str]:
    """Return the sockets that listen on a port, as links to descriptors name them."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in map(str.split, lines):
            address, state, inode = fields[1], fields[3], fields[9]
            if state == LISTENING and int(address.rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{inode}]")
    return sockets
