"""The figures and pictures of docs/shipped_models.md, from the shipped weights and the corpus.

python benchmarks/shipped_models.py --corpus corpus --out docs/images
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from styledrop_jax import guidance
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.compose import descriptor, noun_phrase
from styledrop_jax.emoji.drawings import ARTISTS
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.methods.prompts import POOL, noun
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval, recall
from styledrop_jax.metrics.distances import frechet_distance, kernel_distance, scaled
from styledrop_jax.pipelines.base import Pipeline, SampleSettings
from styledrop_jax.pipelines.load import load

PROMPTS = (
    *POOL[:12],
    "a cat in pencil sketch style",
    "a rocket in neon light style",
    "a red car on a blue background",
    "a small tree on the left",
)
UNSEEN = {
    "a colour of its own": (
        "a red car",
        "a blue cat",
        "a green star",
        "a purple house",
        "a yellow umbrella",
        "a black heart",
        "a pink elephant",
        "an orange guitar",
    ),
    "a count": (
        "two cats",
        "three stars",
        "two cars",
        "three apples",
        "two trees",
        "four hearts",
        "three balloons",
        "two keys",
    ),
    "two things in a style": (
        "a cat and a guitar in pencil sketch style",
        "a car next to a tree in neon light style",
        "a star and a heart in stained glass style",
        "a dog and a fish in watercolor painting style",
        "a house next to a cactus in yellow comic book style",
        "a key and an apple in chalk on blackboard style",
        "a rocket and a crescent moon in thermal camera style",
        "a panda next to a mushroom in old sepia photo style",
    ),
    "a place and a background": (
        "a small star at the top right on a red background",
        "a small fish at the bottom on a light blue background",
        "a small sun at the top left on an orange background",
        "a small tree on the left on a green background",
        "a small car on the right on a yellow background",
        "a small heart in the middle on a black background",
        "a small crown at the top on a purple background",
        "a small bee at the bottom left on a pink background",
    ),
    "a style on a background, half of the things by another name": (
        "a kitten in pencil sketch style on a blue background",
        "an automobile in neon light style on a red background",
        "a mushroom in red ink stamp style on a pink background",
        "a key in chalk on blackboard style on a green background",
        "a guitar in stained glass style on a yellow background",
        "a bunny in embossed silver style on an orange background",
        "an apple in thermal camera style on a purple background",
        "a yacht in glowing x-ray style on a light blue background",
    ),
}
"""40 prompts that training did not say, or hardly: `data/compose.py` leaves these colours and counts of them out;
a pair in a style, or a place on a background, is one of thousands; a background is named under few styles."""
MODELS = {
    "muse": SampleSettings(steps=12, temperature=2.0, lambda_b=1.0),
    "sd": SampleSettings(steps=20, lambda_b=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    flags = parser.parse_args()
    data, scorer = corpus.load(flags.corpus), ClipScorer.load(hub.resolve("emoji64/clip"))
    models = {name: load(f"emoji64/{name}") for name in MODELS}
    _reconstruction(data, models, scorer, flags.out)
    _print_recall(data, scorer)
    for name, model in models.items():
        _drawings(data, name, model, scorer, flags.out)
    _distances(data, models, scorer)
    _unseen(models, scorer, flags.out)


def _reconstruction(
    data: corpus.Corpus, models: dict[str, Pipeline], scorer: ClipScorer, out: Path
) -> None:
    images = data.held_out_images(376)
    tokens, posterior = (models[name].encode_images(images) for name in ("muse", "sd"))
    decoded = {
        "muse": models["muse"].decode_tokens(tokens),
        "sd": models["sd"].decode_latents(posterior.mode(), 16),
    }
    for name, again in decoded.items():
        error = np.abs(again - images / 255).mean(axis=(1, 2, 3))
        seen = 1 - (scorer.image_features(again) * scorer.image_features(images / 255)).sum(axis=1)
        for figure, values in (
            ("mean absolute error", error),
            ("cosine distance in CLIP features", seen),
        ):
            interval = "{:.4f} [{:.4f}, {:.4f}]".format(*mean_interval(values))
            print(f"codec of {name}, {figure} on held-out concepts: {interval}")
    triples = [
        picture
        for i in range(24)
        for picture in (images[i] / 255, decoded["muse"][i], decoded["sd"][i])
    ]
    image_files.write_png(out / "reconstruction.png", sheets.grid(triples, columns=18))


def _print_recall(data: corpus.Corpus, scorer: ClipScorer) -> None:
    core = [concept for concept, known in zip(data.concepts, data.core, strict=True) if known][:200]
    pairs = {"held-out pairs": data.held_out_pairs(200)}
    for artist in (artist for artist in ARTISTS if artist.held_out):
        images = np.stack([data.true_image(concept, artist.name) for concept in core])
        pairs[artist.name] = (
            images,
            [f"{noun_phrase(concept)} {descriptor(artist, None)}" for concept in core],
        )
    for name, (images, captions) in pairs.items():
        similarity = scorer.image_features(images / 255) @ scorer.text_features(captions).T
        at = ", ".join(f"recall@{k} {recall(similarity, k):.1%}" for k in (1, 5))
        print(f"CLIP, image → text among {len(captions)}, {name}: {at}")


def _drawn(kind: str, model: Pipeline, prompts: Sequence[str]) -> np.ndarray:
    branches = guidance.base_branches(model, prompts, MODELS[kind])
    return np.concatenate(
        list(guidance.generate(branches, range(len(prompts)), settings=MODELS[kind], batch_size=16))
    )


def _distances(data: corpus.Corpus, models: dict[str, Pipeline], scorer: ClipScorer) -> None:
    """FID and KID to the pool's true drawings by the artists of training, as many of each content."""
    artists = {
        held: [artist.name for artist in ARTISTS if artist.held_out == held]
        for held in (False, True)
    }

    def true(held_out: bool) -> np.ndarray:
        pairs = itertools.product(POOL, artists[held_out])
        images = (
            np.stack([data.true_image(noun(content), artist) for content, artist in pairs]) / 255
        )
        return scaled(scorer.image_features(images))

    known, contents = true(False), [content for content in POOL for _ in artists[False]]
    for kind, model in models.items():
        drawn = scaled(scorer.image_features(_drawn(kind, model, contents)))
        fid, kid = frechet_distance(drawn, known), kernel_distance(drawn, known)
        print(
            f"{kind}, {len(drawn)} drawings against {len(known)} true ones: FID {fid:.2f}, KID {kid:.4f}"
        )
    other = true(True)
    print(
        f"true drawings by held-out artists, {len(other)}, against the same: KID {kernel_distance(other, known):.4f}"
    )


