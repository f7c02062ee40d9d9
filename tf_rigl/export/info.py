"""The result of an export."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ExportInfo:
    """The result of an export.

    Attributes:
        path: str, the file or folder.
        bytes: int, its size.
        dense_bytes: int, the size that it would have with all weights stored dense.
        max_abs_error: float, the largest difference from the outputs of the Keras model
            on the check batch.
    """

    path: str
    bytes: int
    dense_bytes: int
    max_abs_error: float

    def __str__(self):
        ratio = self.bytes / self.dense_bytes if self.dense_bytes else 1.0
        return (
            f"{self.path}: {self.bytes:,} bytes, {ratio:.3f} of {self.dense_bytes:,}; outputs "
            f"within {self.max_abs_error:.2g} of the Keras model's"
        )
