"""The unpickler that files of unknown origin are read with."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar


class Unpickler(pickle._Unpickler):
    """Python's own unpickler in place of the one in C, for which memory is taken by what lies in the file alone.

    The one in C takes a table as long as the largest number of a remembered object says, which one damaged byte can
    make larger than the machine. Bytearrays, of which the same is true, occur neither in checkpoints nor in archives of
    images and are unknown here. What a file may ask for is up to the class that inherits: `find_class` admits nothing.
    """

    dispatch: ClassVar = {
        code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
