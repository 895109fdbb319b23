"""Run folders as a studio finds them, written by hand, and a client that came by the link: what the
tests of the studio share.
"""

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from styledrop_jax.io.files import write_json, write_jsonl
from styledrop_jax.studio.folders import Studio
from styledrop_jax.studio.jobs import Jobs
from styledrop_jax.studio.server import make

HOST = "127.0.0.1"
PORT = 8765
HERE = f"http://{HOST}:{PORT}"
_HOME = tempfile.TemporaryDirectory(prefix="styledrop-studio-")  # lives as long as the session
PROMPTS = ("a cat", "a dog", "a red house")


class Open:
    """A studio on a folder, with a client behind its door.

    Args:
        root: the folder of runs.
        program: in place of `styledrop`, for its jobs: by default one that does nothing.
    """

    def __init__(self, root: Path, program: Sequence[str] = ("true",)):
        self.studio = Studio(root)
        self.jobs = Jobs(self.studio.state / "jobs", program)
        self.door = make(self.studio, self.jobs, host=HOST, port=PORT)
        self.client = TestClient(self.door, base_url=HERE, headers={"Origin": HERE})

    def __enter__(self):
        self.client.__enter__()
        assert self.client.get("/", params={"token": self.door.token}).status_code == 200
        return self

    def __exit__(self, *exception):
        self.client.__exit__(*exception)

    def get(self, path, **query):
        return self.client.get(path, params=query)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def upload(self, data: bytes):
        return self.client.post("/api/upload", content=data)


def png(path: Path, seed: int = 0, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def waiting(workdir: Path, *, each: int = 2, prompts=PROMPTS, side: int = 8) -> Path:
    """A run whose first round waits for a person."""
    shutil.copytree(_made(each, prompts, side), workdir)
    return workdir


@functools.cache
def _made(each: int, prompts: Sequence[str], side: int) -> Path:
    workdir = Path(tempfile.mkdtemp(dir=_HOME.name)) / "run"
    select = {"by": "human", "images_per_prompt": 0}
    sample = {"images_per_prompt": each, "lambda_a": 1.0, "lambda_b": 2.0, "steps": 20}
    stage = {"train": {"steps": 10}, "sample": sample, "select": select}
    config = {"base": "emoji128", "method": "styledrop", "rounds": 2, "round_1": stage}
    write_json(workdir / "config.json", config)
    given = {"file": "references/000.png", "content": "a key", "descriptor": "in ink style"}
    png(workdir / "references" / "000.png", side=side)
    write_json(workdir / "manifest.json", {"references": [given], "prompts": list(prompts)})
    write_jsonl(workdir / "metrics.jsonl", [{"stage": "round_1", "step": 10, "loss": 0.5}])
    samples(workdir / "base", prompts, 1, side)
    (workdir / "round_1").mkdir()
    (workdir / "round_1" / "adapter.safetensors").touch()
    samples(workdir / "round_1", prompts, each, side)
    write_json(workdir / "round_1" / "feedback" / "selected.json", {"how": "…", "selected": []})
    return workdir


def samples(folder: Path, prompts, each: int, side: int = 8):
    """Samples of a stage with their scores: the later an image of its prompt, the better."""
    rows = []
    for prompt, content in enumerate(prompts):
        for image in range(each):
            file = f"samples/p{prompt:03d}_i{image:03d}.png"
            png(folder / file, seed=prompt * each + image, side=side)
            value = (image + 1) / each + prompt / 100
            scores = {"clip_text": 0.3, "clip_style": value, "clip_content": 0.1}
            rows.append(
                {
                    "prompt": prompt,
                    "image": image,
                    "file": file,
                    "content": content,
                    "text": f"{content} in ink style",
                    "judged": content,
                    "seed": image,
                    "scores": scores,
                    "score": value,
                }
            )
    write_jsonl(folder / "scores.jsonl", rows)
