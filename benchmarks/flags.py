"""Flags that benchmarks on the corpus share."""

import argparse
from pathlib import Path


def of_corpus(doc: str | None, *, workdir: bool = True) -> argparse.ArgumentParser:
    """A parser whose help is `doc`, with --corpus, and --workdir where there are runs."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what launch/fetch_corpus.sh made"
    )
    if workdir:
        parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    return parser
