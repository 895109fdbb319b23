"""Pretraining: the models of both bases, trained from a tiny corpus, each on top of the last."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import emoji_packages
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from flax import nnx
from safetensors.numpy import load_file

from styledrop_jax import config_files, guidance, tree
from styledrop_jax.emoji import corpus, settings
from styledrop_jax.emoji.pretrain import pretrain
from styledrop_jax.emoji.settings import CommonSettings
from styledrop_jax.emoji.tasks import clip, muse, start, unet, vae, vq
from styledrop_jax.emoji.treatments import TREATMENTS_BY_NAME
from styledrop_jax.errors import UserError
from styledrop_jax.io import hub
from styledrop_jax.io.files import read_json
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.pipelines import load
from styledrop_jax.pipelines.base import SampleSettings
from styledrop_jax.pipelines.muse import Muse
from styledrop_jax.pipelines.muse_files import TRANSFORMER, VQVAE
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion
from styledrop_jax.pipelines.stable_diffusion_files import VAE
from styledrop_jax.training import checkpoint, loop

SIZES = {
    "vq": {"width": 4},
    "clip": {"width": 32, "text_layers": 1, "vision_layers": 1, "seen": 0.5},
    "muse": {"size": 64, "width": 32, "layers": 1, "pack": 8},
    "vae": {"seed": 1, "width": 4},
    "unet": {"size": 64, "width": 16, "pack": 8},
    "start": {"size": 64, "rank": 2, "things": 2, "inner_steps": 3, "inner_batch_size": 2},
}
PARENTS = {  # the models that one builds on, by the name of the setting
    "muse": {"codec": "vq/export/vqvae", "clip": "clip/export/clip"},
    "vae": {"init": "vq/export/vqvae"},
    "unet": {"codec": "vae/export/vae", "clip": "clip/export/clip"},
    "start": {"base": "unet/export/sd"},
}
DECODING = tuple(
    f"{model}.{part}"
    for model in ("autoencoder", "tokenizer")
    for part in ("decoder", "post_quant_conv")
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _changes(task: str, /, **changed: Any) -> dict[str, Any]:
    """What the tests set of a task's config; `changed` too."""
    values = {"corpus": str(emoji_packages.built()), **SIZES[task]}
    values |= {"batch_size": 2, "steps": 3, "warmup": 1, "checkpoint_every": 2}
    for name, path in PARENTS.get(task, {}).items():
        values[name] = str(_trained(path.split("/")[0]).parent / path)
    return values | changed


def _settings(task: str, /, **changed: Any) -> CommonSettings:
    config = config_files.load(f"pretrain_{task}", settings.complete).to_dict()
    return settings.from_config(config | _changes(task, **changed))


@pytest.fixture(scope="module", autouse=True)
def _samples_of_few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "SHEET", (1, 2))
        for task in (muse, unet, start):
            patch.setattr(task, "SAMPLE", dataclasses.replace(task.SAMPLE, steps=2, batch_size=4))
        yield


@functools.cache
def _trained(task: str) -> Path:
    """The folder of a model that was trained for three steps; never changed."""
    workdir = tiny.home() / "pretrained" / task
    pretrain(_settings(task), workdir)
    return workdir


@pytest.mark.parametrize("task", SIZES)
def test_training_leaves_a_model_and_images(task):
    workdir = _trained(task)
    assert sorted(os.listdir(workdir / "images")) == ["0000002.png", "0000003.png"]
    assert (workdir / "metrics.jsonl").read_text().count('"loss"') == 3


def test_images_have_one_of_the_sides_that_the_corpus_holds():
    with pytest.raises(UserError, match="config.size: found 96, expected one of 64, 128"):
        _settings("vq", size=96)
    with pytest.raises(UserError, match="unknown preset '96'.*64, 128"):
        config_files.load("pretrain_vae:96", settings.complete)


@pytest.mark.parametrize("task", SIZES)
def test_settings_are_read_from_plain_data_and_back(task):
    config = config_files.load(f"pretrain_{task}", settings.complete).to_dict()
    value = settings.from_config(config)
    assert type(value) is settings.SETTINGS[task] and settings.to_config(value) == config


