"""The figures and images of docs/shipped_models.md, from the shipped weights and the corpus.

python benchmarks/shipped_models.py --corpus corpus --out docs/images
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flags import of_corpus
from scores import interval

from styledrop_jax import guidance
from styledrop_jax.emoji import corpus, styles
from styledrop_jax.emoji.compose import descriptor, noun_phrase
from styledrop_jax.emoji.drawings import HELD_OUT_ARTISTS, TRAINED_ARTISTS, Artist
from styledrop_jax.emoji.tasks import muse, unet
from styledrop_jax.io import hub, image_files, sheets
from styledrop_jax.methods.prompts import POOL, noun
from styledrop_jax.metrics.clip_scores import ClipScorer, recall
from styledrop_jax.metrics.distances import frechet_distance, kernel_distance, scaled
from styledrop_jax.pipelines.base import Pipeline
from styledrop_jax.pipelines.load import load
from styledrop_jax.pipelines.muse import Muse
from styledrop_jax.pipelines.stable_diffusion import StableDiffusion

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
"""40 prompts that training did not say, or hardly. `emoji/compose.py` leaves out these colours and
counts of them. A pair in a style, or a place on a background, is one of thousands. A background is
named under few styles."""
SAMPLE = {"muse": muse.SAMPLE, "sd": unet.SAMPLE}
_EACH = 4  # samples of a prompt
_COMPOSED = 60  # styles of trained values, and as many with values held out
_SHOWN = 9  # of either on the sheet


def main() -> None:
    parser = of_corpus(__doc__, workdir=False)
    parser.add_argument("--out", type=Path, required=True, help="where the images go")
    flags = parser.parse_args()
    data = corpus.load(flags.corpus)
    scorer = ClipScorer.load(hub.resolve("emoji64/clip"))
    models = {"muse": load("emoji128-muse"), "sd": load("emoji128")}
    large = corpus.load(flags.corpus, size=128)
    for name, model in models.items():
        _reconstruction(large, name, model, scorer, flags.out)
        _samples(large, name, model, scorer, flags.out)
        _composed(large, name, model, scorer, flags.out)
    _print_recall(data, scorer)
    _distances(data, models, scorer)
    _unseen(models, scorer, flags.out)


def _generated(kind: str, model: Pipeline, prompts: Sequence[str]) -> np.ndarray:
    branches = guidance.classifier_free(guidance.bare(model), prompts, SAMPLE[kind])
    chunks = guidance.generate(branches, range(len(prompts)), settings=SAMPLE[kind])
    return np.concatenate(list(chunks))


def _repeated(prompts: Sequence[str], times: int = _EACH) -> list[str]:
    """Each of them so many times, one after the other."""
    return np.repeat(prompts, times).tolist()


def _restored(model: Pipeline, images: np.ndarray) -> np.ndarray:
    """What a pipeline's autoencoder makes of images [n, h, w, 3], uint8."""
    if isinstance(model, Muse):
        return model.decode_tokens(model.encode_images(images))
    assert isinstance(model, StableDiffusion)
    return model.decode_latents(np.asarray(model.encode_images(images).mode()), 16)


def _reconstruction(
    data: corpus.Corpus, kind: str, model: Pipeline, scorer: ClipScorer, out: Path
) -> None:
    given = data.held_out_images(376)
    images = given / 255
    restored = _restored(model, given)
    error = np.abs(restored - images).mean(axis=(1, 2, 3))
    both = scorer.image_features(restored) * scorer.image_features(images)
    for figure, values in (
        ("mean absolute error", error),
        ("cosine distance in CLIP features", 1 - both.sum(axis=1)),
    ):
        print(f"codec of {kind}, {figure} on held-out concepts: {interval(values, '.4f')}")
    pairs = np.stack([images, restored], axis=1)[:24].reshape(-1, *images.shape[1:])
    sheet = sheets.grid(list(pairs), columns=12)
    image_files.write_png(out / f"reconstruction_{kind}.png", sheet)


def _print_recall(data: corpus.Corpus, scorer: ClipScorer) -> None:
    core = np.array(data.concepts)[data.core][:200].tolist()
    pairs = {"held-out pairs": data.held_out_pairs(200)}
    for artist in HELD_OUT_ARTISTS:
        images = []
        captions = []
        for concept in core:
            images.append(data.true_image(concept, artist.name))
            captions.append(f"{noun_phrase(concept)} {descriptor(artist, None)}")
        pairs[artist.name] = (np.stack(images), captions)
    for name, (images, captions) in pairs.items():
        similarity = scorer.image_features(images / 255) @ scorer.text_features(captions).T
        first = f"recall@1 {recall(similarity, 1):.1%}, recall@5 {recall(similarity, 5):.1%}"
        print(f"CLIP, image → text among {len(captions)}, {name}: {first}")


def _true_features(
    data: corpus.Corpus, scorer: ClipScorer, artists: Sequence[Artist]
) -> np.ndarray:
    """Of every content of the pool by every one of the artists."""
    images = []
    for content in POOL:
        for artist in artists:
            images.append(data.true_image(noun(content), artist.name))
    return scaled(scorer.image_features(np.stack(images) / 255))


