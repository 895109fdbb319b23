"""Trains the shipped base models from the corpus: tokenizer, CLIP and Muse; the autoencoder and the U-Net.

One command each, resumable, and the result is a folder in the diffusers layout that the rest of the package loads like
any other checkpoint.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from styledrop_jax import log
from styledrop_jax.emoji import corpus
from styledrop_jax.emoji.tasks import clip, muse, unet, vae, vq
from styledrop_jax.io import image_files
from styledrop_jax.io.run_folder import Run
from styledrop_jax.training import loop, optim

TASKS = {"vq": vq.task, "clip": clip.task, "muse": muse.task, "vae": vae.task, "unet": unet.task}


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.task` and leaves `<workdir>/export`, a folder of safetensors, and pictures on the way.

    Raises:
        UserError: the corpus or a model that this one builds on is missing.
    """
    products = {"float32": None, "bfloat16": "BF16_BF16_F32"}[config.precision]
    with (
        jax.default_matmul_precision(products),
        Run.open(workdir, config.to_dict()) as run,
        log.Logger(workdir) as logger,
    ):
        data = corpus.load(Path(config.corpus))
        task = TASKS[config.task](config, data, Path(workdir))
        graphdef, _, frozen = loop.split(task.model, task.trainable)

        def after(step: int, state: dict, *args) -> dict:
            state = task.after(step, state, *args) if task.after else state
            if step % config.checkpoint_every == 0 or step == config.steps:
                model = nnx.merge(graphdef, jax.tree.map(jnp.array, state["params"]), frozen)
                picture = task.picture(model)
                image_files.write_png(run.path("pictures", f"{step:07d}.png"), picture)
                logger.image(config.task, step, picture)
                task.export(model, run.path("export"))
            return state

        loop.fit(
            task.model,
            task.trainable,
            task.loss,
            optim.make(
                config.learning_rate,
                steps=config.steps,
                warmup=config.warmup,
                schedule="cosine",
                muon=config.optimizer == "muon",
                weight_decay=config.weight_decay,
                clip_norm=1.0,
                b2=config.b2,
            ),
            task.batches,
            steps=config.steps,
            key=jax.random.key(config.seed),
            folder=run.path("checkpoints"),
            logger=logger,
            stage=config.task,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
            after=after,
        )
        log.say(f"{config.task}: exported to {run.path('export')}")