def test_the_exported_models_sample_and_score():
    base = load.load(str(_trained("muse") / "export/muse"))
    assert isinstance(base, Muse)
    assert base.resolution == 64 and base.denoiser.config.sample_size == 16
    scorer = ClipScorer.load(_trained("clip") / "export/clip")
    assert np.isfinite(scorer.text_features(["a cat"])).all()
    known = read_json(_trained("muse") / "export/vocabulary.json")
    assert "cat" in known and "thing 3" not in known, "the starter vocabulary alone was taught"


@pytest.mark.slow
def test_training_goes_on_from_exported_weights(tmp_path):
    init = _trained("muse") / "export/muse"
    pretrain(_settings("muse", init=str(init), seed=7), tmp_path)
    again = tmp_path / "export/muse"
    assert hub.read_config(init / "transformer") == hub.read_config(again / "transformer")
    before = TRANSFORMER.load(init / "transformer").transformer_layers[0].attn1.to_q.kernel[...]
    after = TRANSFORMER.load(again / "transformer").transformer_layers[0].attn1.to_q.kernel[...]
    assert 0 < np.abs(after - before).max() < 0.01 < np.abs(before).max()


@pytest.mark.slow
def test_a_unet_goes_on_by_named_parameters_under_the_pipelines_own_text_tower(tmp_path):
    given = _trained("unet") / "export/sd"
    words = {"init": str(given / "unet"), "clip": str(given), "trained": "attentions"}
    pretrain(_settings("unet", **words, learning_rate=1e-2), tmp_path)
    for name in (
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
    ):
        assert (given / name).read_bytes() == (tmp_path / "export/sd" / name).read_bytes(), name
    old = load_file(given / "unet" / WEIGHTS)
    new = load_file(tmp_path / "export/sd/unet" / WEIGHTS)
    for name, tensor in old.items():
        assert np.array_equal(tensor, new[name]) == (".attentions." not in name), name


@pytest.mark.parametrize(
    ("caption", "sides"), [("a bar", {True, False}), ("a bar on the left", {True})]
)
def test_clip_sees_its_images_varied_but_their_sides_as_the_caption_says(caption, sides):
    image = np.full((64, 64, 3), 255, np.uint8)
    image[16:48, 16:24] = 0  # a bar on the left
    found = set()
    different = set()
    for i in range(40):
        seen = clip.varied(image, caption, np.random.default_rng(i))
        assert seen.shape == image.shape and seen.dtype == np.uint8
        assert (seen[0] == 255).all(), "beyond its edge an image goes on as it ends"
        found.add(bool(seen[:, :32].mean() < seen[:, 32:].mean()))
        different.add(seen.tobytes())
    assert found == sides and len(different) == 40


@pytest.fixture(scope="module")
def exported() -> StableDiffusion:
    model = load.load(str(_trained("unet") / "export/sd"))
    assert isinstance(model, StableDiffusion)
    return model


def test_an_autoencoder_of_128_pixels_begins_as_one_of_64_doubled_and_shares_its_latents(tmp_path):
    folder = str(_trained("vae") / "export/vae")
    config = config_files.load("pretrain_vae:128", settings.complete).to_dict()
    changes = _changes("vae", init=folder, like=folder, width=8)
    told = settings.from_config(config | changes)
    assert isinstance(told, settings.VaeSettings)
    data = corpus.load(emoji_packages.built(), size=128)
    task = vae.task(told, data, tmp_path)
    begun, given = task.model.autoencoder, VAE.load(Path(folder))
    batch = task.batches(0, 1)[0]
    images = np.asarray(batch) / 255
    known = given.encode(images.reshape(2, 64, 2, 64, 2, 3).mean((2, 4)))
    doubled = np.asarray(given.decode(known.mean)).repeat(2, axis=1).repeat(2, axis=2)
    found = np.asarray(begun.decode(known.mean))
    assert np.abs(found - doubled).mean() < 0.2 * doubled.std()

    keys = jax.random.split(jax.random.key(0), 2)
    _, metrics = task.loss(task.model, batch, keys)
    own = begun.encode(jnp.asarray(images))
    spread = own.logvar - known.logvar
    apart = (own.mean - known.mean) ** 2 / np.exp(known.logvar) + np.exp(spread) - 1 - spread
    np.testing.assert_allclose(metrics["kl"], apart.mean() / 2, rtol=1e-3)
    # the decoder learns from the other's latents, so it sees nothing of its own encoder
    graphdef, trained, frozen = loop.split(task.model, task.trainable)

    def error(state):
        return task.loss(nnx.merge(graphdef, state, frozen), batch, keys)[1]["l1"]

    grads = tree.flatten(jax.jit(jax.grad(error))(trained))
    moved = {name for name, grad in grads.items() if np.abs(grad).max() > 0}
    assert moved and all(name.startswith(DECODING) for name in moved)

    task.export(task.model, tmp_path)
    exported = VAE.load(tmp_path / "vae")
    assert exported.config.scaling_factor == given.config.scaling_factor
    assert (exported.config.sample_size, exported.config.downsampling) == (128, 8)


