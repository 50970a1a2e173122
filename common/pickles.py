"""Reading pickles that came from somewhere else, without running what they ask for.

A pickle is a program: unpickling calls whatever functions it names. This reader knows the handful
that NumPy arrays are made of and refuses everything else, naming it.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _ArrayUnpickler(pickle.Unpickler):
    stand_ins: Mapping[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.stand_ins:
            return self.stand_ins[module, name]
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def load_pickle(path: Path, stand_ins: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """The dictionaries, lists, numbers, strings and NumPy arrays in a pickle file.

    `stand_ins` gives, for (module, name) of a foreign class, what is called in its place.
    Raises UserError when the file is missing, not a whole pickle, or names anything else.
    """
    try:
        with Path(path).open("rb") as file:
            # latin1 keeps the raw bytes of arrays that Python 2 wrote (Detectron's old models).
            unpickler = _ArrayUnpickler(file, encoding="latin1")
            unpickler.stand_ins = stand_ins or {}
            return unpickler.load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused as a weights file: {error}") from None
    except OSError:
        raise
    except Exception as error:  # whatever the reader stumbles over in damaged bytes
        cause = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a whole pickle file ({cause})") from None
