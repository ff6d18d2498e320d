"""`python -m labstack.training.cli`: what a person or the training container asks of training."""

import sys
from typing import TYPE_CHECKING

import click

from labstack import logs, registry, settings
from labstack.errors import LabError
from labstack.store import datasets
from labstack.store.database import connect, migrate
from labstack.training import config

if TYPE_CHECKING:
    from labstack.training.train import Outcome


@click.group()
def main() -> None:
    """Train models and see what became of them."""


@main.command("train")
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...")
@click.option("--if-missing", is_flag=True, help="Only the pipelines whose model has no production version.")
def train_command(pipelines: tuple[str, ...], if_missing: bool) -> None:
    """Train pipelines, register the new versions and promote those that are the first or better.

    A PIPELINE is a name in src/pipelines or the path of a YAML file; without one, all in src/pipelines.
    """
    configured = settings.load()
    logs.configure(configured.log_level, sys.stderr)
    model = "models"
    try:
        chosen = [config.read(name) for name in pipelines or config.names()]
        engine = connect(configured.lab_database_url)
        migrate(engine)
        for _ in datasets.load_bundled(engine):
            pass
        client = registry.connect(configured.mlflow_tracking_uri, timeout_seconds=60, retries=2)
        for pipeline in chosen:
            model = pipeline.model
            production = registry.roles(client, pipeline.model).production
            if if_missing and production is not None:
                click.echo(f"{pipeline.model} version {production} is production")
                continue
            from labstack.training.train import train  # seconds of imports, which nothing above needs

            click.echo(_sentence(train(pipeline, client, engine), pipeline.metric))
    except (LabError, OSError) as error:
        sys.exit(f"Training of {model} stopped: {error}")


def _sentence(outcome: "Outcome", metric: str) -> str:
    became = "is production" if outcome.promoted else "was not promoted"
    return (
        f"{outcome.model} version {outcome.version} {became}: {metric} {outcome.metrics[metric]:.4f} ({outcome.reason})"
    )


if __name__ == "__main__":
    main()
