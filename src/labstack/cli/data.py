"""Commands on datasets: load, list, describe, export."""

from pathlib import Path

import click

from labstack.cli.base import Commands, Lab, exit_on_error, json_option, print_rows


@click.group(cls=Commands)
def data() -> None:
    """Manage the datasets that pipelines train on."""


@data.command("load")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="The dataset's name; by default the file's.")
@click.option("--append", is_flag=True, help="Append to an existing dataset with the same columns.")
@click.pass_obj
def data_load(lab: Lab, file: Path, name: str | None, append: bool) -> None:
    """Load a CSV FILE as a dataset. Lines that start with # before the header are its description."""
    from labstack.store import datasets

    with exit_on_error():
        rows = datasets.load_csv(lab.engine, file, name or file.stem, append)
        dataset = datasets.summary(lab.engine, name or file.stem)
    click.echo(f"{dataset.name}: {rows:,} rows loaded, {dataset.rows:,} in all, {len(dataset.columns)} columns")


@data.command("list")
@json_option
@click.pass_obj
def data_list(lab: Lab, as_json: bool) -> None:
    """List the datasets."""
    from labstack.store import datasets

    with exit_on_error():
        summaries = datasets.summaries(lab.engine)
    rows = [
        {
            "dataset": summary.name,
            "rows": summary.rows,
            "columns": len(summary.columns),
            "changed": summary.changed_at.isoformat(timespec="seconds"),
            "description": summary.description,
        }
        for summary in summaries
    ]
    print_rows(rows, as_json, "There is no dataset yet. Load one: labstack data load table.csv")


@data.command("describe")
@click.argument("name")
@json_option
@click.pass_obj
def data_describe(lab: Lab, name: str, as_json: bool) -> None:
    """Describe the columns of a dataset."""
    from labstack.store import datasets
    from labstack.training import draft

    with exit_on_error():
        rows = draft.describe(datasets.read(lab.engine, name))
    print_rows(rows, as_json)


@data.command("export")
@click.argument("name")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, instead of standard output.")
@click.pass_obj
def data_export(lab: Lab, name: str, output: Path | None) -> None:
    """Write a dataset as CSV with a header, without its description."""
    from labstack.store import datasets

    with exit_on_error():
        lines = datasets.csv_lines(lab.engine, name)
        if output is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        part = output.with_name(f"{output.name}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        part.replace(output)
