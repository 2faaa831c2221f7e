"""The dense format: an activation kept as it is."""

from __future__ import annotations

from typing import Any

from .boundary import cut, versions_of

__all__ = ["DenseSnapshot"]


class DenseSnapshot:
    """A stored activation: the very storage, so storing and loading cost no time.

    Parameters
    ----------
    value
        The boundary to keep; the snapshot holds no graph.
    """

    def __init__(self, value: Any) -> None:
        self.value = cut(value)
        self.versions = versions_of(self.value)

    def load(self) -> Any:
        """Return the activation as a fresh leaf.

        Raises
        ------
        RuntimeError
            If somebody changed it in place since it was stored.
        """
        if versions_of(self.value) != self.versions:
            raise RuntimeError(
                "an activation that backward needs to run stages again has been changed in place since the "
                "forward pass; change a copy of it instead (x.clone(), or inplace=False)"
            )
        return cut(self.value)
