"""CLIP scores: chunks, sizes, text and style scores, recall and intervals."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from styledrop_jax.errors import UserError
from styledrop_jax.feedback import scorers
from styledrop_jax.io import hub, pretrained
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval, preprocess, recall
from styledrop_jax.models.clip import RULES, Clip, normalize
from styledrop_jax.models.clip_config import ClipConfig
from styledrop_jax.models.tokenizer import save_tokenizer, train_tokenizer

PROMPTS = ["a cat", "a red house", "a cat", "", "a tree in pencil"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(PROMPTS, 540, 32)
    config = ClipConfig.emoji64(vocab_size=len(tokenizer), width=32, text_layers=1, vision_layers=1)
    model = Clip(config, rngs=nnx.Rngs(0))
    hub.save_component(folder, config.to_dict(), pretrained.export(model, RULES))
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer.load(folder, batch_size=2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((5, 64, 64, 3), np.float32)


def test_scores_are_the_reference_models(scorer, folder, images):
    torch = pytest.importorskip("torch")
    reference = CLIPModel.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = torch.from_numpy(np.asarray(normalize(images)).transpose(0, 3, 1, 2).copy())
    inputs = tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        out = reference(input_ids=inputs.input_ids, pixel_values=pixels)
    cosines = (out.logits_per_image / reference.logit_scale.exp()).detach().numpy()
    np.testing.assert_allclose(scorer.text_score(images, PROMPTS), np.diagonal(cosines), atol=1e-5)


def test_a_score_does_not_depend_on_its_neighbours(scorer, images):
    whole = scorer.text_score(images, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        assert scorer.text_score(images[i : i + 1], [prompt])[0] == whole[i]


def test_style_score_is_one_for_the_same_image_and_averages_references(scorer, images):
    def style(samples, references):
        seen = scorers.Scored(
            features=scorer.image_features(samples),
            prompts=[],
            contents=[],
            ids=[],
            references=references,
            shown=[],
            clip=scorer,
            seed=0,
        )
        return scorers.clip_style(seen)

    np.testing.assert_allclose(style(images[:1], images[:1]), 1, atol=1e-5)
    one = style(images, images[1:2])
    other = style(images, images[2:3])
    both = style(images, images[1:3])
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)


def test_prompts_and_images_must_pair(scorer, images):
    with pytest.raises(ValueError, match="5 images and 1 prompts"):
        scorer.text_score(images, ["a cat"])


def test_a_folder_of_another_model_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="config.json"):
        ClipScorer.load(tmp_path)
    values = hub.read_config(folder)
    values["text_config"]["num_hidden_layers"] = 2
    hub.save_component(tmp_path, values, pretrained.Tensors([folder / "model.safetensors"], RULES))
    words = r"does not fit the model, 16 tensors differ: missing text_model\.encoder"
    with pytest.raises(UserError, match=words):
        ClipScorer.load(tmp_path)


@pytest.mark.parametrize(
    ("width", "height"), [(48, 48), (200, 200), (150, 101), (64, 90), (64, 64)]
)
def test_preprocessing_is_the_reference_image_processors(width, height):
    small = (height // 8 + 1, width // 8 + 1, 3)
    noise = np.random.default_rng(0).integers(0, 256, small, np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    crop = {"height": 64, "width": 64}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=crop)
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = normalize(preprocess(jnp.asarray(image, jnp.float32)[None] / 255, 64))[0]
    # Pillow rounds to whole levels between its two passes and after them.
    np.testing.assert_allclose(ours, theirs, atol=2 / 255 / 0.26)
    assert np.abs(ours - theirs).mean() < 0.5 / 255 / 0.26


def test_recall_counts_ties_against():
    similarity = np.array([[3.0, 1, 2], [5, 4, 3], [0, 0, 0]])
    for k in (1, 2, 3):
        assert recall(similarity, k) == pytest.approx(k / 3)


def test_interval_holds_the_mean_and_shrinks():
    values = np.random.default_rng(0).normal(2, 1, 400)
    mean, low, high = mean_interval(values, 0)
    assert low < mean < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert mean_interval(values, 0) == (mean, low, high)
    assert mean_interval(np.array([0.5]), 1) == (0.5, 0.5, 0.5)
