"""The files of SQLite databases, which in containers are shared by the users of one group."""

from pathlib import Path

from sqlalchemy import URL


def prepare(url: URL) -> None:
    """Make the file of an SQLite database and its folder, unless they exist; ignore other databases.

    The file gets the mode of the umask, and SQLite gives the same to its log (`-wal`, `-shm`). A file that SQLite
    itself makes is never writable for the group. Raises OSError.
    """
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
