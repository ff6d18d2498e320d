"""`python -m labstack.store`: migrate the database and load the bundled datasets."""

import sys

from labstack import settings
from labstack.errors import LabError
from labstack.store import datasets
from labstack.store.database import connect, migrate


def main() -> None:
    try:
        engine = connect(settings.load().lab_database_url)
        migrate(engine)
        print(", ".join(f"{name} {rows} rows" for name, rows in datasets.load_bundled(engine)))  # noqa: T201
    except (LabError, OSError) as error:
        sys.exit(f"The database could not be prepared: {error}")


if __name__ == "__main__":
    main()
