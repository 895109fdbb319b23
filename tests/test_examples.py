"""The notebook, executed as a user would, with a run small enough for a test."""

import nbformat
import tiny
from nbclient import NotebookClient

NOTEBOOK = tiny.ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_runs_from_an_empty_folder(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    small = {
        "rounds": 1,
        "prompts": str(tiny.prompt_file()),
        "round_1.train.steps": 2,
        "round_1.sample.steps": 2,
        "round_1.sample.images_per_prompt": 1,
    }
    parameters.source += f"\noverrides = {small!r}"
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
    outputs = []
    for cell in notebook.cells:
        outputs += cell.get("outputs", [])
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 5