def _unseen(models: dict[str, Pipeline], scorer: ClipScorer, out: Path) -> None:
    """A row a prompt, the mean of its drawings' text scores; a sheet of two drawings by each model."""
    prompts = [prompt for group in UNSEEN.values() for prompt in group]
    repeated = [prompt for prompt in prompts for _ in range(4)]
    images = {kind: _drawn(kind, model, repeated) for kind, model in models.items()}
    scores = {
        kind: scorer.text_score(drawn, repeated).reshape(-1, 4).mean(axis=1)
        for kind, drawn in images.items()
    }
    print(
        "| prompt | "
        + " | ".join(f"{kind}, Text" for kind in models)
        + " |\n"
        + "|---" * (1 + len(models))
        + "|"
    )
    for name, group in UNSEEN.items():
        rows = [prompts.index(prompt) for prompt in group]
        for label, at in ((f"**{name}**", rows), *((prompts[i], [i]) for i in rows)):
            print(
                f"| {label} | "
                + " | ".join(f"{scores[kind][at].mean():.3f}" for kind in models)
                + " |"
            )
    pictures = [
        images[kind][4 * i + j] for i in range(len(prompts)) for kind in models for j in range(2)
    ]
    captions = [f"{kind}: {prompt}" for prompt in prompts for kind in models for _ in range(2)]
    image_files.write_png(
        out / "prompts.png", sheets.grid(pictures, columns=8, scale=1, captions=captions)
    )


def _drawings(
    data: corpus.Corpus, kind: str, model: Pipeline, scorer: ClipScorer, out: Path
) -> None:
    contents = [content for content in POOL for _ in range(4)]
    truth = np.stack([data.true_image(noun(content)) for content in POOL]) / 255
    texts = scorer.text_features(POOL)
    for name, images, own in (
        ("drawn", _drawn(kind, model, contents), contents),
        ("true", truth, POOL),
    ):
        nearest = (scorer.image_features(images) @ texts.T).argmax(axis=1)
        share = np.mean([POOL[best] == content for best, content in zip(nearest, own, strict=True)])
        print(
            f"{kind}, concept named right by the shipped CLIP among {len(POOL)}, {name}: {share:.1%} of {len(images)}"
        )
    pictures, captions = [], []
    for prompt in PROMPTS:
        images = _drawn(kind, model, [prompt] * 4)
        label = next(noun(c) for c in POOL if noun(c) in prompt)
        pictures += [data.true_image(label) / 255, *images]
        captions += [f"true {label}", *[prompt] * 4]
    sheet = sheets.grid(pictures, columns=10, scale=2, captions=captions)
    image_files.write_png(out / f"{kind}.png", sheet)


if __name__ == "__main__":
    main()
