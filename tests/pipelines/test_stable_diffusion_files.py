"""A Stable Diffusion from the reference library's folders and from single files."""

import copy
import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import references
import torch
from loopback_hub import LoopbackHub
from references import SCHEDULER, schedule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import ldm_tensors

from styledrop_jax.errors import UserError
from styledrop_jax.io import hub, pretrained
from styledrop_jax.models import clip, unet, vae
from styledrop_jax.models.tokenizer import save_tokenizer, train_tokenizer
from styledrop_jax.pipelines import load as loading
from styledrop_jax.pipelines import stable_diffusion_files
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(name: object, dtype=jnp.float32) -> StableDiffusion:
    found = loading.load(str(name), dtype)
    assert isinstance(found, StableDiffusion)
    return found


@pytest.fixture
def folder(folders, tmp_path):
    """A copy to change."""
    return shutil.copytree(folders["epsilon"], tmp_path / "model")


def test_a_diffusers_folder_is_loaded(models, folders):
    for prediction, folder in folders.items():
        model = models[prediction]
        assert isinstance(model, StableDiffusion)
        assert (model.name, model.resolution) == (str(folder), 8)
        assert model.schedule == schedule(prediction)


@pytest.mark.parametrize("name", ["PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_scheduler_that_is_no_sampler_here_is_said(name, folder, caplog):
    values = json.loads((folder / SCHEDULER).read_text()) | {"_class_name": name}
    (folder / SCHEDULER).write_text(json.dumps(values))
    assert load(folder).schedule == schedule("epsilon")
    said = [record.getMessage() for record in caplog.records]
    if name == "HeunDiscreteScheduler":
        assert said == []
    else:
        (line,) = said
        assert f"a {name}, which is no sampler here" in line and "sample.sampler" in line


def test_a_shipped_model_is_found_by_its_name(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["epsilon"], tmp_path / "tiny64")
    (tmp_path / "tiny64" / "model_index.json").write_text("{}")
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    assert load("tiny64").name == "tiny64"


def test_half_precision_and_shards_are_read(parts, folder):
    """Also: the autoencoder stays in float32, as its config says, whatever the rest computes in."""
    shutil.rmtree(folder / "unet")
    half = copy.deepcopy(parts["unet"]).half()
    half.save_pretrained(folder / "unet", variant="fp16", max_shard_size="20KB")
    shards = sorted((folder / "unet").glob("*.fp16-*.safetensors"))
    assert len(shards) > 1
    model = load(folder, jnp.bfloat16)
    for name, tensor in pretrained.export(model.denoiser, unet.RULES).items():
        np.testing.assert_array_equal(tensor, half.state_dict()[name].bfloat16().float().numpy())
    assert model.denoiser.conv_in.dtype == jnp.bfloat16
    assert model.autoencoder.encoder.conv_in.dtype == jnp.float32

    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    with pytest.raises(UserError, match=r"00001-of-.*not a readable safetensors file"):
        load(folder)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"shards not found: .*00002-of-.*finish the download"):
        load(folder)


@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_a_bfloat16_variant_alone_is_loaded(size, parts, folder):
    for name in ("unet", "vae", "text_encoder"):
        shutil.rmtree(folder / name)
        part = copy.deepcopy(parts[name]).bfloat16()
        part.save_pretrained(folder / name, variant="bf16", max_shard_size=size)
        assert all(".bf16" in path.name for path in (folder / name).glob("*.safetensors"))
    model = load(folder)
    weight = parts["unet"].conv_in.weight.bfloat16().float().detach().numpy()
    np.testing.assert_array_equal(model.denoiser.conv_in.kernel[...], weight.transpose(2, 3, 1, 0))


def test_a_model_of_the_hub_is_loaded_from_what_is_fetched_of_it(models, folders, monkeypatch):
    """Which is all that is opened, and nothing else that lies there."""
    files = {"README.md": b"", "safety_checker/model.safetensors": b"", "unet/old.bin": b""}
    for path in folders["epsilon"].rglob("*"):
        if path.is_file():
            files[path.relative_to(folders["epsilon"]).as_posix()] = path.read_bytes()
    with tempfile.TemporaryDirectory() as cache, LoopbackHub({"owner/tiny": files}) as server:
        server.use(monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
        model = load("owner/tiny")
        assert set(server.served) == {
            "scheduler/scheduler_config.json",
            *("text_encoder/config.json", "text_encoder/model.safetensors"),
            *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
            *("unet/config.json", f"unet/{WEIGHTS}", "vae/config.json", f"vae/{WEIGHTS}"),
        }
    assert model.name == "owner/tiny" and model.base_hash == models["epsilon"].base_hash


def _resaved(file) -> None:
    """The same tensors with another header: other metadata, and names in another order."""
    tensors = load_file(file)
    backwards = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata() or {}
    save_file(backwards, file, metadata=metadata | {"made by": "another tool"})


def test_the_same_model_has_the_same_hash_whatever_files_hold_it(models, parts, folder):
    expected = models["epsilon"].base_hash
    assert len(expected) == 64 and load(folder).base_hash == expected
    before = (folder / "unet" / WEIGHTS).read_bytes()
    _resaved(folder / "unet" / WEIGHTS)
    assert (folder / "unet" / WEIGHTS).read_bytes() != before
    config = json.loads((folder / "unet/config.json").read_text())
    config |= {"_diffusers_version": "0.0.1", "_name_or_path": "elsewhere"}
    (folder / "unet/config.json").write_text(json.dumps(config))
    scheduler = json.loads((folder / SCHEDULER).read_text()) | {"skip_prk_steps": True}
    (folder / SCHEDULER).write_text(json.dumps(scheduler))
    assert load(folder).base_hash == expected
    shutil.rmtree(folder / "vae")
    parts["vae"].save_pretrained(folder / "vae", max_shard_size="20KB")
    assert len(list((folder / "vae").glob("*-of-*.safetensors"))) > 1
    assert load(folder).base_hash == expected


def _other_weights(parts, folder, name: str) -> None:
    part = copy.deepcopy(parts[name])
    first = next(part.parameters())
    first.data.view(-1)[0] += 1e-3
    part.save_pretrained(folder / name)


def _other_scheduler(parts, folder) -> None:
    references.save_scheduler(
        folder, dataclasses.replace(schedule("epsilon"), timestep_spacing="trailing")
    )


def _other_tokenizer(parts, folder) -> None:
    tokenizer = train_tokenizer(["a green cat and a blue dog"], 530, references.LENGTH)
    save_tokenizer(tokenizer, folder / "tokenizer")


def _other_padding(parts, folder) -> None:
    tokenizer = copy.deepcopy(parts["tokenizer"])
    tokenizer.pad_token = "!"
    save_tokenizer(tokenizer, folder / "tokenizer")


def _other_config(parts, folder) -> None:
    config = json.loads((folder / "vae/config.json").read_text()) | {"scaling_factor": 0.2}
    (folder / "vae/config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        functools.partial(_other_weights, name="unet"),
        functools.partial(_other_weights, name="vae"),
        functools.partial(_other_weights, name="text_encoder"),
        _other_scheduler,
        _other_tokenizer,
        _other_padding,
        _other_config,
    ],
    ids=["unet", "vae", "text_encoder", "scheduler", "tokenizer", "padding", "config"],
)
def test_every_part_that_decides_what_is_computed_changes_the_hash(change, models, parts, folder):
    change(parts, folder)
    assert load(folder).base_hash != models["epsilon"].base_hash


class SingleFile:
    """Makes a single file of the tiny parts; CLIP's tokenizer is in a cache.

    Attributes:
        file: where it is.
        asked: the names that the hub was asked for.
    """

    def __init__(self, parts, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.file = folder / "tuned.safetensors"
        self.asked: list[str] = []
        self._parts = parts
        self._patch = monkeypatch
        save_tokenizer(parts["tokenizer"], folder / "openai")

        def resolve(name, layouts):
            self.asked.append(name)
            return folder / "openai"

        monkeypatch.setattr(hub, "resolve", resolve)

    def write(self, version: int, metadata: dict[str, str] | None = None) -> dict:
        """Returns the reference's modules."""
        text = self._parts["text_encoder"]
        if version == 2:
            text = references.tower(self._parts["tokenizer"], layers=23, hidden_act="gelu")
        modules = self._parts | {"text_encoder": text}
        text_config = text.config.to_dict() | {"architectures": ["CLIPTextModel"]}
        presets = {
            "unet": unet.Config.from_dict(dict(modules["unet"].config)),
            "vae": vae.Config.from_dict(dict(modules["vae"].config)),
            "text_encoder": clip.TextConfig.from_dict(text_config),
        }
        self._patch.setitem(stable_diffusion_files.PRESETS, version, presets)
        tensors = {}
        for name, tensor in ldm_tensors(f"tiny {version}.x", modules).items():
            tensors[name] = tensor.clone().contiguous()
        save_file(tensors, self.file, metadata=metadata)
        return modules


@pytest.fixture
def single_file(parts, tmp_path, monkeypatch) -> SingleFile:
    return SingleFile(parts, tmp_path, monkeypatch)


@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_is_loaded(version, single_file):
    modules = single_file.write(
        version, {"modelspec.prediction_type": "v"} if version == 2 else None
    )
    model = load(single_file.file)
    prediction = "epsilon" if version == 1 else "v_prediction"
    assert (model.resolution, model.schedule) == (8, schedule(prediction))
    assert single_file.asked == ["openai/clip-vit-large-patch14"]
    assert model.tokenizer.pad_token == ("!" if version == 2 else "<|endoftext|>")
    for name, component, rules in (
        ("unet", model.denoiser, unet.RULES),
        ("vae", model.autoencoder, vae.RULES),
        ("text_encoder", model.text, clip.RULES),
    ):
        found = {}
        for key, array in pretrained.export(component, rules).items():
            found[key.removeprefix("text_model.")] = array
        assert set(found) == set(modules[name].state_dict())
        for key, tensor in modules[name].state_dict().items():
            np.testing.assert_array_equal(found[key], tensor.numpy())


def test_a_single_file_has_the_hash_of_its_tensors_not_of_its_header(single_file):
    single_file.write(1)
    expected = load(single_file.file).base_hash
    _resaved(single_file.file)
    assert load(single_file.file).base_hash == expected
    single_file.write(1, {"modelspec.prediction_type": "v"})
    assert load(single_file.file).base_hash != expected


def test_an_inpainting_model_in_a_single_file_is_known_by_its_first_layer(single_file):
    single_file.write(2)
    tensors = load_file(single_file.file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = tensors[first].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, single_file.file)
    model = load(single_file.file)
    assert model.inpaints and model.denoiser.config.in_channels == 9
    assert model.schedule == schedule("epsilon")  # those of 2.x predict the noise too


def test_eight_bit_weights_in_a_single_file_are_cast(single_file):
    single_file.write(1)
    tensors = load_file(single_file.file)
    for name, tensor in tensors.items():
        if name.startswith(("model.", "cond_stage_model.")) and tensor.is_floating_point():
            tensors[name] = tensor.to(torch.float8_e4m3fn)
    save_file(tensors, single_file.file)
    model = load(single_file.file)
    first = tensors["model.diffusion_model.input_blocks.0.0.weight"].float().numpy()
    np.testing.assert_array_equal(model.denoiser.conv_in.kernel[...], first.transpose(2, 3, 1, 0))
    assert model.denoiser.conv_in.kernel.dtype == jnp.float32


def test_what_stands_beside_a_single_file_wins(single_file, parts):
    single_file.write(1)
    beside = single_file.file.with_suffix("")
    save_tokenizer(parts["tokenizer"], beside / "tokenizer")
    references.save_scheduler(beside, schedule("v_prediction"))
    assert load(single_file.file).schedule == schedule("v_prediction")
    assert single_file.asked == []


def test_a_2_x_of_the_noise_has_smaller_images(single_file):
    single_file.write(2)
    single_file.file.with_suffix(".yaml").write_text("model: {params: {linear_start: 0.00085}}")
    model = load(single_file.file)
    assert (model.resolution, model.schedule) == (128, schedule("epsilon"))  # 64×64 latents


ZERO_SNR = dataclasses.replace(
    schedule("v_prediction"), rescale_betas_zero_snr=True, timestep_spacing="trailing"
)


def _marked(folder: Path, metadata=None, tensors=()) -> Path:
    """A file of nothing but marks."""
    file = folder / "tuned.safetensors"
    save_file({name: torch.zeros(()) for name in ("betas", *tensors)}, file, metadata=metadata)
    return file


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("metadata", "tensors", "expected"),
    [
        ({"modelspec.prediction_type": "epsilon"}, (), schedule("epsilon")),
        ({"ss_v_parameterization": "True"}, (), schedule("v_prediction")),
        (None, ("v_pred",), schedule("v_prediction")),
        (None, ("v_pred", "ztsnr"), ZERO_SNR),
        ({"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, (), ZERO_SNR),
    ],
)
def test_marks_decide_the_schedule(version, metadata, tensors, expected, tmp_path):
    file = _marked(tmp_path, metadata, tensors)
    assert stable_diffusion_files.schedule_of_file(file, version) == expected


@pytest.mark.parametrize("version", [1, 2])
def test_a_yaml_beside_decides_the_schedule(version, tmp_path):
    file = _marked(tmp_path)
    file.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    found = stable_diffusion_files.schedule_of_file(file, version)
    assert found == schedule("v_prediction")


def test_without_a_mark_a_1_x_predicts_the_noise_and_a_2_x_is_refused(tmp_path):
    file = _marked(tmp_path)
    assert stable_diffusion_files.schedule_of_file(file, 1) == schedule("epsilon")
    with pytest.raises(UserError, match=r"a 2\.x model that does not say .*tuned/scheduler/"):
        stable_diffusion_files.schedule_of_file(file, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_scheduler_beside_that_contradicts_a_mark_is_refused(version, tmp_path):
    file = _marked(tmp_path, {"modelspec.prediction_type": "epsilon"})
    references.save_scheduler(file.with_suffix(""), schedule("v_prediction"))
    with pytest.raises(UserError, match=r"is epsilon in modelspec\S+ of its .* in .*scheduler_con"):
        stable_diffusion_files.schedule_of_file(file, version)
    file = _marked(tmp_path, None, ("v_pred", "ztsnr"))
    with pytest.raises(UserError, match=r"zero terminal SNR is True in .* and False in .*sched"):
        stable_diffusion_files.schedule_of_file(file, version)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        (
            "unet/config.json",
            {"cross_attention_dim": 24},
            "cross_attention_dim 24, expected the hidden_size 16 of text",
        ),
        (
            "unet/config.json",
            {"in_channels": 8},
            "unet has in_channels 8, expected the latent_channels 4 of vae, or 9 of an inpainting",
        ),
        (
            "unet/config.json",
            {"layers_per_block": 2},
            "unet of .* does not fit the model, .* missing down_blocks",
        ),
        ("text_encoder/config.json", {"vocab_size": 500}, "tokenizer has ids up to 529, expected"),
        (SCHEDULER, {"_class_name": "FlowMatch"}, "scheduler config: _class_name is 'FlowMatch"),
        ("unet", None, r"unet/config\.json: missing; expected a diffusers model folder"),
        ("vae", None, r"vae/config\.json: missing"),
        ("text_encoder/model.safetensors", None, r"text_encoder: expected model\.safetensors"),
        ("tokenizer", None, "tokenizer: no tokenizer"),
        ("scheduler", None, r"scheduler/scheduler_config\.json: no such file"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(part, changes, words, folder):
    path = folder / part
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"):
        load(tmp_path / "gone.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(UserError, match=r"old\.ckpt: not a readable .*pickles are never opened"):
        load(tmp_path / "old.ckpt")
