"""Make the notebooks: NN_name.py -> NN_name.ipynb, executed, with its outputs and pictures.

    pip install -e ".[tutorials,weights]"
    python tutorials/build.py          # all
    python tutorials/build.py 03 05    # some

The .py file is the source: edit that one, run it, then make its notebook again.
"""

import sys
from pathlib import Path

try:
    import jupytext
    import nbformat
    from nbclient import NotebookClient
except ImportError as error:
    sys.exit(f'{error}: pip install -e ".[tutorials,weights]"')

FOLDER = Path(__file__).parent


def build(source: Path) -> Path:
    """The executed notebook beside its source; raises CellExecutionError where a cell fails."""
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else drawn at random: every build would differ everywhere
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,  # else outputs are cut where the clock happens to cut them
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # not the version that ran it
    target = source.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


if __name__ == "__main__":
    chosen = tuple(sys.argv[1:] or [""])
    sources = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    for number in chosen:
        if not any(source.name.startswith(number) for source in sources):
            sys.exit(f"no tutorial begins with {number!r}; expected numbers such as 03")
    for source in sources:
        if source.name.startswith(chosen):
            print(f"{source.name} ...", end=" ", flush=True)
            print(build(source).name)
