"""Trains the shipped base models from the corpus: tokenizer, CLIP, Muse, autoencoder and U-Net, and
what StyleDrop's adapter starts from.

One command trains one of them and can be resumed. The result is a folder in the diffusers layout,
which the rest of the package loads like any other checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from styledrop_jax import log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.settings import CommonSettings, complete, to_config
from styledrop_jax.emoji.tasks import clip, muse, start, unet, vae, vq
from styledrop_jax.emoji.tasks.base import Task
from styledrop_jax.io import image_files
from styledrop_jax.io.run_folder import Run
from styledrop_jax.training import loop, optim

TASKS: dict[str, Callable[[Any, corpus.Corpus, Path], Task[Any]]] = {
    "vq": vq.task,
    "clip": clip.task,
    "muse": muse.task,
    "vae": vae.task,
    "unet": unet.task,
    "start": start.task,
}
"""(settings, corpus, training folder) → what is trained; the settings are those of its name."""
_PRODUCTS = {"float32": None, "bfloat16": "BF16_BF16_F32"}


def pretrain(settings: CommonSettings, workdir: Path) -> None:
    """Trains one model, or continues its training.

    Leaves `<workdir>/export`, a folder of safetensors, and `<workdir>/images`, what the model did
    at every checkpoint.

    Args:
        settings: of one of the tasks.
        workdir: the training folder, new or one to continue.

    Raises:
        UserError: the corpus or a model that this one builds on is missing; the folder holds a
            training of other settings.
    """
    with (
        jax.default_matmul_precision(_PRODUCTS[settings.precision]),
        Run.open(workdir, to_config(settings), completed=complete) as run,
        log.Logger(run.workdir) as logger,
    ):
        data = corpus.load(settings.corpus, size=settings.size)
        task = TASKS[settings.task](settings, data, run.workdir)
        graphdef, _, frozen = loop.split(task.model, task.trainable)
        every = settings.checkpoint_every

        def after(step: int, state: dict, *parts: Any) -> dict:
            if task.after is not None:
                state = task.after(step, state, *parts)
            if step % every == 0 or step == settings.steps:
                model = nnx.merge(graphdef, jax.tree.map(jnp.array, state["params"]), frozen)
                sheet = task.sheet(model)
                image_files.write_png(run.path("images", f"{step:07d}.png"), sheet)
                logger.image(settings.task, step, sheet)
                task.export(model, run.path("export"))
            return state

        loop.fit(
            task.model,
            task.trainable,
            task.loss,
            optim.make(
                settings.learning_rate,
                steps=settings.steps,
                warmup=settings.warmup,
                schedule="cosine",
                muon=settings.optimizer == "muon",
                weight_decay=settings.weight_decay,
                clip_norm=1.0,
                b2=settings.b2,
            ),
            task.batches,
            steps=settings.steps,
            key=jax.random.key(settings.seed),
            folder=run.path("checkpoints"),
            logger=logger,
            stage=settings.task,
            steps_per_call=settings.steps_per_call,
            checkpoint_every=every,
            after=after,
            after_at=None if task.after else {*range(0, settings.steps, every), settings.steps},
        )
        log.say(f"{settings.task}: exported to {run.path('export')}")