def _distances(data: corpus.Corpus, models: dict[str, Pipeline], scorer: ClipScorer) -> None:
    """FID and KID to the pool's true drawings by the artists of training, as many of each."""
    known = _true_features(data, scorer, TRAINED_ARTISTS)
    contents = _repeated(POOL, len(TRAINED_ARTISTS))
    for kind, model in models.items():
        found = scaled(scorer.image_features(_generated(kind, model, contents)))
        fid = frechet_distance(found, known)
        kid = kernel_distance(found, known)
        words = f"{len(found)} drawings against {len(known)} true ones"
        print(f"{kind}, {words}: FID {fid:.2f}, KID {kid:.4f}")
    other = _true_features(data, scorer, HELD_OUT_ARTISTS)
    kid = kernel_distance(other, known)
    words = f"true drawings by held-out artists, {len(other)}, against the same"
    print(f"{words}: KID {kid:.4f}")


def _unseen(models: dict[str, Pipeline], scorer: ClipScorer, out: Path) -> None:
    """A row a prompt: the mean of its samples' text scores. A sheet of two samples by each."""
    prompts = []
    for group in UNSEEN.values():
        prompts += group
    repeated = _repeated(prompts)
    images = []
    scores = []
    for kind, model in models.items():
        found = _generated(kind, model, repeated)
        images.append(found.reshape(len(prompts), _EACH, *found.shape[1:])[:, :2])
        scores.append(scorer.text_score(found, repeated).reshape(-1, _EACH).mean(axis=1))
    table = np.stack(scores, axis=1)  # [prompts, models]
    names = " | ".join(f"{kind}, Text" for kind in models)
    print(f"| prompt | {names} |\n{'|---' * (1 + len(models))}|")
    for name, group in UNSEEN.items():
        rows = [prompts.index(prompt) for prompt in group]
        _print_scores(f"**{name}**", table[rows].mean(axis=0))
        for row in rows:
            _print_scores(prompts[row], table[row])
    captions = []
    for prompt in prompts:
        for kind in models:
            captions += [f"{kind}: {prompt}"] * 2
    shown = np.stack(images, axis=1)  # [prompts, models, 2, h, w, 3]
    shown = shown.reshape(-1, *shown.shape[3:])
    sheet = sheets.grid(list(shown), columns=8, captions=captions)
    image_files.write_png(out / "prompts.png", sheet)


def _print_scores(label: str, scores: np.ndarray) -> None:
    print(f"| {label} | {' | '.join(f'{score:.3f}' for score in scores)} |")


def _composed(
    data: corpus.Corpus, kind: str, model: Pipeline, scorer: ClipScorer, out: Path
) -> None:
    """How near drawings come to true ones in styles composed of parts, when words name the parts.

    One content in each style: the cosine of features with what an artist drew of it, in that style;
    of drawings of the bare content, of that in the words, and of another artist's in that style.
    A sheet of the first of each kind, each true drawing beside that in the words.
    """
    rng = np.random.default_rng(0)
    shown = []
    captions = []
    for held_out in (False, True):
        contents, prompts, truth, other = [], [], [], []
        while len(contents) < _COMPOSED:
            parts = styles.random_parts(rng, held_out=held_out)
            if held_out and not _has_held_out(parts):
                continue
            content = POOL[len(contents) % len(POOL)]
            contents.append(content)
            prompts.append(f"{content} in {' '.join(styles.words(parts))} style")
            for images, artist in ((truth, "noto"), (other, "fluent flat")):
                drawing = data.true_image(noun(content), artist)
                images.append(styles.draw(parts, drawing) / 255)
        known = scorer.image_features(np.stack(truth))
        drawn = _generated(kind, model, prompts)
        for pair in zip(truth[:_SHOWN], drawn, strict=False):
            shown += pair
        for prompt in prompts[:_SHOWN]:
            captions += ["true", prompt]
        name = "with values held out" if held_out else "of trained values"
        for what, images in (
            ("bare content", _generated(kind, model, contents)),
            ("style in words", drawn),
            ("another artist's", np.stack(other)),
        ):
            likeness = (scorer.image_features(images) * known).sum(axis=1)
            print(f"{kind}, composed styles {name}, {what}: {interval(likeness, '.3f')}")
    sheet = sheets.grid(shown, columns=6, scale=2, captions=captions)
    image_files.write_png(out / f"composed_{kind}.png", sheet)


def _has_held_out(parts: styles.Parts) -> bool:
    values = {parts.line, parts.fill, *parts.inks, parts.ground, parts.texture, parts.edge}
    return any(not values.isdisjoint(held_out) for held_out in styles.HELD_OUT.values())


def _samples(
    data: corpus.Corpus, kind: str, model: Pipeline, scorer: ClipScorer, out: Path
) -> None:
    """How many samples of the pool are named right, and a sheet of samples beside true drawings."""
    contents = _repeated(POOL)
    truth = np.stack([data.true_image(noun(content)) for content in POOL]) / 255
    texts = scorer.text_features(POOL)
    for name, images, own in (
        ("drawn", _generated(kind, model, contents), contents),
        ("true", truth, list(POOL)),
    ):
        nearest = (scorer.image_features(images) @ texts.T).argmax(axis=1)
        share = np.mean(np.array(POOL)[nearest] == own)
        print(
            f"{kind}, concept named right by the shipped CLIP among {len(POOL)}, {name}: "
            f"{share:.1%} of {len(images)}"
        )
    shown = []
    captions = []
    for prompt in PROMPTS:
        label = next(noun(content) for content in POOL if noun(content) in prompt)
        shown += [data.true_image(label) / 255, *_generated(kind, model, [prompt] * _EACH)]
        captions += [f"true {label}", *[prompt] * _EACH]
    sheet = sheets.grid(shown, columns=10, captions=captions)
    image_files.write_png(out / f"{kind}.png", sheet)


if __name__ == "__main__":
    main()