def test_a_tokenizer_of_128_pixels_begins_as_one_of_64_doubled_and_shares_its_tokens(tmp_path):
    folder = str(_trained("vq") / "export/vqvae")
    config = config_files.load("pretrain_vq:128", settings.complete).to_dict()
    told = settings.from_config(config | _changes("vq", like=folder, width=8))
    assert isinstance(told, settings.VqSettings)
    data = corpus.load(emoji_packages.built(), size=128)
    task = vq.task(told, data, tmp_path)
    begun, given = task.model.tokenizer, VQVAE.load(Path(folder))
    batch = task.batches(0, 1)[0]
    images = np.asarray(batch) / 255
    tokens = given.encode(jnp.asarray(images.reshape(2, 64, 2, 64, 2, 3).mean((2, 4))))
    doubled = np.asarray(given.decode(tokens)).repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(np.asarray(begun.decode(tokens)) - doubled).mean() < 0.3 * doubled.std()

    keys = jax.random.split(jax.random.key(0), 2)
    graphdef, trained, frozen = loop.split(task.model, task.trainable)
    assert not any("quantize" in name for name in tree.flatten(trained))

    def moved(of):
        def value(state):
            return task.loss(nnx.merge(graphdef, state, frozen), batch, keys)[1][of]

        grads = tree.flatten(jax.jit(jax.grad(value))(trained))
        return {name for name, grad in grads.items() if np.abs(grad).max() > 0}

    # the decoder learns from the other's tokens, the encoder from the other's features
    assert moved("l1") and all(name.startswith(DECODING) for name in moved("l1"))
    assert moved("apart") and not any(name.startswith(DECODING) for name in moved("apart"))

    task.export(task.model, tmp_path)
    exported = VQVAE.load(tmp_path / "vqvae")
    assert (exported.config.sample_size, exported.config.downsampling) == (128, 8)
    np.testing.assert_allclose(
        exported.quantize.embedding[...], given.quantize.embedding[...], atol=1e-3
    )


def test_an_autoencoder_shares_the_latents_of_one_of_half_its_size_alone(tmp_path):
    folder = str(_trained("vae") / "export/vae")
    told = _settings("vae", like=folder)
    assert isinstance(told, settings.VaeSettings)
    with pytest.raises(
        UserError, match="config.like: .* has 4 pixels a latent .* expected 2 and 4"
    ):
        vae.task(told, corpus.load(emoji_packages.built()), tmp_path)


def test_the_exported_stable_diffusion_samples_and_encodes(exported):
    assert exported.resolution == 64
    how = SampleSettings(steps=2, batch_size=2)
    branches = guidance.classifier_free(guidance.bare(exported), ["a cat", "a dog"], how)
    images = np.concatenate(list(guidance.generate(branches, range(2), settings=how)))
    assert images.shape == (2, 64, 64, 3)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0
    latents = exported.encode_images(images)
    assert latents.mean.shape == (2, 16, 16, 4) and np.isfinite(latents.mean).all()
    assert "cat" in read_json(_trained("unet") / "export/vocabulary.json")


def test_the_reference_reads_the_exported_schedule_as_v_from_pure_noise_on(exported):
    ours = exported.schedule
    theirs: Any = DDIMScheduler.from_pretrained(_trained("unet") / "export/sd/scheduler")
    assert ours.prediction_type == theirs.config.prediction_type == "v_prediction"
    assert ours.timestep_spacing == theirs.config.timestep_spacing == "trailing"
    assert not theirs.config.clip_sample and ours.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)


def test_the_exported_latents_have_unit_deviation(exported):
    data = corpus.load(emoji_packages.built())
    images = [data.example(i, split="train", vocabulary="full", seed=1)[0] for i in range(512)]
    latents = exported.encode_images(np.stack(images)).mean
    scaling = exported.autoencoder.config.scaling_factor
    assert abs(scaling - 1) > 0.05, "no scaling would show nothing"
    assert abs(latents.std() - 1) < 0.01 and abs(latents.mean()) < 0.01


