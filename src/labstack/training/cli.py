"""`python -m labstack.training.cli`: what a person or the training container asks of training."""

import signal
import sys

import click

from labstack import logs, registry, settings
from labstack.errors import LabError
from labstack.mlflow_rest import MlflowRest
from labstack.store import datasets
from labstack.store.database import connect, migrate
from labstack.training import config


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
    # ended in the middle, it still closes its run and puts half-moved roles back
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Training was stopped."))
    configured = settings.load()
    logs.configure(configured.log_level, sys.stderr)
    model = ""
    try:
        chosen = [config.read(name) for name in pipelines or config.names()]
        engine = connect(configured.lab_database_url)
        migrate(engine)
        for _ in datasets.load_bundled(engine):
            pass
        client = MlflowRest(configured.mlflow_tracking_uri, timeout_seconds=20)
        registry.wait(client, configured.startup_timeout_seconds)
        for pipeline in chosen:
            model = f" of {pipeline.model}"
            production = registry.living_production(client, pipeline.model)
            if if_missing and production is not None:
                click.echo(f"{pipeline.model} version {production.number} is production")
                continue
            from labstack.training.train import train  # seconds of imports, which nothing above needs

            logs.configure(configured.log_level, sys.stderr)  # anew: MLflow brought handlers of its own
            outcome = train(pipeline, client, engine)
            became = "is production" if outcome.promoted else "was not promoted"
            click.echo(f"{outcome.model} version {outcome.version} {became}: {outcome.reason}")
    except (LabError, OSError) as error:
        sys.exit(f"Training{model} stopped: {error}")


if __name__ == "__main__":
    main(prog_name="labstack")
