"""What words bring before anything is trained: the base model under a style's bare name, under a
person's words, and under those that `styledrop describe` finds.

    python benchmarks/words.py --icons icons/node_modules --workdir runs/words

The twelve styles of validation_styles.py, every third prompt of the pool, the same seeds under all
words. Style is CLIP's cosine with the reference, content how much likelier its own than all
prompts' contents, both by the CLIP that finds the words; colour and texture are distances to the
reference by a judge without CLIP. Means over styles and prompts, with 95% bootstrap intervals.
"""

import argparse
from pathlib import Path

import numpy as np
from scores import print_table
from validation_styles import STYLES, write

from styledrop_jax import guidance, library, log
from styledrop_jax.feedback.scorers import Scored, clip_content, clip_style
from styledrop_jax.io import hub, image_files
from styledrop_jax.methods.prompts import POOL
from styledrop_jax.metrics.clip_scores import ClipScorer
from styledrop_jax.metrics.statistics import colour_distance, texture_distance
from styledrop_jax.pipelines.base import Pipeline, SampleSettings

_HOW = SampleSettings(batch_size=8, steps=20, lambda_b=2.0)
_SCORES = ("Style ↑", "content ↑", "colour ↓", "texture ↓")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="node_modules of the icon sets")
    parser.add_argument("--workdir", type=Path, required=True, help="where the references go")
    flags = parser.parse_args()
    clip = ClipScorer.load(hub.resolve("emoji64/clip"))
    base = library.load()
    table: dict[str, list[np.ndarray]] = {}
    for style in STYLES:
        folder = write(flags.icons, flags.workdir / "styles", style)
        reference = image_files.read_image(folder / "reference.png")
        found = library.describe(reference, content=style.content, number=1)
        descriptors = {
            "bare name": f"in {style.name} style",
            "a person's words": style.words,
            "found words": found.descriptors[0][0],
        }
        for arm, descriptor in descriptors.items():
            log.say(f"{style.name}, {arm}: {descriptor}")
            rows = _scores_under(base, clip, reference, style.content, descriptor)
            table.setdefault(arm, []).append(rows)
    print_table(table, _SCORES, "words")


def _scores_under(
    base: Pipeline, clip: ClipScorer, reference: np.ndarray, shown: str, descriptor: str
) -> np.ndarray:
    """The scores of the base model's samples, [prompts, 4]; not of what the reference shows."""
    contents = [content for content in POOL[1::3] if content != shown]
    prompts = [f"{content} {descriptor}" for content in contents]
    branches = guidance.classifier_free(guidance.bare(base), prompts, _HOW)
    seeds = list(range(100, 100 + len(prompts)))
    images = np.concatenate(list(guidance.generate(branches, seeds, settings=_HOW)))
    square = image_files.to_square(reference, base.resolution)
    seen = Scored(
        features=clip.image_features(images),
        prompts=prompts,
        contents=contents,
        ids=[(i, 0) for i in range(len(prompts))],
        references=square[None].astype(np.float32) / 255,
        shown=[shown],
        clip=clip,
        seed=0,
    )
    apart = []
    for image in image_files.to_uint8(images):
        apart.append((colour_distance(image, reference), texture_distance(image, reference)))
    return np.column_stack([clip_style(seen), clip_content(seen), np.array(apart)])


if __name__ == "__main__":
    main()
