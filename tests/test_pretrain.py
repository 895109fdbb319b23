"""`styledrop pretrain`: the three models of a base, trained by command from a tiny corpus, each on top of the last."""

import functools
from pathlib import Path

import emoji_packages
import numpy as np
import pytest
import tiny

from styledrop_jax import checkpoint, hub
from styledrop_jax.backbones import muse
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.run import read_json

TASKS = ("vq", "clip", "muse")
SMALL = {"batch_size": 2, "warmup": 1, "checkpoint_every": 2}


def _arguments(task: str, workdir: Path, **changed: object) -> list[object]:
    settings = SMALL | {"corpus": emoji_packages.built(), "steps": 2}
    if task == "muse":
        settings |= {"pack": 200, "codec": _trained("vq") / "export/vqvae", "clip": _trained("clip") / "export/clip"}
    words = [word for name, value in (settings | changed).items() for word in (f"--config.{name}", value)]
    return ["pretrain", "--config", tiny.ROOT / f"configs/pretrain_{task}.py", "--workdir", workdir, *words]


@functools.cache
def _trained(task: str) -> Path:
    """The training folder of a model that was trained for two steps; never changed."""
    workdir = tiny.home() / f"pretrained_{task}"
    assert tiny.styledrop(*_arguments(task, workdir)) == 0
    return workdir


@pytest.mark.parametrize("task", TASKS)
def test_training_leaves_a_model_and_a_picture(task):
    workdir = _trained(task)
    assert [path.name for path in (workdir / "pictures").iterdir()] == ["0000002.png"]
    rows = [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(rows) == 2


def test_the_exported_models_draw_and_score():
    base = muse.load(str(_trained("muse") / "export/muse"), np.float32)
    assert base.resolution == 64 and base.denoiser.config.sample_size == 16
    scorer = ClipScorer.load(_trained("clip") / "export/clip")
    assert np.isfinite(scorer.text_features(["a cat"])).all()
    known = read_json(_trained("muse") / "export/vocabulary.json")
    assert "cat" in known and "thing 3" not in known, "the starter vocabulary alone was taught"


def test_training_goes_on_from_exported_weights(tmp_path):
    init = _trained("muse") / "export/muse"
    assert tiny.styledrop(*_arguments("muse", tmp_path / "on", init=init, learning_rate=1e-9)) == 0
    before, after = (hub.read_config(p / "transformer") for p in (init, tmp_path / "on/export/muse"))
    assert before == after
    old, new = (muse.load_denoiser(p) for p in (init, tmp_path / "on/export/muse"))
    kernels = (m.transformer_layers[0].attn1.to_q.kernel[...] for m in (old, new))
    np.testing.assert_allclose(*kernels, atol=1e-3)


def test_a_killed_training_continues_to_the_same_bytes(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert tiny.styledrop(*_arguments("muse", whole, steps=4)) == 0

    class Killed(BaseException):
        pass

    save = checkpoint.Checkpoints.save

    def save_and_die(self, *args):
        save(self, *args)
        self.close()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            tiny.styledrop(*_arguments("muse", broken, steps=4))
    assert tiny.styledrop(*_arguments("muse", broken, steps=4)) == 0
    name = "export/muse/transformer/diffusion_pytorch_model.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus": "nowhere"}, "run launch/fetch_corpus.sh"),
        ({"codec": "nowhere"}, "nowhere"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"vocabulary": "startr"}, "did you mean 'starter'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
    ],
)
def test_what_is_missing_is_named_in_one_line(changed, said, tmp_path, capfd):
    assert tiny.styledrop(*_arguments("muse", tmp_path / "run", **changed)) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_the_config_is_required(tmp_path, capfd):
    assert tiny.styledrop("pretrain", "--workdir", tmp_path / "run") == 2
    assert "--config: missing" in capfd.readouterr().err
