"""`styledrop pretrain`: the models of both bases, trained by command from a tiny corpus, each on top of the last."""

import functools
from pathlib import Path

import emoji_packages
import numpy as np
import pytest
import tiny
from diffusers import DDIMScheduler
from safetensors.numpy import load_file

from styledrop_jax import guidance
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks import clip
from styledrop_jax.io import hub
from styledrop_jax.io.files import read_json
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pipelines import load, muse_files
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.training import checkpoint

SIZES = {
    "vq": {"width": 4},
    "clip": {"width": 32, "text_layers": 1, "vision_layers": 1, "seen": 0.5},
    "muse": {"width": 32, "layers": 1, "pack": 8},
    "vae": {"seed": 1, "width": 4},
    "unet": {"width": 16, "pack": 8},
}
PARENTS = {  # the models that one builds on, by the name of the setting
    "muse": {"codec": "vq/export/vqvae", "clip": "clip/export/clip"},
    "vae": {"init": "vq/export/vqvae"},
    "unet": {"codec": "vae/export/vae", "clip": "clip/export/clip"},
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _arguments(task: str, workdir: Path, **changed: object) -> list[object]:
    settings = SIZES[task] | {"corpus": emoji_packages.built()}
    settings |= {"batch_size": 2, "steps": 3, "warmup": 1, "checkpoint_every": 2}
    settings |= {
        name: _trained(path.split("/")[0]).parent / path
        for name, path in PARENTS.get(task, {}).items()
    }
    words = [
        word for name, value in (settings | changed).items() for word in (f"--config.{name}", value)
    ]
    return [
        "pretrain",
        "--config",
        tiny.ROOT / f"configs/pretrain_{task}.py",
        "--workdir",
        workdir,
        *words,
    ]


@functools.cache
def _trained(task: str) -> Path:
    """The training folder of a model that was trained for three steps, the first at no rate; never changed."""
    workdir = tiny.home() / "pretrained" / task
    assert tiny.styledrop(*_arguments(task, workdir)) == 0
    return workdir


@pytest.mark.parametrize("task", SIZES)
def test_training_leaves_a_model_and_pictures(task):
    workdir = _trained(task)
    assert sorted(path.name for path in (workdir / "pictures").iterdir()) == [
        "0000002.png",
        "0000003.png",
    ]
    rows = [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(rows) == 3


def test_the_exported_models_draw_and_score():
    base = load.load(str(_trained("muse") / "export/muse"), np.float32)
    assert base.resolution == 64 and base.denoiser.config.sample_size == 16
    scorer = ClipScorer.load(_trained("clip") / "export/clip")
    assert np.isfinite(scorer.text_features(["a cat"])).all()
    known = read_json(_trained("muse") / "export/vocabulary.json")
    assert "cat" in known and "thing 3" not in known, "the starter vocabulary alone was taught"


def test_training_goes_on_from_exported_weights(tmp_path):
    init = _trained("muse") / "export/muse"
    assert (
        tiny.styledrop(
            *_arguments("muse", tmp_path / "on", init=init, optimizer="adam", learning_rate=1e-9)
        )
        == 0
    )
    before, after = (
        hub.read_config(p / "transformer") for p in (init, tmp_path / "on/export/muse")
    )
    assert before == after
    old, new = (
        muse_files.TRANSFORMER.load(p / "transformer") for p in (init, tmp_path / "on/export/muse")
    )
    kernels = (m.transformer_layers[0].attn1.to_q.kernel[...] for m in (old, new))
    np.testing.assert_allclose(*kernels, atol=1e-3)


def test_training_goes_on_under_the_pipelines_own_text_tower(tmp_path):
    given = _trained("unet") / "export/sd"
    assert (
        tiny.styledrop(*_arguments("unet", tmp_path / "on", init=given / "unet", clip=given)) == 0
    )
    for name in (
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
    ):
        assert (given / name).read_bytes() == (tmp_path / "on/export/sd" / name).read_bytes(), name


def test_clip_sees_its_drawings_varied_but_their_sides_as_the_caption_says():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[16:48, 16:24] = 0  # a bar on the left
    for caption, sides in (("a bar", {True, False}), ("a bar on the left", {True})):
        seen = [clip.varied(image, caption, np.random.default_rng(i)) for i in range(40)]
        assert {bool(x[:, :32].mean() < x[:, 32:].mean()) for x in seen} == sides
        assert all(x.shape == image.shape and x.dtype == np.uint8 for x in seen)
        assert all((x[0] == 255).all() for x in seen), (
            "beyond its edge a picture goes on as it ends"
        )
        assert len({x.tobytes() for x in seen}) == 40


@pytest.fixture(scope="module")
def exported() -> StableDiffusion:
    model = load.load(str(_trained("unet") / "export/sd"))
    assert isinstance(model, StableDiffusion)
    return model


def test_the_exported_stable_diffusion_draws_and_encodes(exported):
    model = exported
    assert model.resolution == 64
    settings = SampleSettings(steps=2)
    branches = guidance.base_branches(model, ["a cat", "a dog"], settings)
    images = np.concatenate(
        list(guidance.generate(branches, range(2), settings=settings, batch_size=2))
    )
    assert (
        images.shape == (2, 64, 64, 3)
        and images.min() >= 0
        and images.max() <= 1
        and images.std() > 0
    )
    latents = model.encode_images(images)
    assert latents.mean.shape == (2, 16, 16, 4) and np.isfinite(latents.mean).all()
    assert "cat" in read_json(_trained("unet") / "export/vocabulary.json")


def test_the_exported_schedule_predicts_v_from_pure_noise_on_as_the_reference_reads_it(exported):
    ours, theirs = (
        exported.schedule,
        DDIMScheduler.from_pretrained(_trained("unet") / "export/sd/scheduler"),
    )
    assert ours.prediction_type == theirs.config.prediction_type == "v_prediction"
    assert ours.timestep_spacing == theirs.config.timestep_spacing == "trailing"
    assert not theirs.config.clip_sample and ours.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)


def test_the_exported_latents_have_unit_deviation(exported):
    data = corpus.load(emoji_packages.built())
    images = [data.example(i, split="train", vocabulary="full", seed=1)[0] for i in range(512)]
    latents = exported.encode_images(np.stack(images)).mean
    assert abs(exported.autoencoder.config.scaling_factor - 1) > 0.05, (
        "no scaling would show nothing"
    )
    assert abs(latents.std() - 1) < 0.01 and abs(latents.mean()) < 0.01


def test_an_autoencoder_takes_over_the_blocks_of_a_tokenizer():
    given, taken = (
        load_file(_trained(task) / "export" / path / WEIGHTS)
        for task, path in (("vq", "vqvae"), ("vae", "vae"))
    )
    same = [
        name
        for name, tensor in given.items()
        if name in taken and taken[name].shape == tensor.shape
    ]
    assert {name for name in given if "_blocks." in name or ".mid_block." in name} <= set(same)
    for name in same:  # two steps of Adam move a weight by the learning rate each
        np.testing.assert_allclose(taken[name], given[name], atol=5e-3, err_msg=name)


def test_a_killed_training_continues_to_the_same_bytes(tmp_path, monkeypatch):
    whole, broken = _trained("muse"), tmp_path / "broken"

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
            tiny.styledrop(*_arguments("muse", broken))
    assert tiny.styledrop(*_arguments("muse", broken)) == 0
    name = f"export/muse/transformer/{WEIGHTS}"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus": "nowhere"}, "run launch/fetch_corpus.sh"),
        ({"codec": "nowhere"}, "nowhere"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"width": 100}, "hidden_size is 100"),
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


def test_of_a_unet_the_parameters_that_are_named_train(tmp_path):
    init = _trained("unet") / "export/sd/unet"
    assert (
        tiny.styledrop(
            *_arguments("unet", tmp_path, init=init, trained="attentions", learning_rate=1e-2)
        )
        == 0
    )
    old, new = (load_file(folder / WEIGHTS) for folder in (init, tmp_path / "export/sd/unet"))
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed and all(".attentions." in name for name in changed)
