"""Opening networks without the libraries' own progress bars and remarks, which would run through ours."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REMARKS = ("diffusers.configuration_utils", "transformers.distributed.tensor_parallel")


@contextmanager
def quiet(*further: str) -> Iterator[None]:
    """Keeps `diffusers` and `transformers` from drawing bars and from naming configuration keys they do not use, and
    layers that no plan spreads over devices.

    `further` names loggers whose warnings are no news either.
    """
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")
                 if name in sys.modules]
    drawn = [library.is_progress_bar_enabled() for library in libraries]
    remarks = [logging.getLogger(name) for name in (*REMARKS, *further)]
    levels = [logger.level for logger in remarks]
    for library in libraries:
        library.disable_progress_bar()
    for logger in remarks:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(remarks, levels, strict=True):
            logger.setLevel(level)
        for library, was in zip(libraries, drawn, strict=True):
            if was:
                library.enable_progress_bar()
