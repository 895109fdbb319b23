"""The figures and pictures of docs/shipped_models.md, from the shipped weights and the corpus.

python benchmarks/shipped_models.py --corpus corpus --out docs/images
"""

import argparse
from pathlib import Path

import numpy as np

from styledrop_jax import draw, hub
from styledrop_jax.backbones.base import Backbone, Settings
from styledrop_jax.backbones.load import load
from styledrop_jax.data import corpus, folders
from styledrop_jax.data.prompts import POOL, noun
from styledrop_jax.metrics.clip_scores import ClipScorer, mean_interval, recall

PROMPTS = (
    *POOL[:12],
    "a cat in pencil sketch style",
    "a rocket in neon light style",
    "a red car on a blue background",
    "a small tree on the left",
)
MODELS = {"muse": Settings(temperature=2.0, lambda_b=1.0), "sd": Settings(steps=20, lambda_b=2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made")
    parser.add_argument("--out", type=Path, required=True, help="where the pictures go")
    flags = parser.parse_args()
    data, scorer = corpus.load(flags.corpus), ClipScorer.load(hub.resolve("emoji64/clip"))
    models = {name: load(f"emoji64/{name}") for name in MODELS}
    _reconstruction(data, models, flags.out)
    _retrieval(data, scorer)
    for name, model in models.items():
        _drawings(data, name, model, scorer, flags.out)


def _reconstruction(data: corpus.Corpus, models: dict[str, Backbone], out: Path) -> None:
    images = data.held_out_images(376)
    tokens, posterior = (models[name].encode_images(images) for name in ("muse", "sd"))
    decoded = {"muse": models["muse"].decode_tokens(tokens), "sd": models["sd"].decode_latents(posterior.mode(), 16)}
    for name, again in decoded.items():
        error = np.abs(again - images / 255).mean(axis=(1, 2, 3))
        interval = "{:.4f} [{:.4f}, {:.4f}]".format(*mean_interval(error))
        print(f"codec of {name}, mean absolute error on held-out concepts: {interval}")
    triples = [picture for i in range(24) for picture in (images[i] / 255, decoded["muse"][i], decoded["sd"][i])]
    folders.write_png(out / "reconstruction.png", folders.grid(triples, columns=18))


def _retrieval(data: corpus.Corpus, scorer: ClipScorer) -> None:
    images, captions = data.held_out_pairs(200)
    similarity = scorer.image_features(images / 255) @ scorer.text_features(captions).T
    at = ", ".join(f"recall@{k} {recall(similarity, k):.1%}" for k in (1, 5))
    print(f"CLIP, image → text among {len(captions)} held-out pairs: {at}")


def _drawings(data: corpus.Corpus, kind: str, model: Backbone, scorer: ClipScorer, out: Path) -> None:
    def drawn(prompts: list[str]) -> np.ndarray:
        branches = draw.base_branches(model, prompts, MODELS[kind])
        chunks = draw.draw(branches, range(len(prompts)), settings=MODELS[kind], batch_size=16)
        return np.concatenate(list(chunks))

    contents = [content for content in POOL for _ in range(4)]
    truth = np.stack([data.true_image(noun(content)) for content in POOL]) / 255
    texts = scorer.text_features(POOL)
    for name, images, own in (("drawn", drawn(contents), contents), ("true", truth, POOL)):
        nearest = (scorer.image_features(images) @ texts.T).argmax(axis=1)
        share = np.mean([POOL[best] == content for best, content in zip(nearest, own, strict=True)])
        print(
            f"{kind}, concept named right by the shipped CLIP among {len(POOL)}, {name}: {share:.1%} of {len(images)}"
        )
    pictures, captions = [], []
    for prompt in PROMPTS:
        images = drawn([prompt] * 4)
        label = next(noun(c) for c in POOL if noun(c) in prompt)
        pictures += [data.true_image(label) / 255, *images]
        captions += [f"true {label}", *[prompt] * 4]
    sheet = folders.grid(pictures, columns=10, scale=2, captions=captions)
    folders.write_png(out / f"{kind}.png", sheet)


if __name__ == "__main__":
    main()