def test_an_autoencoder_takes_over_the_blocks_of_a_tokenizer():
    given = load_file(_trained("vq") / "export/vqvae" / WEIGHTS)
    taken = load_file(_trained("vae") / "export/vae" / WEIGHTS)
    blocks = 0
    for name, tensor in given.items():
        is_block = "_blocks." in name or ".mid_block." in name
        blocks += is_block
        if is_block or (name in taken and taken[name].shape == tensor.shape):
            # Two steps of Adam move a weight by the learning rate each.
            np.testing.assert_allclose(taken[name], tensor, atol=5e-3, err_msg=name)
    assert blocks > 10


@pytest.mark.slow
def test_what_an_adapter_starts_from_learns_by_what_other_things_lose(tmp_path):
    told = _settings("start")
    assert isinstance(told, settings.StartSettings)
    data = corpus.load(emoji_packages.built())
    task = start.task(told, data, tmp_path)
    graphdef, given, frozen = loop.split(task.model, task.trainable)
    styles = jax.tree.map(lambda x: x[0, :1], task.batches(0, 1))
    keys = jax.random.split(jax.random.key(0), 1)
    inner = task.loss.keywords["inner"]

    def loss(params, inner):
        return start._loss(nnx.merge(graphdef, params, frozen), styles, keys, inner=inner)[0]

    gradient = jax.jit(jax.grad(loss), static_argnames="inner")
    found = gradient(given, inner)
    one = jax.tree.map(lambda x: x[0], styles)
    learnt = inner.states(task.model, one, jax.random.split(keys[0])[0])
    unmoved = dataclasses.replace(inner, learning_rate=0.0)
    at_each = [gradient(state, unmoved) for state in learnt]
    mean = jax.tree.map(lambda *x: sum(x) / 2, *at_each)
    largest = max(float(np.abs(grad).max()) for grad in tree.flatten(found).values())
    assert largest > 0
    for name, grad in tree.flatten(found).items():
        np.testing.assert_allclose(grad, tree.flatten(mean)[name], atol=1e-3 * largest)


def test_a_style_is_drawn_alike_and_half_of_them_have_made_up_names(tmp_path):
    data = corpus.load(emoji_packages.built())
    images, prompts = data.style(0, things=4, vocabulary="full", seed=3)
    again, said = data.style(0, things=4, vocabulary="full", seed=3)
    assert np.array_equal(images, again) and prompts == said
    assert len({prompt.partition(" in ")[2] for prompt in prompts}) == 1
    assert len({prompt.partition(" in ")[0] for prompt in prompts}) > 1
    known = {word for treatment in TREATMENTS_BY_NAME.values() for word in treatment.words.split()}
    made_up = [data.style(i, things=1)[1][0] for i in range(60)]
    found = [known.isdisjoint(prompt.partition(" in ")[2].split()[:-1]) for prompt in made_up]
    assert 20 < sum(found) < 55


def test_a_killed_training_continues_to_the_same_bytes_by_the_command_line(tmp_path, monkeypatch):
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
            pretrain(_settings("vq"), tmp_path)
    words = []
    for name, value in _changes("vq").items():
        words += [f"--config.{name}", value]
    command = ("pretrain", "--config", "pretrain_vq", "--workdir", tmp_path, *words)
    assert tiny.styledrop(*command) == 0
    name = f"export/vqvae/{WEIGHTS}"
    assert (_trained("vq") / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus": "nowhere"}, "run launch/fetch_corpus.sh"),
        ({"codec": "nowhere"}, "nowhere"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"width": 100}, "hidden_size is 100"),
        ({"vocabulary": "startr"}, "did you mean 'starter'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"text_dropout": 1.5}, "text_dropout: found 1.5, expected a number of at least 0"),
        ({"stesp": 3}, "stesp: unknown field; did you mean 'steps'"),
        ({"task": "mus"}, "config.task: found 'mus', .* did you mean 'muse'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(changed, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        pretrain(_settings("muse", **changed), tmp_path)
    assert "\n" not in str(error.value)


def test_the_config_is_required(tmp_path, capfd):
    assert tiny.styledrop("pretrain", "--workdir", tmp_path / "run") == 2
    assert "--config: missing" in capfd.readouterr().err
