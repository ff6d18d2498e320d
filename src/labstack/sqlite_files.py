"""The files of SQLite databases, which users of one group share in containers."""

from pathlib import Path

from sqlalchemy import URL


def prepare(url: URL) -> None:
    """Make the file of an SQLite database and its folder, unless they exist; other databases are left alone.

    The file gets the umask's mode, which SQLite also gives to its log (`-wal`, `-shm`). A file that SQLite makes
    itself is never writable for the group. Raises OSError.
    """
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
